"""`condastore env export` and `artifacts`: a build as a file, made by the server where need be.

A large file is made first, which is shown; then it is downloaded, continued after a cut, and its
sha256 compared with what the server says.
"""

from __future__ import annotations

import hashlib
import os
import re
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated

import typer

from condastore.cli import queries, render
from condastore.cli.client import Api, Json, UnreachableError, connect
from condastore.cli.errors import CommandError, Status
from condastore.cli.lookup import ask_build, reference
from condastore.cli.options import AsJson, BuildOf
from condastore.terminal import console, one_line

if TYPE_CHECKING:
    import httpx
    from rich.progress import Progress


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """`name`: of the API. `ending`: what follows the environment's name in the file's."""

    name: str
    ending: str
    made: bool = False  # by a worker, at the first wish


#: What `export` can write. micromamba takes a file for a lock by its name, and makes an empty
#: environment of any other.
FORMATS: Mapping[str, Format] = {
    "conda-lock.yml": Format(name="conda-lock.yml", ending="-lock.yml"),
    "environment.yml": Format(name="environment.yml", ending="-environment.yml"),
    "explicit.txt": Format(name="explicit.txt", ending="-explicit.txt"),
    "pixi.lock": Format(name="pixi.lock", ending="-pixi.lock"),
    "sbom": Format(name="sbom.cdx.json", ending="-sbom.cdx.json"),
    "provenance": Format(name="provenance.intoto.json", ending="-provenance.intoto.json"),
    "tar.gz": Format(name="env.tar.gz", ending=".tar.gz", made=True),
    "tar.zst": Format(name="env.tar.zst", ending=".tar.zst", made=True),
    "squashfs": Format(name="env.squashfs", ending=".squashfs", made=True),
    "sif": Format(name="env.sif", ending=".sif", made=True),
    "installer": Format(name="install.sh", ending="-install.sh", made=True),
    "bundle": Format(name="bundle.tar", ending="-bundle.tar", made=True),
}
#: Seconds between two polls of a file that is being created.
LOOK = 1.0
#: How often a download may be cut without one new byte in between, and the pauses after it.
CUTS, PAUSE = 5, 0.5
_DIGEST = re.compile(r'(?:W/)?"sha256:([0-9a-f]{64})"')


def add_to(app: typer.Typer) -> None:
    app.command()(export)
    app.command()(artifacts)


def _formats(incomplete: str) -> list[str]:
    return [name for name in FORMATS if name.startswith(incomplete)]


def export(
    environment: BuildOf,
    format_: Annotated[
        str,
        typer.Option("--format", help=f"One of {', '.join(FORMATS)}.", autocompletion=_formats),
    ] = "conda-lock.yml",
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="File to write; - for stdout.", show_default=False),
    ] = None,
    platform: Annotated[str, typer.Option(help="For example linux-64.")] = "",
    as_json: AsJson = False,
) -> None:
    """Write a build as a file: its lock, an archive, an installer, what is in it."""
    if format_ not in FORMATS:
        raise CommandError(
            f"{format_!r} is not a format.",
            status=Status.USAGE,
            code="invalid-input",
            hint=f"Use one of {', '.join(FORMATS)}.",
        )
    form = FORMATS[format_]
    api = connect()
    ref = reference(api, environment)
    path = f"/api/envs/{ref.namespace}/{ref.environment}/{ref.build or 'current'}/{form.name}"
    parameters = {"platform": platform} if platform else {}
    to_stdout = output is not None and str(output) == "-"
    target = output or Path(f"{ref.environment}{form.ending}")
    known = to_stdout or target.name.endswith(("-lock.yml", "-lock.yaml"))
    if form.name == "conda-lock.yml" and not known:
        render.warn("note: micromamba reads a file as a lock only if its name ends in -lock.yml")
    with _writing(target):
        if form.made:
            got = _fetch(api, path, parameters, None if to_stdout else target)
        else:
            content = api.download(path, **parameters)
            got = Got(size=len(content), sha256=hashlib.sha256(content).hexdigest())
            if to_stdout:
                sys.stdout.buffer.write(content)
            else:
                target.write_bytes(content)
        if form.name == "install.sh" and not to_stdout:
            target.chmod(0o755)
    if to_stdout:
        return
    document = {
        "file": str(target),
        "bytes": got.size,
        "format": format_,
        "sha256": got.sha256,
    }
    render.answer(document, as_json, lambda: render.say(f"Wrote {target}."))


def artifacts(environment: BuildOf, as_json: AsJson = False) -> None:
    """List the files that were made of a build, and those that are being made."""
    api = connect()
    ref = reference(api, environment)
    found = ask_build(api, queries.ARTIFACTS, ref)["artifacts"]
    rows = []
    for one in found:
        told = one["progress"] or {}
        how = f"{told.get('done')}/{told['total']}" if told.get("total") else ""
        if one["failure"]:
            how = one["failure"]["message"].partition("\n")[0][:80]
        rows.append(
            (
                one["fileName"],
                one["platform"],
                one["state"],
                render.size(one["size"]),
                (one["sha256"] or "")[:12],
                how,
            )
        )
    columns = ["file", "-platform", "state", "#size", "-sha256", "~progress"]
    empty = f"{ref} has no artifacts yet.\nCreate one: condastore env export {ref} --format tar.zst"
    render.answer(found, as_json, lambda: render.table(columns, rows, empty=empty))


@contextmanager
def _writing(target: Path) -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise CommandError(
            f"The file cannot be written: {error.strerror}.",
            status=Status.INVALID,
            code="invalid-input",
            where=str(target),
        ) from error


# --- made by a worker, and large -----------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Got:
    size: int
    sha256: str


@dataclass(slots=True)
class _Sink:
    """Return the partial file and the digest of its contents."""

    file: IO[bytes]
    hasher: hashlib._Hash
    size: int = 0

    def write(self, part: bytes) -> None:
        self.file.write(part)
        self.hasher.update(part)
        self.size += len(part)


def _fetch(api: Api, path: str, parameters: Mapping[str, str], target: Path | None) -> Got:
    """Have it made, and download it to `target`, or to stdout."""
    with _shown() as show:
        _await_made(api, path, parameters, show)
        # Asked by itself: the answer with the bytes may come from nginx or an object store.
        expected = _digest_of(api.etag(path, **parameters))
        if target is None:
            sink = _Sink(sys.stdout.buffer, hashlib.sha256())
            return _download(api, path, parameters, sink, expected, show)
        # Beside it, so that it appears whole; what a stopped command got is continued by the next.
        part = target.with_name(f".{target.name}.{expected[:12]}.part")
        with part.open("a+b") as file:
            sink = _Sink(file, hashlib.sha256())
            file.seek(0)
            while known := file.read(1 << 20):
                sink.hasher.update(known)
                sink.size += len(known)
            got = _download(api, path, parameters, sink, expected, show)
        part.replace(target)
        return got


def _await_made(api: Api, path: str, parameters: Mapping[str, str], show: _Show) -> None:
    cuts = 0
    while True:
        try:
            told = api.awaited(path, **parameters)
        except UnreachableError:
            cuts += 1
            if cuts > CUTS:
                raise
            time.sleep(PAUSE * 2**cuts)
            continue
        if told is None:
            return
        cuts = 0
        show.making(told)
        time.sleep(LOOK)


def _download(
    api: Api, path: str, parameters: Mapping[str, str], sink: _Sink, expected: str, show: _Show
) -> Got:
    """Continue `sink` to its end; each cut is waited out as long as there is some progress."""
    cuts, etag = 0, ""
    while True:
        before = sink.size
        headers = {"Accept-Encoding": "identity"}
        if sink.size:
            headers["Range"] = f"bytes={sink.size}-"
            if etag:
                headers["If-Range"] = etag
        try:
            with api.reading(path, headers=headers, **parameters) as (told, response):
                etag = told
                if _take(response, sink, show):
                    break
        except UnreachableError:
            cuts = cuts + 1 if sink.size == before else 1
            if cuts > CUTS:
                raise
            time.sleep(PAUSE * 2**cuts)
    if expected and sink.hasher.hexdigest() != expected:
        _start_again(sink)
        raise CommandError(
            "What arrived has another sha256 than the server says.",
            status=Status.FAILED,
            code="damaged",
            hint="Try again; if that stays, something on the way changes files.",
        )
    return Got(size=sink.size, sha256=sink.hasher.hexdigest())


def _digest_of(etag: str) -> str:
    found = _DIGEST.fullmatch(etag)
    return found[1] if found else ""


def _take(response: httpx.Response, sink: _Sink, show: _Show) -> bool:
    """The body. False where it has to be asked for from the beginning: what was there is not it."""
    if response.status_code == 416:  # as long as the file, or longer
        size = response.headers.get("Content-Range", "").rpartition("/")[2]
        if size == str(sink.size):
            return True
        _start_again(sink)
        return False
    if response.status_code == 200 and sink.size:
        _start_again(sink)  # it has changed, or the server does not support ranges
    length = response.headers.get("Content-Length", "")
    total = sink.size + int(length) if length.isdigit() else 0
    for part in response.iter_bytes():
        sink.write(part)
        show.downloading(sink.size, total)
    return True


def _start_again(sink: _Sink) -> None:
    if sink.file is sys.stdout.buffer:
        raise CommandError(
            "The file changed while it was downloaded.", status=Status.FAILED, code="damaged"
        )
    sink.file.truncate(0)
    sink.hasher, sink.size = hashlib.sha256(), 0


class _Show:
    """How far it is, on stderr: lines, or on a terminal one that moves."""

    def __init__(self, progress: Progress | None) -> None:
        self._progress = progress
        self._task = progress.add_task("", total=None, counts="") if progress else None
        self._said = ""

    def making(self, told: Json) -> None:
        progress = told.get("progress") or {}
        done, total = progress.get("done") or 0, progress.get("total") or 0
        text = f"making it: {str(progress.get('stage') or told.get('state') or '').lower()}"
        if told.get("failure"):
            text += f", attempt {told.get('attempt')}"
        if self._progress is not None and self._task is not None:
            counts = f"{done}/{total}" if total else ""
            self._update(text, done, total, counts)
        elif text != self._said:
            render.warn(text)
        self._said = text

    def downloading(self, done: int, total: int) -> None:
        if self._progress is not None:
            counts = f"{render.size(done)} of {render.size(total)}" if total else render.size(done)
            self._update("downloading", done, total, counts)

    def _update(self, text: str, done: int, total: int, counts: str) -> None:
        assert self._progress is not None
        assert self._task is not None
        self._progress.update(
            self._task,
            description=one_line(text),
            completed=done,
            total=total or None,
            counts=counts,
        )


@contextmanager
def _shown() -> Iterator[_Show]:
    if not sys.stderr.isatty() or os.environ.get("TERM") == "dumb":
        yield _Show(None)
        return
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    with Progress(
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        TextColumn("{task.fields[counts]}"),
        TimeElapsedColumn(),
        console=console(stderr=True),
        transient=True,
    ) as progress:
        yield _Show(progress)
