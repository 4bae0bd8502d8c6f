"""Top-level keys of an environment file that are not read, and the warning for each.

conda ignores such keys with a warning, too.
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
    "prefix": "the server chooses the folder of an environment",
    "category": "every package belongs to one environment",
    "allow-pypi-requests": "an environment without 'pip:' uses no index",
    "channel_priority": "channels always have strict priority here",
    "platform": "write 'platforms:' with a list",
    "extras": "it is not a known key",
    "pip": "'pip:' must be an entry of 'dependencies'",
}


def ignored_key_warning(key: str, line: int) -> str:
    """Return the warning that the top-level `key` has no effect, with a suggestion."""
    reason = _REASONS.get(key, "")
    if not reason and key in CONDASTORE_KEYS:
        reason = "it belongs under 'condastore:'"
    reason = reason or "it is not a known key"
    near = [] if key in _REASONS else get_close_matches(key.lower(), READ_KEYS, n=1, cutoff=0.75)
    meant = f" Did you mean {near[0]!r}?" if near else ""
    return f"Line {line}: {printable(key)} is ignored: {reason}.{meant}"
