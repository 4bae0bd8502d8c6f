"""Plan of a synchronisation: which environments to add, keep and remove, and why."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple, Self

from condastore.errors import InvalidInputError, StoreError
from environments.domain.lock import PlatformLock

_FOLDER = re.compile(r"(\d{1,9})-([0-9a-f]{12})-([^/]+)")
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}")


class Name(NamedTuple):
    """Of an environment."""

    namespace: str
    environment: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.environment}"


@dataclass(frozen=True, slots=True, kw_only=True)
class WantedBuild:
    """The current build of an environment, as the server says."""

    number: int
    lock: str  # digest
    specification: str  # digest
    platforms: tuple[str, ...]
    created_at: datetime

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Self:
        return cls(
            number=int(content["number"]),
            lock=str(content["lock"]),
            specification=str(content["specification"]),
            platforms=tuple(map(str, content["platforms"])),
            created_at=datetime.fromisoformat(content["created_at"]),
        )

    def folder_name(self, environment: str) -> str:
        """Digest of everything the folder is made from; a recreated environment has another one."""
        made_from = hashlib.sha256(f"{self.lock} {self.specification}".encode()).hexdigest()
        return f"{self.number}-{made_from[:12]}-{environment}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """One environment; without a build it has no folder, and `why` says the reason."""

    build: WantedBuild | None
    why: str
    recalled: frozenset[int]  # numbers of builds that are not to be used any more


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """What a folder is linked from."""

    lock: PlatformLock
    requested: tuple[str, ...]
    variables: Mapping[str, str]


#: What the server said of a namespace: its environments by name, or that one may not (any more).
Answer = Mapping[str, Wanted] | StoreError


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """A finished folder below `prefixes/`."""

    name: Name
    number: int
    path: Path
    switched_at: float  # when it came, or ceased to be current

    @classmethod
    def of(cls, path: Path) -> Self | None:
        """Parse the record of a folder; None if the agent did not create it."""
        found = _FOLDER.fullmatch(path.name)
        if found is None:
            return None
        return cls(
            name=Name(path.parent.name, found[3]),
            number=int(found[1]),
            path=path,
            switched_at=path.lstat().st_mtime,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """Which environments are to be here: those that are named, else all of the namespaces."""

    namespaces: tuple[str, ...]
    named: frozenset[Name] = frozenset()

    def has(self, name: Name) -> bool:
        return name.namespace in self.namespaces and (not self.named or name in self.named)


def parse_environments(answer: Mapping[str, Any]) -> dict[str, Wanted]:
    """What `/api/envs/NAMESPACE` says.

    Raises:
        KeyError, TypeError, ValueError: it is something else.
        InvalidInputError: a name cannot be the name of a folder.
    """
    found: dict[str, Wanted] = {}
    for one in answer["environments"]:
        name, build = one["name"], one["build"]
        if not _NAME.fullmatch(name):
            raise InvalidInputError(f"The server names an environment {name!r}.")
        found[name] = Wanted(
            build=WantedBuild.from_json(build) if build is not None else None,
            why=str(one["why"]),
            recalled=frozenset(map(int, one["recalled"])),
        )
    return found


def farewell(name: Name, choice: Choice, answers: Mapping[str, Answer]) -> str:
    """Why the folder of an environment is to go; "" where it stays, or nobody could be asked."""
    if not choice.has(name):
        return "it is not among those to keep any more"
    answer = answers.get(name.namespace)
    if answer is None:
        return ""
    if isinstance(answer, StoreError):
        return answer.message
    needed = answer.get(name.environment)
    if needed is None:
        return "it was removed or moved, or you may not see it any more"
    return "" if needed.build is not None else needed.why


def to_drop(
    kept: Sequence[Kept],
    current: Mapping[Name, Path],
    choice: Choice,
    answers: Mapping[str, Answer],
    *,
    keep: int,
) -> list[Kept]:
    """The folders that nobody is to use: recalled, of an environment that is gone, or too old.

    Of each environment, `keep` that were current before stay, the last ones.
    """
    doomed: list[Kept] = []
    old: dict[Name, list[Kept]] = {}
    for one in kept:
        answer = answers.get(one.name.namespace)
        if one.path == current.get(one.name):
            continue
        if farewell(one.name, choice, answers):
            doomed.append(one)
        elif isinstance(answer, Mapping):
            needed = answer[one.name.environment]
            if one.number in needed.recalled:
                doomed.append(one)
            else:
                old.setdefault(one.name, []).append(one)
    for those in old.values():
        those.sort(key=lambda one: one.switched_at, reverse=True)
        doomed += those[keep:]
    return doomed
