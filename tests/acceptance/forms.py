"""Each form of a build as people take and use it: with curl, tar, squashfuse, sh and skopeo."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path

from environments.engine.artifacts.sif import DATA_AT
from tests.environments.engine.artifacts.test_file_systems import mounted, run_in
from tests.environments.registry.conftest import tool
from tests.environments.registry.test_tools import run_in as run_in_bundle
from tests.system import System

#: `zlib` first: numpy's wheel expects the library that it loads on every machine.
CODE = "import zlib, numpy, sys; print(numpy.arange(5).sum(), sys.prefix)"


def fetch(system: System, build: str, file: str, folder: Path) -> Path:
    """With curl: cut after the first bytes, and continued; its digest is the published one."""
    path = folder / file
    address = f"/api/envs/{build}/{file}"
    requested = ["-sSfL", "-H", f"Authorization: Bearer {system.token}", f"{system.url}{address}"]
    requested += ["-o", str(path)]
    if path.suffix == ".json":  # documents are short, and come whole
        tool("curl", *requested)
        return path
    tool("curl", "--range", "0-999", *requested)
    assert path.stat().st_size == 1000
    tool("curl", "--continue-at", "-", *requested)
    reported = system.http.head(address, headers={"Authorization": f"Bearer {system.token}"})
    assert digest(path) in reported.headers["ETag"]
    return path


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def said_at(prefix: Path, text: str) -> bool:
    return text.split() == ["10", str(prefix)]


def runs_unpacked(archive: Path) -> None:
    """Unpacked elsewhere, told of its new place, and activated."""
    prefix = archive.with_name(f"{archive.name}-unpacked")
    prefix.mkdir()
    tool("tar", "-xf", archive, "-C", prefix)
    script = f'. "{prefix}/bin/activate" && conda-unpack && python -c "{CODE}"'
    assert said_at(prefix, tool("bash", "-c", script))


def runs_mounted(image: Path) -> None:
    offset = DATA_AT if image.suffix == ".sif" else 0
    with mounted(image, offset=offset) as root:
        inside = root / "opt/env" if (root / "opt/env").is_dir() else root
        binds: list[str | Path] = ["--ro-bind", inside, "/opt/env"]
        assert said_at(Path("/opt/env"), run_in(binds, "/opt/env/bin/python", "-c", CODE))


def installs_offline(installer: Path) -> None:
    prefix = installer.with_name("installed")
    offline = ["--dev-bind", "/", "/", "--unshare-net"]
    tool("bwrap", *offline, "sh", installer, "-b", "-p", prefix)
    assert said_at(prefix, tool(str(prefix / "bin/python"), "-c", CODE))


def holds_a_channel(bundle: Path) -> None:
    names = tool("tar", "-tf", bundle).split()
    assert any(re.search(r"/channel/linux-64/numpy-.*\.conda$", name) for name in names)


def names_packages(document: Path) -> None:
    assert "numpy" in {one["name"] for one in json.loads(document.read_text())["components"]}


#: What is done with each file to see that it is good.
FORMS: Mapping[str, Callable[[Path], None]] = {
    "env.tar.gz": runs_unpacked,
    "env.tar.zst": runs_unpacked,
    "env.squashfs": runs_mounted,
    "env.sif": runs_mounted,
    "install.sh": installs_offline,
    "bundle.tar": holds_a_channel,
    "sbom.cdx.json": names_packages,
}


def pull(system: System, build: str, folder: Path) -> str:
    """The image, with skopeo into an OCI layout; the digests of its layers."""
    host, (name, _, tag) = system.url.removeprefix("http://"), build.rpartition("/")
    layout = f"oci:{folder}/layout:{tag}"
    signed = ["--src-tls-verify=false", "--src-creds", f"any:{system.token}"]
    tool("skopeo", "copy", *signed, f"docker://{host}/{name}:{tag}", layout)
    return " ".join(json.loads(tool("skopeo", "inspect", layout))["Layers"])


def runs_as_image(folder: Path, tag: str) -> None:
    rootless = [] if os.geteuid() == 0 else ["--rootless"]
    bundle = folder / "bundle"
    tool("umoci", "unpack", *rootless, "--image", f"{folder}/layout:{tag}", bundle)
    assert said_at(Path("/opt/env"), run_in_bundle(bundle, "python", "-c", CODE))
