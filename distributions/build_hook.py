"""Hatch build hook that divides the repository into wheels: `condastore`, `condastore-server`.

`CLIENT` lists what the client's wheel holds of the package `condastore`; every other file of that
package, `accounts`, `environments`, the templates and the static files go into the server's wheel.
No file is in both. The node agent (`condastore.agent`) uses parts of `environments.domain` and
`environments.engine`; the client's wheel holds a copy of exactly those modules below
`condastore.agent._bundled`, with the names of imported modules rewritten (see
docs/decisions/0008-two-distributions.md).
"""

from __future__ import annotations

import ast
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

#: Files and folders of the client, from the root of the repository.
CLIENT = (
    "condastore/__init__.py",
    "condastore/errors.py",
    "condastore/terminal.py",
    "condastore/cli",
    "condastore/agent",
)
SERVER_PACKAGES = ("condastore", "accounts", "environments")
#: Data of the server, and where it is installed.
SERVER_DATA = {"templates": "condastore/templates", "static": "condastore/static"}

#: Packages of which the agent's wheel holds a copy, and the name that the copy has.
BUNDLED = ("environments.domain", "environments.engine")
BUNDLE = "condastore.agent._bundled"
_BUNDLED_NAME = re.compile(r"\benvironments\.(domain|engine)\b")
_IMPORT_IN_TEXT = re.compile(r"\bfrom (environments\.[\w.]+) import\b")


class DistributionHook(BuildHookInterface[Any]):
    """Add the files of one of the two distributions to its wheel."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Name the files of the wheel; an editable installation uses the repository itself."""
        if self.target_name != "wheel" or version == "editable":
            return
        repository = Path(__file__).resolve().parents[1]
        if self.metadata.core.name == "condastore-server":
            files = server_files(repository)
        else:
            self._folder = tempfile.TemporaryDirectory(prefix="condastore-build-")
            files = client_files(repository, rewritten=Path(self._folder.name))
        build_data["force_include"].update({str(at): name for name, at in files.items()})

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Remove the rewritten modules."""
        if hasattr(self, "_folder"):
            self._folder.cleanup()


def server_files(repository: Path) -> dict[str, Path]:
    """Return the files of the server's wheel, by their names in the wheel."""
    client = set(_files_of_client(repository))
    files = {
        name: path
        for package in SERVER_PACKAGES
        for name, path in _files_below(repository, package)
        if name not in client
    }
    for folder, target in SERVER_DATA.items():
        for name, path in _files_below(repository, folder):
            files[target + name.removeprefix(folder)] = path
    return files


def client_files(repository: Path, *, rewritten: Path) -> dict[str, Path]:
    """Return the files of the client's wheel, by their names in the wheel.

    Args:
        rewritten: An empty folder for the modules whose imports are rewritten.

    Raises:
        ValueError: a module of the client imports one that is not part of the client.
    """
    files = _files_of_client(repository)
    bundled: dict[str, Path] = {}
    waiting = [_module_of(name) for name in files if name.endswith(".py")]
    while waiting:
        module = waiting.pop()
        for imported, path in _imported_modules(repository, module):
            name = str(path.relative_to(repository))
            if name in files or imported in bundled:
                continue
            if not _is_bundled(imported):
                raise ValueError(f"{module} is of the client and imports {imported}, which is not.")
            bundled[imported] = path
            waiting.append(imported)
    for module, path in bundled.items():
        package, _, rest = module.partition(".")
        assert package == "environments"
        target = Path(*BUNDLE.split("."), *rest.split("."))
        target = target / "__init__.py" if path.name == "__init__.py" else target.with_suffix(".py")
        files[str(target)] = path
    if bundled:
        files[str(Path(*BUNDLE.split("."), "__init__.py"))] = _write(
            rewritten / "bundle.py", '"""Copies of the modules that the node agent uses."""\n'
        )
    for number, (name, path) in enumerate(sorted(files.items())):
        if name.startswith("condastore/agent/") and path.suffix == ".py":
            text = path.read_text(encoding="utf-8")
            changed = _BUNDLED_NAME.sub(rf"{BUNDLE}.\1", text)
            if changed != text:
                files[name] = _write(rewritten / f"{number}.py", changed)
    return files


def _files_of_client(repository: Path) -> dict[str, Path]:
    return {name: path for top in CLIENT for name, path in _files_below(repository, top)}


#: Suffixes of the files of a package; others, such as drafts and keys, are not shipped.
PACKAGED = frozenset(
    {".css", ".html", ".js", ".json", ".map", ".md", ".png", ".py", ".sh", ".svg", ".toml"}
    | {".txt", ".typed", ".webp", ".woff2"}
)


def _files_below(repository: Path, top: str) -> Iterator[tuple[str, Path]]:
    """Yield (name from the root of the repository, path) of a file, or of all files of a folder."""
    start = repository / top
    if not start.exists():
        raise ValueError(f"{top} is missing in {repository}.")
    for path in [start] if start.is_file() else sorted(start.rglob("*")):
        wanted = path == start or path.suffix in PACKAGED
        if wanted and path.is_file() and not path.is_symlink():
            yield str(path.relative_to(repository)), path


def _module_of(name: str) -> str:
    return name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def _imported_modules(repository: Path, module: str) -> Iterator[tuple[str, Path]]:
    """Yield our modules that a module imports anywhere in its text, with the packages they are in.

    Programs for other processes, which are strings, count too. Imports by `importlib` do not: the
    command line reaches the server's modules by them.
    """
    path = _path_of(repository, module)
    assert path is not None
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            names = _IMPORT_IN_TEXT.findall(node.value)  # a program for another process
        else:
            continue
        for name in names:
            parts = name.split(".")
            if parts[0] not in SERVER_PACKAGES:
                continue
            for length in range(1, len(parts) + 1):
                imported = ".".join(parts[:length])
                if imported == "environments":
                    continue  # the bundle has a package of its own in its place
                if found := _path_of(repository, imported):
                    yield imported, found


def _path_of(repository: Path, module: str) -> Path | None:
    base = repository.joinpath(*module.split("."))
    for path in (base / "__init__.py", base.with_name(f"{base.name}.py")):
        if path.is_file():
            return path
    return None


def _is_bundled(module: str) -> bool:
    return any(module == package or module.startswith(f"{package}.") for package in BUNDLED)


def _write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path
