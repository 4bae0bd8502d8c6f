"""Which local users reach the folders of a namespace: rules that administrators write."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from condastore.errors import InvalidInputError

#: Every local user, in place of a group.
EVERYONE = "*"
_GROUP = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.@\\ $-]{0,255}|\*")
_PLACEHOLDER = "{namespace}"


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupRule:
    """Grants the Unix group `group`, or EVERYONE, access to namespaces that match `pattern`."""

    pattern: str
    group: str

    def group_of(self, namespace: str) -> str:
        return self.group.replace(_PLACEHOLDER, namespace)


def parse_group_rules(texts: Sequence[str]) -> tuple[GroupRule, ...]:
    """Parse `namespace=group` rules; the namespace is a glob, the group may hold `{namespace}`.

    Raises:
        InvalidInputError: names every rule that cannot be read.
    """
    rules, faults = [], []
    for text in texts:
        pattern, equals, group = (part.strip() for part in text.partition("="))
        if not pattern or not equals or not _GROUP.fullmatch(group.replace(_PLACEHOLDER, "n")):
            faults.append(repr(text))
            continue
        rules.append(GroupRule(pattern=pattern, group=group))
    if faults:
        raise InvalidInputError(
            f"These are not namespace=group: {', '.join(faults)}.",
            where="CONDASTORE_NAMESPACE_GROUPS",
            hint="Write research=researchers, team-*=cs-{namespace}, or *=* for everybody.",
        )
    return tuple(rules)


def group_for(namespace: str, *, public: bool, rules: Sequence[GroupRule]) -> str:
    """Return the group with access to a namespace; EVERYONE, or "" for the service alone.

    The first matching rule decides; a public namespace is accessible to everyone.
    """
    if public:
        return EVERYONE
    matching = (rule for rule in rules if fnmatchcase(namespace, rule.pattern))
    rule = next(matching, None)
    return rule.group_of(namespace) if rule else ""


@dataclass(frozen=True, slots=True, kw_only=True)
class FolderMode:
    """Mode bits of a folder, and the numeric id of its group (None: unchanged)."""

    mode: int
    group: int | None = None


OWNER_ONLY = FolderMode(mode=0o700)
WORLD_READABLE = FolderMode(mode=0o755)
#: Others may traverse the folder, but not list it.
PASSAGE = FolderMode(mode=0o711)


def group_readable(group: int) -> FolderMode:
    """Return the mode with set-group-ID, so that new files in the folder have its group."""
    return FolderMode(mode=0o2750, group=group)


def combined(modes: Sequence[FolderMode], *, own: FolderMode) -> FolderMode:
    """Return the mode of a folder that several namespaces share.

    Everyone has access if one of them is for everyone. A folder has one group only: that of `own`,
    the namespace in which it was created, if it is among them.
    """
    if WORLD_READABLE in modes:
        return WORLD_READABLE
    groups = {mode for mode in modes if mode.group is not None}
    if len(groups) == 1:
        return groups.pop()
    return own if own in groups else OWNER_ONLY
