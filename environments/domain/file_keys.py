"""Top-level keys of an environment file that are not read, and the warning for each.

conda ignores such keys with a warning too, so a file that has some still works here.
"""

from __future__ import annotations

from difflib import get_close_matches

from environments.domain.names import printable

#: Keys that are read at the top level.
READ_KEYS = (
    "name",
    "channels",
    "dependencies",
    "variables",
    "platforms",
    "description",
    "condastore",
)
#: Keys below `condastore:`.
CONDASTORE_KEYS = ("tests", "virtual-packages", "description", "exclude-newer")
#: Keys of other tools, and why each has no effect here.
_REASONS = {
    "prefix": "where an environment lies is decided by the server",
    "category": "every package belongs to the one environment",
    "allow-pypi-requests": "an environment without 'pip:' asks no index",
    "channel_priority": "channels always have strict priority here",
    "platform": "write 'platforms:' with a list",
    "extras": "no key of that name is read here",
    "pip": "'pip:' stands as an entry of 'dependencies'",
}


def ignored_key_warning(key: str, line: int) -> str:
    """Say that the top-level `key` has no effect, and what may have been meant."""
    reason = _REASONS.get(key, "")
    if not reason and key in CONDASTORE_KEYS:
        reason = "it stands under 'condastore:'"
    reason = reason or "no key of that name is read here"
    near = [] if key in _REASONS else get_close_matches(key.lower(), READ_KEYS, n=1, cutoff=0.75)
    meant = f" Did you mean {near[0]!r}?" if near else ""
    return f"Line {line}: {printable(key)} is ignored: {reason}.{meant}"
