"""The index is one that uv installs from: with hashes, metadata, extras, markers and sdists."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from .server import ChannelServer, Fault
from .simple_index import make_sdist, make_wheel, read_distribution, sample_distributions
from .wheel_packages import find_uv


def uv(
    server: ChannelServer, *arguments: str, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run `uv pip` against the index, and no other."""
    command = [str(find_uv()), "pip", *arguments, "--no-config", "--no-cache"]
    command += ["--python", sys.executable, "--index-url", f"{server.url}pypi/simple/"]
    allowed = {name: value for name, value in os.environ.items() if not name.startswith("UV_")}
    return subprocess.run(
        command, check=False, capture_output=True, text=True, env=allowed | environment
    )


def compiled(server: ChannelServer, folder: Path, *requirements: str) -> str:
    """What `uv pip compile` makes of requirements; its complaint if it cannot."""
    requested = folder / "requirements.in"
    requested.write_text("\n".join(requirements))
    answer = uv(server, "compile", "--quiet", "--no-header", "--no-annotate", str(requested))
    return answer.stderr if answer.returncode else answer.stdout


def test_extras_and_markers_are_resolved_from_metadata_alone(
    channel_server: ChannelServer, tmp_path: Path
) -> None:
    locked = compiled(channel_server, tmp_path, "tinyutil[colour]")
    assert locked.split() == ["tinycolour==1.0", "tinylinux==1.0", "tinyutil==2.3"]
    assert channel_server.requests.count("*.whl.metadata", status=200) == 3
    assert channel_server.requests.count("*.whl") == 0


@pytest.mark.parametrize(
    ("requirement", "told"),
    [
        ("tinywithdrawn", "tinywithdrawn==1.0"),
        ("tinyfuture", "no solution"),
        ("tinymissing", "project-that-does-not-exist"),
        ("needs-tinyname", "tinyname==9.0"),
        ("sdist-only", "sdist-only==1.0"),
    ],
)
def test_each_sample_is_what_it_is_for(
    channel_server: ChannelServer, tmp_path: Path, requirement: str, told: str
) -> None:
    assert told.lower() in compiled(channel_server, tmp_path, requirement).lower()


def test_what_conda_provides_conflicts_with_what_a_wheel_needs(
    channel_server: ChannelServer, tmp_path: Path
) -> None:
    answer = compiled(channel_server, tmp_path, "needs-old-hello", "hello-noarch==2.0")
    assert "hello-noarch<1.1" in answer


def test_an_upload_date_is_told(channel_server: ChannelServer, tmp_path: Path) -> None:
    requested = tmp_path / "requirements.in"
    requested.write_text("tinyplot\ntinyold\n")
    dated = uv(channel_server, "compile", "--exclude-newer", "2021-01-01", str(requested))
    assert "tinyplot" in dated.stderr
    requested.write_text("tinyold\n")
    assert not uv(
        channel_server, "compile", "--exclude-newer", "2021-01-01", str(requested)
    ).returncode


def test_wheels_and_sdists_are_installed(channel_server: ChannelServer, tmp_path: Path) -> None:
    target, trace = tmp_path / "target", tmp_path / "trace"
    answer = uv(
        channel_server,
        *("install", "--target", str(target), "tinyutil", "sdist-only"),
        SDIST_TRACE=str(trace),
    )
    assert answer.returncode == 0, answer.stderr
    assert (target / "sdist_only.py").exists()
    assert (target / "bin" / "tinyutil-script").exists()
    assert "built" in trace.read_text()


def test_a_wheel_with_wrong_bytes_is_refused(channel_server: ChannelServer, tmp_path: Path) -> None:
    channel_server.faults.add(Fault("*tinycolour*.whl", wrong_bytes=True))
    answer = uv(channel_server, "install", "--target", str(tmp_path / "target"), "tinycolour")
    assert answer.returncode
    assert not (tmp_path / "target" / "tinycolour.py").exists()


def test_both_forms_of_a_page_say_the_same(simple_index: Path) -> None:
    page = (simple_index / "tinyplot" / "index.html").read_text()
    for file in json.loads((simple_index / "tinyplot" / "index.v1.json").read_text())["files"]:
        content = (simple_index / "tinyplot" / file["url"]).read_bytes()
        digest = file["hashes"]["sha256"]
        assert hashlib.sha256(content).hexdigest() == digest
        assert f"{file['url']}#sha256={digest}" in page
        assert file["core-metadata"]["sha256"] in page


def test_what_is_made_is_reproducible_and_read_back(tmp_path: Path) -> None:
    assert make_wheel("Tiny.Thing", "1") == make_wheel("Tiny.Thing", "1")
    assert make_sdist("tiny", "1") == make_sdist("tiny", "1")
    for created in sample_distributions():
        if created.metadata is not None and isinstance(created.content, bytes):
            (tmp_path / created.file_name).write_bytes(created.content)
            read = read_distribution(tmp_path / created.file_name)
            assert (read.project, read.version, read.sha256) == (
                *(created.project, created.version, created.sha256),
            )
