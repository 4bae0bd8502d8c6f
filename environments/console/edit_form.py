"""Draft of the editor: the submitted form and YAML text, and how each follows the other."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from functools import lru_cache

from django.http import QueryDict

from condastore.errors import SpecificationError, StoreError
from environments.domain.environment_file_edits import (
    FileFields,
    join_requirement,
    read_fields,
    requirement_lines,
    split_requirement,
    with_fields,
    with_requirement,
)
from environments.domain.lock import required_name

#: Platforms that the form offers; a file may list others.
PLATFORMS = ("linux-64", "linux-aarch64", "osx-64", "osx-arm64", "win-64")
_CUDA = "__cuda"
_LINE = re.compile(r"line (\d+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One fault of the draft: what is wrong, where, and what to do."""

    message: str
    where: str = ""
    hint: str = ""
    line: int = 0  # from 1; 0 if there is none


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """Text, the text that the form was last equal to, and the values of the form.

    `fields` is None if the text has a form that only the text can change; `unavailable` says why.
    """

    text: str
    base: str = ""
    fields: FileFields | None = None
    unavailable: str = ""
    problems: tuple[Problem, ...] = ()

    @classmethod
    def of(cls, text: str) -> Draft:
        """Return the draft of a text whose form has not been touched."""
        text = text.replace("\r\n", "\n")
        try:
            return cls(text=text, base=text, fields=read_fields(text))
        except SpecificationError as error:
            return cls(text=text, unavailable="Correct the text first.", problems=problems(error))
        except StoreError as error:
            return cls(text=text, unavailable=f"{error.message} {error.hint}")

    @classmethod
    def submitted(cls, data: QueryDict) -> Draft:
        """Merge the submitted form with the submitted text.

        Changes of the form that cannot be merged stay in the form, with the reason as a problem.
        """
        text = data.get("text", "").replace("\r\n", "\n")
        if "base" not in data:
            return cls.of(text)
        base = str(data["base"]).replace("\r\n", "\n")
        try:
            before = read_fields(base)
        except StoreError:
            return cls.of(text)
        form = _form(data, before)
        if form == before:
            draft = cls.of(text)
            return draft if draft.fields else replace(draft, base=base, fields=before)
        try:
            return cls.of(with_fields(text, base=before, changed=form))
        except StoreError as error:
            return cls(text=text, base=base, fields=form, problems=problems(error))

    def repaired(self, repair: str) -> Draft:
        """Replace one requirement; `repair` is a JSON list of the old and the new text."""
        try:
            was, becomes = json.loads(repair)
        except (ValueError, TypeError):
            return self
        return self.with_requirement(str(was), str(becomes))

    def with_requirement(self, was: str, becomes: str) -> Draft:
        """Replace the requirement `was`, or add one if it is empty."""
        try:
            return Draft.of(with_requirement(self.text, was, becomes))
        except StoreError as error:
            return replace(self, problems=problems(error))

    @property
    def rows(self) -> list[tuple[str, str]]:
        return [split_requirement(text) for text in self.fields.dependencies] if self.fields else []

    @property
    def texts(self) -> dict[str, str]:
        """Values of the fields that have one item per line."""
        if self.fields is None:
            return {}
        names = ("channels", "pip", "imports", "commands")
        found = {name: "\n".join(getattr(self.fields, name)) for name in names}
        found["virtual"] = "\n".join(self.virtual_packages)
        found["variables"] = "\n".join(f"{name}={value}" for name, value in self.fields.variables)
        return found

    @property
    def cuda(self) -> str | None:
        """Version of CUDA that the GPU switch declares; None if it is off."""
        for item in self.fields.virtual_packages if self.fields else ():
            name, _, version = item.partition("=")
            if name.strip() == _CUDA:
                return version.strip("= ")
        return None

    @property
    def virtual_packages(self) -> list[str]:
        """Virtual packages without those of the GPU switch."""
        items = self.fields.virtual_packages if self.fields else ()
        return [item for item in items if item.partition("=")[0].strip() != _CUDA]

    @property
    def platforms(self) -> list[tuple[str, bool]]:
        """Platforms that the form offers, with whether each is chosen."""
        chosen = self.fields.platforms if self.fields else ()
        names = dict.fromkeys((*PLATFORMS, *chosen))
        return [(name, name in chosen) for name in names]

    def lines_of(self, requirements: list[str]) -> list[tuple[str, int]]:
        """Return the requirements of the file that have the names of these, with their lines."""
        wanted = {_name(text) for text in requirements}
        return [one for one in lines_in(self.text) if _name(one[0]) in wanted]


@lru_cache(maxsize=32)
def lines_in(text: str) -> tuple[tuple[str, int], ...]:
    """Return the requirements of a text with their lines; none of a text that cannot be read."""
    try:
        return requirement_lines(text)
    except StoreError:
        return ()


def _name(requirement: str) -> str:
    return required_name(requirement.rpartition("::")[2])


def problems(error: StoreError) -> tuple[Problem, ...]:
    """Return the faults of an error, each with its line."""
    faults = error.faults if isinstance(error, SpecificationError) else (error,)
    return tuple(
        Problem(
            message=fault.message,
            where=fault.where,
            hint=fault.hint or "",
            line=int(found[1]) if (found := _LINE.search(fault.where)) else 0,
        )
        for fault in faults
    )


def _form(data: QueryDict, before: FileFields) -> FileFields:
    """Read the values of the form; texts that were not changed keep their spelling."""
    spelled = {split_requirement(text): text for text in before.dependencies}
    by_name = {split_requirement(text)[0]: text for text in before.dependencies}
    removed = data.get("remove", "")
    rows = []
    pairs = zip(data.getlist("package"), data.getlist("version"), strict=False)
    for index, (name, version) in enumerate(pairs):
        name, version = name.strip(), version.strip()
        if not name or str(index) == removed:
            continue
        written = spelled.get((name, version))
        rows.append(written or join_requirement(name, version, was=by_name.get(name, "")))
    virtual = _lines(data, "virtual")
    held = next((item for item in before.virtual_packages if item.startswith(_CUDA)), "")
    if "gpu" in data:
        version = data.get("cuda", "").strip()
        wanted = f"{_CUDA}={version}" if version else _CUDA
        same = held.partition("=")[2].strip("= ") == version and held
        virtual = (*virtual, held if same else wanted)
    if sorted(virtual) == sorted(before.virtual_packages):
        virtual = before.virtual_packages
    chosen = set(data.getlist("platform"))
    order = dict.fromkeys((*before.platforms, *data.getlist("platform")))
    return FileFields(
        dependencies=tuple(rows),
        pip=_lines(data, "pip"),
        channels=_lines(data, "channels"),
        platforms=tuple(name for name in order if name in chosen),
        variables=_variables(data),
        virtual_packages=virtual,
        imports=_lines(data, "imports"),
        commands=_lines(data, "commands"),
        description=data.get("description", "").replace("\r\n", "\n").strip(),
        exclude_newer=data.get("exclude_newer", "").strip(),
    )


def _lines(data: QueryDict, name: str) -> tuple[str, ...]:
    return tuple(line.strip() for line in data.get(name, "").splitlines() if line.strip())


def _variables(data: QueryDict) -> tuple[tuple[str, str], ...]:
    pairs = {}
    for line in data.get("variables", "").splitlines():
        name, _, value = line.partition("=")
        if name.strip():
            pairs[name.strip()] = value
    return tuple(pairs.items())
