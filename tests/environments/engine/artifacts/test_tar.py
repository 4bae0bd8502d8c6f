"""Tar archives: headers equal those of `tarfile`, and piece sizes do not change the bytes."""

from __future__ import annotations

import tarfile
from io import BytesIO
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from condastore.errors import LinkError
from environments.engine.artifacts.tar import BLOCK, END, Entry, chunks, tar_stream, with_folders

NAMES = st.lists(
    st.text(st.characters(codec="utf-8", exclude_characters="/\0"), min_size=1, max_size=70),
    min_size=1,
    max_size=3,
).map("/".join)
MOMENTS = st.integers(0, 2**32 - 1)
ENTRIES = st.one_of(
    st.builds(Entry.file, NAMES, st.binary(max_size=1100), MOMENTS, executable=st.booleans()),
    st.builds(Entry.folder, NAMES, MOMENTS, mode=st.sampled_from([0o755, 0o1777])),
    st.builds(Entry.folder, NAMES, MOMENTS, owner=st.sampled_from([0, 1000])),
    st.builds(Entry.link, NAMES, NAMES, MOMENTS),
)


def written(entries: list[Entry]) -> bytes:
    return b"".join(bytes(piece) for piece in chunks(tar_stream(entries), 700, reuse=True))


def by_tarfile(entry: Entry) -> bytes:
    """The same member, written by the standard library."""
    out = BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
        info = tarfile.TarInfo(entry.path)
        info.mode, info.mtime, info.uid, info.gid = entry.mode, entry.moment, *[entry.owner] * 2
        if entry.target:
            info.type, info.linkname = tarfile.SYMTYPE, entry.target
        elif entry.content is None:
            info.type = tarfile.DIRTYPE
        info.size = entry.size
        assert not isinstance(entry.content, str)
        archive.addfile(info, BytesIO(entry.content or b""))
        return out.getvalue()[: archive.offset]


@given(ENTRIES)
def test_a_member_has_the_bytes_that_tarfile_gives_it(entry: Entry) -> None:
    assert written([entry]) == by_tarfile(entry)


@given(st.lists(st.binary(max_size=40), max_size=10), st.integers(1, 30))
def test_pieces_do_not_depend_on_how_the_stream_arrives(pieces: list[bytes], size: int) -> None:
    whole = b"".join(pieces)
    cut = [bytes(piece) for piece in chunks(pieces, size)]
    assert cut == [whole[start : start + size] for start in range(0, len(whole), size)]


def test_folders_come_before_what_is_in_them() -> None:
    entries = [Entry.file("b/c/d", b"", 1), Entry.file("a", b"", 1), Entry.link("b/e", "c", 1)]
    paths = [entry.path for entry in with_folders(entries, 0)]
    assert paths == ["a", "b", "b/c", "b/c/d", "b/e"]
    with tarfile.open(fileobj=BytesIO(written(entries) + END)) as archive:
        assert archive.getnames() == ["b/c/d", "a", "b/e"]


def test_a_truncated_file_is_not_packed(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(bytes(5000))
    whole = written([Entry("file", str(file), 5000, 0)])
    assert len(whole) == BLOCK + 5120
    with pytest.raises(LinkError, match="shorter"):
        written([Entry("file", str(file), 5001, 0)])
