"""Neutralise control characters in everything that is written to a terminal.

Package names, log lines, error texts and file names come from other people. A terminal obeys the
escape sequences in them: they can rewrite what was printed, set the window's title or the
clipboard. `guard` wraps `sys.stdout` and `sys.stderr` once, at the start of the process, so that
no caller has to remember it.
"""

from __future__ import annotations

import codecs
import contextlib
import json
import re
import sys
from collections.abc import Iterable, Iterator
from functools import cache
from typing import IO, TYPE_CHECKING, Any, TextIO, cast

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.segment import Segment

#: Control characters (C0 without tab and line feed, DEL, C1), characters that change the direction
#: of text, that take no space, or that end a line unseen; and halves of surrogate pairs.
_CONTROLS = (
    "\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f"
    "\ufeff\ufff9-\ufffb\ud800-\udfff\U00013430-\U0001343f\U0001bca0-\U0001bca3"
    "\U0001d173-\U0001d17a\U000e0000-\U000e0fff"
)
#: Colours (SGR) are removed whole, carriage returns at the end of a line too; whatever else is
#: left of an escape sequence stays readable behind a replacement character.
_UNSAFE = re.compile(rf"(\x1b\[[0-9;:]*m|\r+(?=\n|\Z))|[{_CONTROLS}]")
_UNSAFE_IN_LINE = re.compile(rf"(\x1b\[[0-9;:]*m|[\r\n]+\Z)|[\n{_CONTROLS}]")
_UNSAFE_IN_LOG = re.compile(f"[\n{_CONTROLS}]")
_UNSAFE_IN_JSON = re.compile(f"[{_CONTROLS}]")
REPLACEMENT = "\ufffd"
#: Wide enough that nothing is cut or folded where no terminal sets a width.
_WIDE = 1000


def neutralise(text: str) -> str:
    """Return `text` with nothing in it that steers a terminal; lines and tabs stay."""
    return _UNSAFE.sub(_replacement, text)


def one_line(text: str) -> str:
    """Return `text` as one line, with nothing in it that steers a terminal."""
    return _UNSAFE_IN_LINE.sub(_replacement, text)


def _replacement(found: re.Match[str]) -> str:
    return "" if found[1] else REPLACEMENT


def escaped(text: str) -> str:
    """Return `text` as one line in which control characters are escaped, as in a log: `\\x1b`."""
    return _UNSAFE_IN_LOG.sub(lambda found: repr(found[0])[1:-1], text)


def to_json(document: Any, *, indent: int | None = None) -> str:
    """Serialise `document`; control characters of any kind are escaped, so that none is lost."""
    text = json.dumps(document, ensure_ascii=False, indent=indent)
    return _UNSAFE_IN_JSON.sub(lambda found: json.dumps(found[0])[1:-1], text)


class GuardedBytes:
    """The `buffer` of a guarded stream that is a terminal: bytes are text there."""

    def __init__(self, stream: GuardedStream) -> None:
        self._stream = stream
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def write(self, content: bytes | bytearray | memoryview) -> int:
        self._stream.write(self._decoder.decode(bytes(content)))
        return len(content)

    def flush(self) -> None:
        self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream.unguarded.buffer, name)


class GuardedStream:
    """A text stream whose text is neutralised, on a terminal and elsewhere.

    Bytes (`buffer`) are passed on as they are where the stream is no terminal: files and other
    programs get them exact.
    """

    def __init__(self, unguarded: TextIO) -> None:
        self.unguarded = unguarded
        terminal = unguarded.isatty()
        self.buffer: Any = GuardedBytes(self) if terminal else getattr(unguarded, "buffer", None)
        # A terminal of another encoding shows what it lacks, and ends no command. OSError: the
        # stream was opened on a file, and its descriptor is a pipe by now, as in a forked process.
        with contextlib.suppress(AttributeError, OSError, ValueError):
            unguarded.reconfigure(errors="backslashreplace")  # type: ignore[attr-defined]

    def write(self, text: str) -> int:
        self.unguarded.write(neutralise(text))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.unguarded, name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.unguarded)


def guard() -> None:
    """Guard `sys.stdout` and `sys.stderr` of this process."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is not None and not isinstance(stream, GuardedStream):
            setattr(sys, name, cast("TextIO", GuardedStream(stream)))


def _unguarded(stream: IO[str]) -> IO[str]:
    return stream.unguarded if isinstance(stream, GuardedStream) else stream


@cache
def console(*, stderr: bool = False) -> Console:
    """The rich console of stdout or stderr: its own escape sequences pass, no text's do.

    Markup is off: brackets in foreign text are text.
    """
    from rich.console import Console
    from rich.segment import Segment

    class GuardedConsole(Console):
        def render(self, renderable: RenderableType, options: Any = None) -> Iterable[Segment]:
            for segment in super().render(renderable, options):
                if segment.control:  # of rich itself: it moves the cursor of a progress bar
                    yield segment
                else:
                    yield Segment(neutralise(segment.text), segment.style)

    file = _unguarded(sys.stderr if stderr else sys.stdout)
    return GuardedConsole(
        file=file,
        width=None if file.isatty() else _WIDE,
        highlight=False,
        emoji=False,
        markup=False,
    )
