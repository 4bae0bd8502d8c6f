"""Generated packages for the corners of the format that ordinary packages seldom reach.

Everything is made here: no network, no compiler. Each builder's docstring, or the summary it
gives its packages, says what a test can do with them.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

from .conda_package import PLACEHOLDER, PackageFile, PackageSpec
from .tiny_elf import program_printing

PLATFORMS = ("linux-64", "linux-aarch64", "osx-arm64", "win-64")

#: The release date of the oldest generated package.
FIRST_RELEASE = datetime(2023, 1, 15, tzinfo=UTC)

_LICENSE_TEXT = b"License text of a generated test package.\n"


def release_timestamp(days: int) -> int:
    """Milliseconds since the epoch, ``days`` after the first release."""
    return int((FIRST_RELEASE + timedelta(days=days)).timestamp() * 1000)


def sample_packages(
    now: datetime | None = None, platforms: tuple[str, ...] = PLATFORMS
) -> Iterator[PackageSpec]:
    """All generated packages. ``now`` dates the ones that stand for a release of today."""
    for subdir in platforms:
        yield from _library_graph(subdir)
        yield _large_data(subdir)
    yield from _licenses()
    yield from _policy_cases(now or datetime(2026, 1, 1, tzinfo=UTC))
    yield from _virtual_package_users()
    yield from _metapackages()
    yield from _unsatisfiable()
    yield from _link_corner_cases()
    yield from _noarch_python()
    yield _pip()


def sample_patches() -> dict[str, dict[str, list[str]]]:
    """Channel patches: one version of ``withdrawn`` is revoked, another is removed."""
    names = {
        package.version: f"{package.stem}.conda"
        for package in _policy_cases(datetime(2026, 1, 1, tzinfo=UTC))
        if package.name == "withdrawn"
    }
    return {"noarch": {"revoke": [names["1.1"]], "remove": [names["1.2"]]}}


def _library_graph(subdir: str) -> Iterator[PackageSpec]:
    """Two generations of a small stack, so that a pin on an old part decides the rest.

    ``apptool 2`` needs ``libbeta 2`` needs ``libalpha 2``; ``legacy-app`` needs ``libalpha 1``.
    """
    glibc = ["__glibc >=2.17,<3.0.a0"] if subdir.startswith("linux") else []
    for days, version in ((0, "1.0"), (120, "1.1"), (700, "2.0"), (900, "2.1")):
        yield PackageSpec(
            "libalpha",
            version,
            subdir=subdir,
            depends=glibc,
            license="MIT",
            timestamp=release_timestamp(days),
            summary="library with a text and a binary placeholder",
            license_files={"LICENSE": _LICENSE_TEXT},
            files=[
                PackageFile.text(
                    "lib/pkgconfig/libalpha.pc",
                    f"prefix={PLACEHOLDER}\nlibdir=${{prefix}}/lib\nVersion: {version}\n",
                ),
                PackageFile(
                    "lib/libalpha.bin",
                    b"\x7fBIN\0" + f"{PLACEHOLDER}/share/libalpha".encode() + b"\0tail\0",
                    prefix_mode="binary",
                ),
                PackageFile.link("lib/libalpha.bin.current", "libalpha.bin"),
            ],
        )
    for days, version, needs in (
        (10, "1.0", ">=1.0,<2.0a0"),
        (130, "1.2", ">=1.1,<2.0a0"),
        (710, "2.0", ">=2.0,<3.0a0"),
    ):
        yield PackageSpec(
            "libbeta",
            version,
            subdir=subdir,
            depends=[f"libalpha {needs}"],
            license="BSD-3-Clause",
            timestamp=release_timestamp(days),
            summary="library that follows libalpha's generations",
        )
    for days, version, needs in ((20, "1.0", ">=1.0,<2.0a0"), (720, "2.0", ">=2.0,<3.0a0")):
        yield PackageSpec(
            "apptool",
            version,
            subdir=subdir,
            depends=[f"libbeta {needs}", "libalpha"],
            license="Apache-2.0",
            timestamp=release_timestamp(days),
            summary="program that prints the prefix it is installed in",
            files=_apptool_files(subdir, version),
        )
    yield PackageSpec(
        "legacy-app",
        "0.9",
        subdir=subdir,
        depends=["libalpha <2.0a0"],
        constrains=["libbeta <2.0a0"],
        license="MIT",
        timestamp=release_timestamp(30),
        summary="program that keeps the first generation of the stack",
    )
    for number, variant in enumerate(("generic", "tuned")):
        yield PackageSpec(
            "mathkernel",
            "3.1",
            build=f"{variant}_{number}",
            build_number=number,
            subdir=subdir,
            track_features="mathkernel_generic" if variant == "generic" else "",
            license="BSD-3-Clause",
            timestamp=release_timestamp(400),
            summary="one version in two builds; a solver prefers the one without a feature",
        )


def _apptool_files(subdir: str, version: str) -> list[PackageFile]:
    if subdir == "win-64":
        return [PackageFile.text("Scripts/apptool.bat", f"@echo {PLACEHOLDER} {version}\n")]
    files = [
        PackageFile.text(
            "bin/apptool-script",
            f'#!/bin/sh\necho "apptool {version} in {PLACEHOLDER}"\n',
            executable=True,
        )
    ]
    if subdir == "linux-64":
        program = program_printing(f"{PLACEHOLDER}/share/apptool")
        files.append(PackageFile("bin/apptool", program, mode=0o755, prefix_mode="binary"))
    return files


def _large_data(subdir: str) -> PackageSpec:
    """A few MiB that do not compress, to see progress, ranges and broken downloads."""
    state = 1
    blocks = bytearray()
    while len(blocks) < 2 * 1024 * 1024:
        state = state * 6364136223846793005 + 1442695040888963407 & (2**64 - 1)
        blocks += state.to_bytes(8, "little")
    return PackageSpec(
        "large-data",
        "1.0",
        subdir=subdir,
        license="CC0-1.0",
        timestamp=release_timestamp(40),
        summary="two MiB of data that do not compress",
        files=[PackageFile("share/large-data/blob.bin", bytes(blocks))],
    )


def _licenses() -> Iterator[PackageSpec]:
    """One package for each kind of license that a policy may tell apart."""
    for name, expression in (
        ("license-mit", "MIT"),
        ("license-bsd", "BSD-3-Clause"),
        ("license-gpl", "GPL-3.0-only"),
        ("license-agpl", "AGPL-3.0-or-later"),
        ("license-dual", "MIT OR GPL-2.0-or-later"),
        ("license-proprietary", "LicenseRef-Proprietary"),
        ("license-free-text", "see the vendor's agreement"),
        ("license-missing", None),
    ):
        yield PackageSpec(
            name,
            "1.0",
            noarch="generic",
            license=expression,
            timestamp=release_timestamp(50),
            summary=f"package under the license: {expression}",
            license_files={"LICENSE": _LICENSE_TEXT} if expression else {},
        )


def _policy_cases(now: datetime) -> Iterator[PackageSpec]:
    def stamp(moment: datetime) -> int:
        return int(moment.timestamp() * 1000)

    for version in ("1.0", "1.1", "1.2"):
        yield PackageSpec(
            "withdrawn",
            version,
            noarch="generic",
            license="MIT",
            timestamp=release_timestamp(60),
            summary="1.1 is revoked and 1.2 is removed by a patch of the channel",
        )
    for version, moment in (
        ("1.0", now - timedelta(days=400)),
        ("1.1", now - timedelta(days=20)),
        ("1.2", now - timedelta(hours=6)),
    ):
        yield PackageSpec(
            "fresh-release",
            version,
            noarch="generic",
            license="MIT",
            timestamp=stamp(moment),
            summary="versions that are 400 days, 20 days and 6 hours old",
        )
    yield PackageSpec(
        "undated",
        "1.0",
        noarch="generic",
        license="MIT",
        summary="package without a timestamp",
    )
    yield PackageSpec(
        "post-linked",
        "1.0",
        noarch="generic",
        license="MIT",
        timestamp=release_timestamp(70),
        summary="package that wants to run scripts when it is linked and unlinked",
        files=[
            PackageFile.text(
                "bin/.post-linked-post-link.sh",
                '#!/bin/sh\necho linked > "$PREFIX/post-link-ran"\n',
                executable=True,
            ),
            PackageFile.text(
                "bin/.post-linked-pre-unlink.sh",
                '#!/bin/sh\nrm -f "$PREFIX/post-link-ran"\n',
                executable=True,
            ),
        ],
    )
    yield PackageSpec(
        "activating",
        "1.0",
        noarch="generic",
        license="MIT",
        timestamp=release_timestamp(80),
        summary="package with activation scripts and environment variables",
        files=[
            PackageFile.text(
                "etc/conda/activate.d/activating.sh", "export ACTIVATING_SCRIPT=active\n"
            ),
            PackageFile.text("etc/conda/deactivate.d/activating.sh", "unset ACTIVATING_SCRIPT\n"),
            PackageFile.text(
                "etc/conda/env_vars.d/activating.json", '{"ACTIVATING_VARIABLE": "set"}\n'
            ),
        ],
    )


def _virtual_package_users() -> Iterator[PackageSpec]:
    for name, requirement in (
        ("needs-unix", "__unix"),
        ("needs-win", "__win"),
        ("needs-linux", "__linux"),
        ("needs-osx", "__osx >=11.0"),
        ("needs-glibc", "__glibc >=2.17,<3.0.a0"),
        ("needs-future-glibc", "__glibc >=99"),
        ("needs-cuda", "__cuda >=12.0"),
        ("needs-avx2", "__archspec * x86_64_v3"),
    ):
        yield PackageSpec(
            name,
            "1.0",
            noarch="generic",
            depends=[requirement],
            license="MIT",
            timestamp=release_timestamp(90),
            summary=f"package that depends on the virtual package {requirement}",
        )


def _metapackages() -> Iterator[PackageSpec]:
    for days, version, pins in (
        (100, "2023.1", ["apptool 1.*", "libbeta 1.*", "license-mit"]),
        (750, "2025.1", ["apptool 2.*", "libbeta 2.*", "license-mit", "license-bsd"]),
    ):
        yield PackageSpec(
            "demo-stack",
            version,
            noarch="generic",
            depends=pins,
            license="MIT",
            timestamp=release_timestamp(days),
            summary="metapackage without files",
        )
    yield PackageSpec(
        "alpha-guard",
        "1.0",
        noarch="generic",
        constrains=["libalpha <2.0a0"],
        license="MIT",
        timestamp=release_timestamp(110),
        summary="package that does not need libalpha but limits its version",
    )


def _unsatisfiable() -> Iterator[PackageSpec]:
    """``conflict-left`` and ``conflict-right`` exclude each other two levels down."""
    for side, needs in (("left", "libalpha 1.*"), ("right", "libalpha 2.*")):
        base = f"conflict-{side}-base"
        for name, requirement in ((base, needs), (f"conflict-{side}", f"{base} >=1.0")):
            yield PackageSpec(
                name,
                "1.0",
                noarch="generic",
                depends=[requirement],
                license="MIT",
                timestamp=release_timestamp(140),
                summary="one of two packages that exclude each other two levels down",
            )
    yield PackageSpec(
        "dangling",
        "1.0",
        noarch="generic",
        depends=["package-that-does-not-exist >=1"],
        license="MIT",
        timestamp=release_timestamp(150),
        summary="package whose dependency is in no channel",
    )


def _link_corner_cases() -> Iterator[PackageSpec]:
    for side in ("one", "two"):
        yield PackageSpec(
            f"clobber-{side}",
            "1.0",
            noarch="generic",
            license="MIT",
            timestamp=release_timestamp(160),
            summary="two packages that bring the same path with different content",
            files=[
                PackageFile.text("share/clobber/shared.txt", f"from clobber-{side}\n"),
                PackageFile.text(f"share/clobber/{side}.txt", f"{side}\n"),
            ],
        )
    yield PackageSpec(
        "odd-paths",
        "1.0",
        noarch="generic",
        license="MIT",
        timestamp=release_timestamp(170),
        summary="spaces, other alphabets, an empty file, links, modes and long names",
        files=[
            PackageFile.text("share/odd paths/with space.txt", "space\n"),
            PackageFile.text("share/odd paths/ünï-日本語.txt", "unicode\n"),
            PackageFile.text("share/odd paths/empty.txt", ""),
            PackageFile.text("share/odd paths/run.sh", "#!/bin/sh\nexit 0\n", executable=True),
            PackageFile("share/odd paths/read-only.txt", b"read only\n", mode=0o444),
            PackageFile.link("share/odd paths/link.txt", "with space.txt"),
            PackageFile.link("share/odd paths/dangling-link", "nowhere"),
            PackageFile.text(f"share/odd paths/{'long-' * 30}name.txt", "long\n"),
        ],
    )

    # Not every installer links an entry of type "directory": py-rattler 0.28 fails on it.
    yield PackageSpec(
        "empty-folder",
        "1.0",
        noarch="generic",
        license="MIT",
        timestamp=release_timestamp(175),
        summary="package that brings an empty folder",
        files=[PackageFile("share/empty-folder/empty", is_directory=True)],
    )


def _noarch_python() -> Iterator[PackageSpec]:
    for days, version in ((180, "1.0"), (380, "1.1"), (800, "2.0")):
        module = (
            f'"""A generated noarch package."""\n\n__version__ = "{version}"\n\n\n'
            "def main():\n"
            "    import sys\n\n"
            '    print(f"hello {__version__} from {sys.prefix}")\n'
        )
        metadata = f"Metadata-Version: 2.1\nName: hello-noarch\nVersion: {version}\n"
        dist_info = f"site-packages/hello_noarch-{version}.dist-info"
        yield PackageSpec(
            "hello-noarch",
            version,
            noarch="python",
            depends=["python >=3.9"],
            license="MIT",
            timestamp=release_timestamp(days),
            purls=[f"pkg:pypi/hello-noarch@{version}"],
            summary="noarch python package with an entry point and a script",
            entry_points=["hello-noarch = hello_noarch:main"],
            license_files={"LICENSE": _LICENSE_TEXT},
            files=[
                PackageFile.text("site-packages/hello_noarch/__init__.py", module),
                PackageFile.text(f"{dist_info}/METADATA", metadata),
                PackageFile.text(f"{dist_info}/INSTALLER", "conda\n"),
                PackageFile.text(
                    "python-scripts/hello-script",
                    f"#!{PLACEHOLDER}/bin/python\nimport hello_noarch\nhello_noarch.main()\n",
                    executable=True,
                ),
            ],
        )
    yield PackageSpec(
        "hello-plugin",
        "1.0",
        noarch="python",
        depends=["hello-noarch >=1.0,<2.0a0", "python >=3.10"],
        license="BSD-3-Clause",
        timestamp=release_timestamp(390),
        summary="noarch python package that does not work with hello-noarch 2",
        files=[PackageFile.text("site-packages/hello_plugin.py", "import hello_noarch\n")],
    )
    # Its project has another name than the package, as msgpack's (msgpack-python) does.
    yield PackageSpec(
        "python-tinyname",
        "1.0",
        noarch="python",
        depends=["python >=3.9"],
        license="MIT",
        timestamp=release_timestamp(395),
        purls=["pkg:pypi/tinyname@1.0"],
        summary="noarch python package whose name in the Python package index is tinyname",
        files=[
            PackageFile.text("site-packages/tinyname.py", '__version__ = "1.0"\n'),
            PackageFile.text(
                "site-packages/tinyname-1.0.dist-info/METADATA",
                "Metadata-Version: 2.1\nName: tinyname\nVersion: 1.0\n",
            ),
            PackageFile.text("site-packages/tinyname-1.0.dist-info/INSTALLER", "conda\n"),
        ],
    )


#: Enough of pip for `python -m pip --version` and `python -m pip install --no-deps WHEEL...`.
_PIP_MAIN = '''\
"""A stand-in for pip: installs pure wheels without their dependencies."""

import hashlib
import sys
import sysconfig
import urllib.parse
import urllib.request
import zipfile
from pathlib import Path

from pip import __version__


def install(arguments):
    wheels = []
    for argument in arguments:
        if argument in ("--no-deps", "--no-index", "--no-cache-dir"):
            continue
        if argument.startswith("-"):
            sys.exit(f"ERROR: this pip does not know {argument}")
        wheels.append(argument)
    for wheel in wheels:
        fetch_and_unpack(wheel.rpartition(" @ ")[2])


def fetch_and_unpack(wheel):
    url, _, fragment = wheel.partition("#")
    path = Path(url)
    if "://" in url:
        path = Path(sys.prefix, urllib.parse.unquote(url.rpartition("/")[2]))
        with urllib.request.urlopen(url) as answer:
            path.write_bytes(answer.read())
    algorithm, _, digest = fragment.partition("=")
    if digest and hashlib.new(algorithm, path.read_bytes()).hexdigest() != digest:
        sys.exit(f"ERROR: THESE PACKAGES DO NOT MATCH THE HASHES: {url}")
    with zipfile.ZipFile(path) as archive:
        archive.extractall(sysconfig.get_path("purelib"))
    if "://" in url:
        path.unlink()
    print(f"Successfully installed {path.name}")


if sys.argv[1:2] == ["install"]:
    install(sys.argv[2:])
elif sys.argv[1:] == ["--version"]:
    print(f"pip {__version__} from {Path(__file__).parent}")
else:
    sys.exit("ERROR: this pip only installs")
'''


def _pip() -> PackageSpec:
    """pip, which conda and mamba add beside Python: a small one that installs pure wheels."""
    return PackageSpec(
        "pip",
        "24.0",
        noarch="python",
        depends=["python >=3.9"],
        license="MIT",
        timestamp=release_timestamp(400),
        purls=["pkg:pypi/pip@24.0"],
        summary="stand-in for pip that installs pure wheels",
        files=[
            PackageFile.text("site-packages/pip/__init__.py", '__version__ = "24.0"\n'),
            PackageFile.text("site-packages/pip/__main__.py", _PIP_MAIN),
            PackageFile.text(
                "site-packages/pip-24.0.dist-info/METADATA",
                "Metadata-Version: 2.1\nName: pip\nVersion: 24.0\n",
            ),
            PackageFile.text("site-packages/pip-24.0.dist-info/INSTALLER", "conda\n"),
        ],
    )
