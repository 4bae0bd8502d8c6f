"""What is neutralised before it reaches a terminal: every character that could steer one."""

from __future__ import annotations

import io
import json
import os
import sys
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from condastore import terminal

#: Signs of Arabic and Syriac that Unicode lists as formatting, and that are seen.
_VISIBLE = {*range(0x0600, 0x0606), 0x06DD, 0x070F, 0x0890, 0x0891, 0x08E2, 0x110BD, 0x110CD}
UNSAFE = {
    chr(code)
    for code in range(sys.maxunicode + 1)
    if unicodedata.category(chr(code)) in {"Cc", "Cf", "Cs", "Zl", "Zp"}
    and code not in _VISIBLE
    and chr(code) not in "\n\t"
}
ANY_TEXT = st.text(st.characters(codec=None) | st.sampled_from("\x1b[]0;m\x9b\r\n\u202e\u2066a"))


class Screen(io.TextIOWrapper):
    """A terminal that remembers what it was sent."""

    def __init__(self) -> None:
        super().__init__(io.BytesIO(), encoding="utf-8", write_through=True)

    def isatty(self) -> bool:
        return True

    @property
    def sent(self) -> str:
        buffer: Any = self.buffer
        return str(buffer.getvalue().decode())


def test_no_control_or_invisible_character_of_unicode_is_left() -> None:
    every = "".join(UNSAFE)
    assert set(terminal.neutralise(every)) == {terminal.REPLACEMENT}
    assert set(terminal.one_line(f"{every}\n ")) == {terminal.REPLACEMENT, " "}
    one_by_one = sorted(UNSAFE)
    assert json.loads(terminal.to_json(one_by_one)) == one_by_one
    assert not UNSAFE & set(terminal.to_json(one_by_one, indent=2))


@given(ANY_TEXT)
def test_whatever_a_text_is_made_of_nothing_unsafe_is_left(text: str) -> None:
    for shown in (terminal.neutralise(text), terminal.one_line(text), terminal.escaped(text)):
        assert not UNSAFE & set(shown)
    assert "\n" not in terminal.one_line(text) + terminal.escaped(text)
    assert terminal.neutralise(terminal.neutralise(text)) == terminal.neutralise(text)


@given(st.text(st.characters(categories=["L", "N", "P", "S", "Zs"])))
def test_letters_of_any_script_are_shown_as_they_are(text: str) -> None:
    assert terminal.neutralise(text) == terminal.one_line(text) == terminal.escaped(text) == text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[1;31mred\x1b[0m", "red"),
        ("line\r\nline\r", "line\nline"),
        ("50 %\r100 %", "50 %\ufffd100 %"),
        ("\x1b]0;title\x07", "\ufffd]0;title\ufffd"),
        ("\x1b\x1b[31m[2J", "\ufffd[2J"),
    ],
)
def test_colours_are_removed_and_the_rest_stays_readable(text: str, shown: str) -> None:
    assert terminal.neutralise(text) == shown


def test_a_guarded_terminal_takes_bytes_as_text_even_where_a_character_is_cut() -> None:
    screen = Screen()
    guarded = terminal.GuardedStream(screen)
    for part in ("grün\x1b[2J".encode()[:3], "grün\x1b[2J".encode()[3:]):
        guarded.buffer.write(part)
    assert screen.sent == "grün\ufffd[2J"


def test_a_file_gets_the_bytes_exactly() -> None:
    inside = io.BytesIO()
    guarded = terminal.GuardedStream(io.TextIOWrapper(inside, encoding="utf-8"))
    guarded.buffer.write(b"\x1b\xff\x00")
    assert inside.getvalue() == b"\x1b\xff\x00"


def test_a_console_sends_its_own_sequences_and_none_of_a_text(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from rich.progress import Progress, TextColumn
    from rich.table import Table

    screen = Screen()
    monkeypatch.setattr(sys, "stdout", screen)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    terminal.console.cache_clear()
    try:
        console = terminal.console()
        evil = "\x1b]0;PWNED\x07\x1b[2J[bold]b[/bold][link=http://e]l[/link]"
        table = Table(evil, title=evil)
        table.add_row(evil)
        console.print(table, evil, style="red")
        with Progress(TextColumn("{task.description}", markup=False), console=console) as bar:
            bar.add_task(evil)
            console.print(evil)
    finally:
        terminal.console.cache_clear()
    assert "\x1b[31m" in screen.sent
    assert "\x1b[?25l" in screen.sent
    assert "[bold]b" in screen.sent
    for sequence in ("\x1b]", "\x1b[2J", "\x07"):
        assert sequence not in screen.sent


def test_a_stream_whose_file_became_a_pipe_is_guarded(tmp_path: Path) -> None:
    """As that of a process that was forked by one whose log is a file."""
    reader, writer = os.pipe()
    with (tmp_path / "log").open("a") as stream, os.fdopen(reader) as received:
        stream.write("before")
        stream.flush()
        os.dup2(writer, stream.fileno())
        os.close(writer)
        guarded = terminal.GuardedStream(stream)
        guarded.write("after\x1b\n")
        stream.flush()
        assert received.readline() == "after\N{REPLACEMENT CHARACTER}\n"
