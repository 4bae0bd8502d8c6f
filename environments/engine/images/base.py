"""Base image made from this machine's libc, shell and tools, for use without a registry.

It has what conda packages expect of a system: the C and C++ libraries that they leave to it, a
shell for their scripts, certificates, and a user other than root. The same machine always gives the
same bytes.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path

from condastore.errors import InvalidInputError
from environments.domain.images import HOME, LAYER, USER, canonical, oci_platform
from environments.engine.artifacts.tar import Entry
from environments.engine.images.archives import FIXED_TIME, write_layer
from environments.engine.images.loading import LoadedImage, LoadedLayer

#: Copied if the machine has them; `sh` and `env` are required.
PROGRAMS = (
    "sh bash env basename cat chmod cp cut date dirname echo expr false grep head hostname id ln ls"
    " mkdir mktemp mv printf pwd readlink rm rmdir sed sleep sort tail tar tee test touch tr true"
    " uname wc which whoami xargs"
)
#: Parts of glibc that are only loaded by name, and libraries that conda packages and wheels
#: (PEP 600) leave to the system.
LIBRARIES = (
    "libc.so.6 libm.so.6 libmvec.so.1 libdl.so.2 libpthread.so.0 librt.so.1 libutil.so.1"
    " libresolv.so.2 libanl.so.1 libnss_dns.so.2 libnss_files.so.2 libgcc_s.so.1 libstdc++.so.6"
    " libz.so.1 libexpat.so.1"
)
CERTIFICATES = "etc/ssl/certs/ca-certificates.crt"
_LIBRARY = re.compile(r"(?:=>\s*)?(/\S+)\s+\(0x")


def make_base(folder: Path, *, platform: str) -> LoadedImage:
    """Write the image's layer into the new folder `folder`.

    Raises:
        InvalidInputError: the machine has no shell, no `env` or no `ldd`.
    """
    folder.mkdir(parents=True)
    created = write_layer(_entries(), folder / "layer", compression="gzip")
    config = {
        **oci_platform(platform),
        "config": {"Env": ["PATH=/usr/local/bin:/usr/bin:/bin", "LANG=C.UTF-8"]},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{created.diff_id}"]},
    }
    layer = LoadedLayer(path=created.path, diff_id=created.diff_id, media_type=LAYER["gzip"])
    digest = hashlib.sha256(canonical(config)).hexdigest()
    return LoadedImage(platform=platform, digest=digest, config=config, layers=(layer,))


def _entries() -> list[Entry]:
    programs = {name: found for name in PROGRAMS.split() if (found := shutil.which(name))}
    missing = {"sh", "env", "ldd"} - {name for name in ("sh", "env", "ldd") if shutil.which(name)}
    if missing:
        raise InvalidInputError(
            f"This machine has no {', '.join(sorted(missing))}, which a base image requires.",
            hint="Use an image of a registry (CONDASTORE_BASE_IMAGE), or load an image file.",
        )
    files = {f"bin/{name}": found for name, found in programs.items()}
    libraries = _libraries([str(Path(found).resolve()) for found in programs.values()])
    files |= {location.lstrip("/"): location for location in libraries}
    texts = {
        "etc/passwd": f"root:x:0:0:root:/root:/bin/sh\nuser:x:{USER}:{USER}:user:{HOME}:/bin/sh\n",
        "etc/group": f"root:x:0:\nuser:x:{USER}:\n",
        "etc/nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\n",
        "etc/profile": (
            "for script in /etc/profile.d/*.sh; do\n"
            '    if [ -r "$script" ]; then . "$script"; fi\n'
            "done\nunset script\n"
        ),
    }
    folders = ("dev", "proc", "run", "sys", "root", "opt")
    return [
        *(_file(location, source, mode=0o755) for location, source in files.items()),
        *(Entry.file(location, text.encode(), FIXED_TIME) for location, text in texts.items()),
        *([_file(CERTIFICATES, f"/{CERTIFICATES}")] if Path("/", CERTIFICATES).is_file() else []),
        Entry.link("usr/bin", "../bin", FIXED_TIME),
        Entry.link("usr/lib", "../lib", FIXED_TIME),
        Entry.folder(HOME.lstrip("/"), FIXED_TIME, owner=USER),
        *(Entry.folder(name, FIXED_TIME) for name in folders),
        *(Entry.folder(name, FIXED_TIME, mode=0o1777) for name in ("tmp", "var/tmp")),
    ]


def _file(place: str, source: str, *, mode: int = 0o644) -> Entry:
    path = Path(source).resolve()
    return Entry(place, str(path), path.stat().st_size, FIXED_TIME, mode)


def _libraries(programs: Iterable[str]) -> set[str]:
    """Return the machine's libraries that `programs` need, and those in LIBRARIES."""
    found = _needed(programs)
    folder = next(Path(path).parent for path in sorted(found) if path.endswith("/libc.so.6"))
    locations = {folder, *(Path(path).parent for path in found)}
    others = {str(location / name) for location in locations for name in LIBRARIES.split()}
    others |= {f"/usr{path}" for path in others if not path.startswith("/usr/")}
    there = sorted(path for path in others if Path(path).is_file())
    by_name = {Path(path).name: path for path in there}
    found |= set(by_name.values())
    return {_short(path) for path in found | _needed(by_name.values())}


def _needed(files: Iterable[str]) -> set[str]:
    answer = subprocess.run(["ldd", *sorted(files)], capture_output=True, text=True, check=False)
    return set(_LIBRARY.findall(answer.stdout))


def _short(path: str) -> str:
    """Return /usr/lib/... as /lib/..., which is the same folder in the image."""
    return path.removeprefix("/usr") if path.startswith("/usr/lib") else path
