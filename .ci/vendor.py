"""Update the browser files of other projects in static/vendor, from their npm packages.

Usage: `vendor.py [--check]`. Each package is downloaded by `npm pack` in the version below; its
files and its license are copied, and their digests are written to static/vendor/files.json.
CodeMirror is bundled by esbuild from .ci/codemirror, whose lock file names all its packages.
With `--check` nothing is downloaded: the files must have the recorded digests.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

FOLDER = Path(__file__).resolve().parent.parent / "static" / "vendor"
DIGESTS = FOLDER / "files.json"
LICENSES = FOLDER / "LICENSES.txt"

#: npm package and version: file in the package -> name in static/vendor.
PACKAGES: dict[str, dict[str, str]] = {
    "basecoat-css@1.0.2": {"dist/basecoat-base.cdn.min.css": "basecoat-base.min.css"},
    "htmx.org@4.0.1": {"dist/htmx.min.js": "htmx.min.js"},
    "@fontsource-variable/geist@5.3.0": {
        "files/geist-latin-wght-normal.woff2": "geist-latin-wght-normal.woff2",
        "files/geist-latin-ext-wght-normal.woff2": "geist-latin-ext-wght-normal.woff2",
    },
    "@fontsource-variable/geist-mono@5.3.0": {
        "files/geist-mono-latin-wght-normal.woff2": "geist-mono-latin-wght-normal.woff2",
        "files/geist-mono-latin-ext-wght-normal.woff2": "geist-mono-latin-ext-wght-normal.woff2",
    },
}
#: Source and lock file of the bundle, and its name in static/vendor.
CODEMIRROR = Path(__file__).resolve().parent / "codemirror"
BUNDLE = "codemirror.min.js"
LICENSE_NAMES = ("LICENSE", "LICENSE.md", "LICENSE.txt", "license")


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def faults() -> list[str]:
    """Return what differs between static/vendor and its recorded digests."""
    recorded: dict[str, str] = json.loads(DIGESTS.read_text())
    present = {path.name: digest(path) for path in FOLDER.iterdir() if path != DIGESTS}
    return [
        *(f"{name} is missing" for name in sorted(recorded.keys() - present.keys())),
        *(f"{name} is not recorded" for name in sorted(present.keys() - recorded.keys())),
        *(
            f"{name} was changed"
            for name in sorted(recorded.keys() & present.keys())
            if recorded[name] != present[name]
        ),
    ]


def update() -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    texts: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        for package, files in PACKAGES.items():
            command = ["npm", "pack", "--silent", "--pack-destination", folder, package]
            name = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            unpacked = Path(folder) / name.strip().removesuffix(".tgz")
            with tarfile.open(Path(folder) / name.strip()) as archive:
                archive.extractall(unpacked, filter="data")
            for source, target in files.items():
                shutil.copyfile(unpacked / "package" / source, FOLDER / target)
            found = next(
                unpacked / "package" / one
                for one in LICENSE_NAMES
                if (unpacked / "package" / one).exists()
            )
            texts.append(f"=== {package}: {', '.join(files.values())}\n\n{found.read_text()}")
        texts += bundle(Path(folder) / "codemirror")
    LICENSES.write_text("\n".join(texts))
    recorded = {path.name: digest(path) for path in sorted(FOLDER.iterdir()) if path != DIGESTS}
    DIGESTS.write_text(json.dumps(recorded, indent=2) + "\n")


def bundle(folder: Path) -> list[str]:
    """Bundle CodeMirror in `folder`; return the licenses of the packages in the bundle."""
    shutil.copytree(CODEMIRROR, folder, ignore=shutil.ignore_patterns("node_modules"))
    subprocess.run(["npm", "ci", "--silent", "--no-audit", "--no-fund"], cwd=folder, check=True)
    command = ["node_modules/.bin/esbuild", "entry.js", "--bundle", "--minify", "--format=iife"]
    options = [f"--outfile={FOLDER / BUNDLE}", "--metafile=meta.json", "--log-level=warning"]
    subprocess.run(
        [*command, "--target=es2022", "--legal-comments=none", *options], cwd=folder, check=True
    )
    inputs = json.loads((folder / "meta.json").read_text())["inputs"]
    parts = [
        name.rpartition("node_modules/")[2].split("/") for name in inputs if "node_modules/" in name
    ]
    names = sorted({"/".join(part[: 1 + part[0].startswith("@")]) for part in parts})
    texts = []
    for name in names:
        package = folder / "node_modules" / name
        version = json.loads((package / "package.json").read_text())["version"]
        found = next(package / one for one in LICENSE_NAMES if (package / one).exists())
        texts.append(f"=== {name}@{version}: {BUNDLE}\n\n{found.read_text()}")
    return texts


def main(arguments: list[str]) -> int:
    if arguments != ["--check"]:
        update()
    found = faults()
    for fault in found:
        print(f"static/vendor: {fault}", file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
