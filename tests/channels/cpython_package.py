"""Make the conda package ``python`` out of a CPython that is installed or unpacked anywhere.

The source may be any CPython 3.11+ on Linux: built from source, from a version manager, the one
of a container image, or a Linux distribution's own, whose changes to the search path (Debian's
``dist-packages``) are undone so that packages land in ``site-packages``.

The result is relocated for real: the executable's run path holds the placeholder (binary
replacement), and the build configuration and scripts hold it as text.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from importlib.util import MAGIC_NUMBER
from pathlib import Path

from . import patchelf
from .conda_package import PLACEHOLDER, PackageFile, PackageSpec, PrefixMode

_QUERY = """
import json, os, sys, sysconfig
print(json.dumps({
    "version": ".".join(map(str, sys.version_info[:3])),
    "short": "%d.%d" % sys.version_info[:2],
    "prefix": sys.base_prefix,
    "executable": os.path.realpath(getattr(sys, "_base_executable", sys.executable)),
    "stdlib": os.path.dirname(os.__file__),
    "shared_library": sysconfig.get_config_var("INSTSONAME") or "",
    "libdir": sysconfig.get_config_var("LIBDIR") or "",
    "enable_shared": bool(sysconfig.get_config_var("Py_ENABLE_SHARED")),
}))
"""

# Tests, graphical parts and what belongs to the machine rather than to the library.
_LEFT_OUT = {
    "EXTERNALLY-MANAGED",
    "_distutils_system_mod.py",
    "__pycache__",
    "dist-packages",
    "idlelib",
    "site-packages",
    "sitecustomize.py",
    "test",
    "tests",
    "tkinter",
    "turtle.py",
    "turtledemo",
}
_LEFT_OUT_WHEN_SLIM = {"_bundled", "lib2to3", "msilib", "pydoc_data"}

# Debian's ``site`` module looks in ``dist-packages`` only, and it is frozen into the executable:
# changing site.py would do nothing. ``sitecustomize`` is the hook that is left.
_SITECUSTOMIZE = '''"""Use the standard site-packages folder, as any interpreter does by default."""

import os
import site
import sys


def getsitepackages(prefixes=None):
    version = "python%d.%d" % sys.version_info[:2]
    return [
        os.path.join(prefix, "lib", version, "site-packages")
        for prefix in dict.fromkeys(site.PREFIXES if prefixes is None else prefixes)
    ]


site.getsitepackages = getsitepackages
for _folder in getsitepackages():
    if _folder not in sys.path:
        site.addsitedir(_folder)
'''


@dataclass(frozen=True, slots=True)
class InstalledCPython:
    """Where the parts of an interpreter are."""

    version: str
    short: str
    prefix: str
    executable: Path
    stdlib: Path
    shared_library: Path | None

    @property
    def tag(self) -> str:
        return "cp" + self.short.replace(".", "")

    @property
    def is_patched_by_distribution(self) -> bool:
        return "dist-packages" in (self.stdlib / "site.py").read_text()


def inspect_interpreter(executable: Path) -> InstalledCPython:
    """Ask an interpreter where its parts are; a virtual environment leads to its base."""
    run = subprocess.run(
        [str(executable), "-I", "-c", _QUERY], check=True, capture_output=True, text=True
    )
    answer = json.loads(run.stdout)
    library = None
    if answer["enable_shared"]:
        candidate = Path(answer["libdir"]) / answer["shared_library"]
        beside = Path(answer["prefix"]) / "lib" / answer["shared_library"]
        library = next((path for path in (candidate, beside) if path.is_file()), None)
    found = InstalledCPython(
        version=answer["version"],
        short=answer["short"],
        prefix=answer["prefix"],
        executable=Path(answer["executable"]),
        stdlib=Path(answer["stdlib"]),
        shared_library=library,
    )
    # Some distributions say "shared" although their executable holds the whole interpreter.
    if library is None or patchelf.find_patchelf() is None:
        return found
    if library.name in patchelf.needed_sonames(found.executable):
        return found
    return replace(found, shared_library=None)


def python_packages(
    source: InstalledCPython,
    *,
    subdir: str = "linux-64",
    timestamp: int | None = None,
    libraries: Mapping[str, str] | None = None,
    slim: bool = False,
) -> list[PackageSpec]:
    """The packages ``python`` and ``python_abi`` for ``source``.

    ``libraries`` maps the sonames the channel provides to the requirement on the package that
    holds them. When given, extension modules that need any other library are left out; without
    it, the libraries are those of the machine.
    """
    with tempfile.TemporaryDirectory() as scratch:
        builder = _PythonBuilder(source, Path(scratch), libraries, slim)
        files = builder.files()
    abi = f"*_{source.tag}"
    python = PackageSpec(
        "python",
        source.version,
        subdir=subdir,
        build=f"h{source.tag}0_0_cpython",
        depends=[*sorted(builder.requirements), "__glibc >=2.17,<3.0.a0"],
        constrains=[f"python_abi {source.short}.* {abi}"],
        license="Python-2.0",
        timestamp=timestamp,
        purls=[f"pkg:generic/python@{source.version}"],
        summary="General purpose programming language",
        home="https://www.python.org/",
        license_files={"LICENSE": builder.license()},
        files=files,
        extra_index={"python_site_packages_path": f"lib/python{source.short}/site-packages"},
    )
    return [python, python_abi_package(source.short, timestamp)]


def python_abi_package(short: str, timestamp: int | None = None) -> PackageSpec:
    """The metapackage that ties compiled packages to one minor version of CPython."""
    tag = "cp" + short.replace(".", "")
    return PackageSpec(
        "python_abi",
        short,
        build=f"8_{tag}",
        build_number=8,
        noarch="generic",
        constrains=[f"python {short}.* *_cpython"],
        license="BSD-3-Clause",
        timestamp=timestamp,
        summary="metapackage to select a Python ABI",
    )


class _PythonBuilder:
    def __init__(
        self,
        source: InstalledCPython,
        scratch: Path,
        libraries: Mapping[str, str] | None,
        slim: bool,
    ) -> None:
        self.source = source
        self.scratch = scratch
        self.libraries = libraries
        self.left_out = _LEFT_OUT | (_LEFT_OUT_WHEN_SLIM if slim else set())
        self.requirements: set[str] = set()
        self.library_folder = f"lib/python{source.short}"
        self.patchelf = patchelf.find_patchelf()
        self.normalise = source.is_patched_by_distribution

    def files(self) -> list[PackageFile]:
        return [*self._executables(), *self._shared_library(), *self._standard_library()]

    def license(self) -> bytes:
        path = self.source.stdlib / "LICENSE.txt"
        return path.read_bytes() if path.exists() else b"Python Software Foundation License\n"

    def _executables(self) -> Iterator[PackageFile]:
        name = f"python{self.source.short}"
        copy = self._copy(self.source.executable)
        prefix_mode: PrefixMode | None = None
        if self.patchelf:
            self._require_libraries(copy)
            # The relative part comes first because conda-pack never rewrites the interpreter:
            # a moved environment must find libpython without the absolute part.
            patchelf.set_rpath(copy, f"$ORIGIN/../lib:{PLACEHOLDER}/lib")
            prefix_mode = "binary"
        elif self.source.shared_library:
            raise patchelf.PatchelfMissingError
        yield PackageFile(f"bin/{name}", copy.read_bytes(), 0o755, prefix_mode=prefix_mode)
        yield PackageFile.link("bin/python3", name)
        yield PackageFile.link("bin/python", name)
        yield PackageFile.text(
            f"bin/pydoc{self.source.short}",
            f"#!{PLACEHOLDER}/bin/{name}\nimport pydoc\npydoc.cli()\n",
            executable=True,
        )

    def _shared_library(self) -> Iterator[PackageFile]:
        library = self.source.shared_library
        if library is None:
            return
        copy = self._copy(library)
        patchelf.strip_debug(copy)
        self._require_libraries(copy)
        patchelf.set_rpath(copy, "$ORIGIN")
        yield PackageFile(f"lib/{library.name}", copy.read_bytes(), 0o755)
        yield PackageFile.link(f"lib/libpython{self.source.short}.so", library.name)

    def _standard_library(self) -> Iterator[PackageFile]:
        yield PackageFile.text(f"{self.library_folder}/site-packages/README.txt", "")
        if self.normalise:
            yield PackageFile.text(f"{self.library_folder}/sitecustomize.py", _SITECUSTOMIZE)
        for path in self._walk(self.source.stdlib):
            relative = path.relative_to(self.source.stdlib).as_posix()
            target = f"{self.library_folder}/{relative}"
            if path.suffix == ".so":
                yield from self._extension_module(path, target)
                continue
            content = path.read_bytes()
            changed = self._normalised(relative, content)
            if relative.startswith("_sysconfigdata"):
                changed = self._with_placeholder(changed)
            relocatable = PLACEHOLDER.encode() in changed
            mode: PrefixMode | None = "text" if relocatable else None
            yield PackageFile(target, changed, path.stat().st_mode & 0o755, prefix_mode=mode)
            # A file that is relocated changes, so bytecode of its source would be out of date.
            if path.suffix == ".py" and changed == content:
                yield from self._bytecode(path, relative)

    def _walk(self, folder: Path) -> Iterator[Path]:
        for path in sorted(folder.iterdir()):
            if path.name in self.left_out or path.name.startswith("config-"):
                continue
            if path.is_dir():
                yield from self._walk(path)
            elif path.is_file():
                yield path

    def _extension_module(self, path: Path, target: str) -> Iterator[PackageFile]:
        copy = self._copy(path)
        if self.patchelf:
            if not self._require_libraries(copy):
                return
            patchelf.set_rpath(copy, "$ORIGIN/../..")
        yield PackageFile(target, copy.read_bytes(), 0o755)

    def _require_libraries(self, path: Path) -> bool:
        """Record the packages whose libraries ``path`` needs; False when one has none."""
        if self.libraries is None:
            return True
        needed = patchelf.needed_sonames(path)
        if self.source.shared_library:
            needed.discard(self.source.shared_library.name)
        if not needed <= self.libraries.keys():
            return False
        self.requirements |= {self.libraries[soname] for soname in needed}
        return True

    def _bytecode(self, path: Path, relative: str) -> Iterator[PackageFile]:
        """Existing bytecode, its header changed so that it does not depend on a file's date."""
        tag = f"cpython-{self.source.short.replace('.', '')}"
        cached = path.parent / "__pycache__" / f"{path.stem}.{tag}.pyc"
        if not cached.is_file():
            return
        content = cached.read_bytes()
        unchecked_hash = (1).to_bytes(4, "little") + bytes(8)
        folder = Path(relative).parent / "__pycache__"
        yield PackageFile(
            f"{self.library_folder}/{folder.as_posix()}/{cached.name}".replace("/./", "/"),
            content[: len(MAGIC_NUMBER)] + unchecked_hash + content[16:],
        )

    def _normalised(self, relative: str, content: bytes) -> bytes:
        if not self.normalise:
            return content
        if relative == "sysconfig.py":
            text = content.decode()
            text = text.replace("{base}/local/", "{base}/").replace(
                "{platbase}/local/", "{platbase}/"
            )
            text = text.replace("python3/dist-packages", "python{py_version_short}/site-packages")
            return text.replace("dist-packages", "site-packages").encode()
        return content

    def _with_placeholder(self, content: bytes) -> bytes:
        prefix = re.escape(self.source.prefix if not self.normalise else "/usr")
        pattern = re.compile(rb"(?<![\w/.-])" + prefix.encode() + rb"(?=[/'\" ])")
        return pattern.sub(PLACEHOLDER.encode(), content)

    def _copy(self, path: Path) -> Path:
        copy = self.scratch / path.name
        shutil.copyfile(path, copy)
        copy.chmod(0o755)
        return copy


def with_bytecode(source: InstalledCPython, scratch: Path) -> InstalledCPython:
    """A copy of ``source``'s standard library with its bytecode, where it has none.

    Running an interpreter leaves the bytecode of a few modules; a whole library has hundreds.
    """
    modules = len(list(source.stdlib.glob("*.py")))
    if len(list(source.stdlib.glob("__pycache__/*.pyc"))) >= modules // 2:
        return source
    stdlib = scratch / source.stdlib.name
    shutil.copytree(source.stdlib, stdlib, ignore=shutil.ignore_patterns(*_LEFT_OUT))
    subprocess.run(
        [str(source.executable), "-I", "-m", "compileall", "-q", "-j", "0", str(stdlib)],
        check=False,
        capture_output=True,
    )
    return replace(source, stdlib=stdlib)
