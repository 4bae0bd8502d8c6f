"""Parsing of the settings of a rule: every value is validated, all faults are reported."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any, TypeVar

from condastore.errors import FaultError, InvalidInputError, RuleError, StoreError
from environments.domain.names import did_you_mean, printable
from environments.domain.policy.package_specs import PackageSpec, package_spec

Value = TypeVar("Value")

_MAX_ENTRIES = 2_000  # entries of one list
# No spaces at the ends, which would take quadratic time.
_AGE = re.compile(r"(?i)(\d{1,6})\s*(minutes?|min|hours?|h|days?|d|weeks?|w)?")
_UNITS = {"m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
_BYTES = re.compile(r"(?i)(\d{1,15}(?:\.\d+)?)\s*([kmgt]?)(i?)b?")


class Settings:
    """Reads the settings of a rule and collects faults; `finish` raises them."""

    def __init__(self, content: object) -> None:
        self._faults: list[StoreError] = []
        self._read: set[str] = set()
        self._content: Mapping[str, Any] = {}
        if isinstance(content, Mapping):
            self._content = content
        else:
            self.fault("", "The settings of a rule must be an object of keys and values.")

    def fault(self, where: str, message: str, hint: str = "") -> None:
        location = f"settings.{where}" if where else "settings"
        self._faults.append(FaultError(message, where=location, hint=hint))

    def finish(self) -> None:
        """
        Raises:
            RuleError: with all faults, unknown keys included.
        """
        for key in self._content:
            if key not in self._read:
                self.fault(
                    str(key)[:40],
                    f"{printable(str(key))} is not a setting of this kind of rule.",
                    did_you_mean(str(key), self._read)
                    or f"Known: {', '.join(sorted(self._read))}.",
                )
        if self._faults:
            raise RuleError(self._faults)

    def _get(self, key: str) -> Any:
        self._read.add(key)
        return self._content.get(key)

    def given(self, key: str) -> bool:
        self._read.add(key)
        return self._content.get(key) not in (None, "", [], {})

    def text(self, key: str, *, longest: int = 500) -> str:
        value = self._get(key)
        if value is None:
            return ""
        if not isinstance(value, str) or len(value) > longest:
            self.fault(key, f"The value must be a text of at most {longest} characters.")
            return ""
        return " ".join(value.split())

    def flag(self, key: str, *, default: bool = False) -> bool:
        value = self._get(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            self.fault(key, f"{printable(str(value))} must be true or false.")
            return default
        return value

    def choice(self, key: str, among: tuple[str, ...]) -> str:
        """Return one of `among`; the first is the default."""
        value = self._get(key)
        if value in (None, ""):
            return among[0]
        if value not in among:
            self.fault(
                key,
                f"{printable(str(value))} must be one of {', '.join(among)}.",
                did_you_mean(str(value), among),
            )
            return among[0]
        return str(value)

    def count(self, key: str) -> int | None:
        value = self._get(key)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            self.fault(key, f"{printable(str(value))} must be a positive integer.")
            return None
        return value

    def size(self, key: str) -> int | None:
        """Return a size in bytes, written as a number or like `5 GB`."""
        value = self._get(key)
        if value is None or isinstance(value, int):
            return self.count(key)
        match = _BYTES.fullmatch(value.strip()) if isinstance(value, str) else None
        if match is None:
            self.fault(key, f"{printable(str(value))} is not a size.", "Write it like 5 GB.")
            return None
        base = 1024 if match[3] else 1000
        return int(float(match[1]) * base ** " kmgt".index(match[2].lower() or " "))

    def age(self, key: str) -> timedelta | None:
        """Return an age, written as a number of days or like `14 days`, `36h`, `2 weeks`."""
        return self._each(key, self._get(key), _age) if self.given(key) else None

    def ages(self, key: str, check: Callable[[str], str]) -> dict[str, timedelta]:
        """Return a mapping of keys that `check` parses to ages."""
        found: dict[str, timedelta] = {}
        for name, value in self._mapping(key).items():
            read = self._each(f"{key}.{name}", name, check)
            age = self._each(f"{key}.{name}", value, _age)
            if read is not None and age is not None:
                found[read] = age
        return found

    def listed(self, key: str, check: Callable[[str], Value]) -> tuple[Value, ...]:
        """Return a list of texts that `check` parses; a single text counts as a list."""
        found = (self._each(f"{key}[{i}]", item, check) for i, item in enumerate(self._list(key)))
        return tuple(dict.fromkeys(item for item in found if item is not None))

    def specs(self, key: str, *, wide: bool) -> tuple[PackageSpec, ...]:
        return self.listed(key, lambda text: package_spec(text, wide=wide))

    def mapping(
        self, key: str, read_key: Callable[[str], Value], check: Callable[[str], str]
    ) -> tuple[tuple[Value, tuple[str, ...]], ...]:
        """Return a mapping to texts or lists of texts."""
        found: list[tuple[Value, tuple[str, ...]]] = []
        for name, value in self._mapping(key).items():
            read = self._each(f"{key}.{name}", name, read_key)
            items = value if isinstance(value, list) else [value]
            texts = [self._each(f"{key}.{name}[{i}]", item, check) for i, item in enumerate(items)]
            if read is not None:
                found.append((read, tuple(text for text in texts if text is not None)))
        return tuple(found)

    def _mapping(self, key: str) -> Mapping[str, Any]:
        value = self._get(key)
        if value is None:
            return {}
        if not isinstance(value, Mapping) or len(value) > _MAX_ENTRIES:
            self.fault(key, f"The value must be an object of at most {_MAX_ENTRIES} keys.")
            return {}
        return {str(name): content for name, content in value.items()}

    def _list(self, key: str) -> list[Any]:
        value = self._get(key)
        if value is None:
            return []
        if isinstance(value, str):
            return [value]
        if not isinstance(value, list | tuple) or len(value) > _MAX_ENTRIES:
            self.fault(key, f"The value must be a list of at most {_MAX_ENTRIES} texts.")
            return []
        return [*value]

    def _each(self, where: str, item: Any, check: Callable[[str], Value]) -> Value | None:
        if isinstance(item, int) and not isinstance(item, bool):
            item = str(item)
        if not isinstance(item, str):
            self.fault(where, f"{printable(str(item))} is not a text.")
            return None
        try:
            return check(item)
        except StoreError as error:
            self.fault(where, error.message, error.hint)
            return None


def _age(text: str) -> timedelta:
    match = _AGE.fullmatch(text.strip())
    if match is None:
        raise InvalidInputError(
            f"{printable(text)} is not an age.", hint="Write it like 14 days, 36h or 2 weeks."
        )
    return timedelta(seconds=int(match[1]) * _UNITS[(match[2] or "d")[0].lower()])


def channel_pattern(text: str) -> str:
    """Parse a URL pattern (`https://*.example.com/*`) or the end of a URL (`conda-forge`)."""
    text = text.strip().rstrip("/")
    if not text or not text.isascii() or any(c.isspace() for c in text) or "@" in text:
        raise InvalidInputError(
            f"{printable(text)} is not a pattern of a channel's URL.",
            hint="Write it like https://conda.example.com/*, or conda-forge.",
        )
    return text


def source_pattern(text: str) -> str:
    """Parse a URL pattern with a scheme: unencrypted URLs must be allowed explicitly."""
    pattern = channel_pattern(text)
    if not pattern.lower().startswith(("https://", "http://")) or pattern.count("/") < 3:
        raise InvalidInputError(
            f"{printable(text)} is not a pattern of URLs.",
            hint="Write it like https://github.com/acme/*.",
        )
    return pattern


def plain(text: str) -> str:
    return " ".join(text.split())
