"""One resolution of PyPI requirements with uv, in a confined process."""

from __future__ import annotations

import json
import os
import re
import sys
import time
import tomllib
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from email.parser import HeaderParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from packaging.requirements import InvalidRequirement, Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

from condastore.errors import (
    ChannelUnavailableError,
    PypiError,
    StoreError,
    TimeLimitError,
)
from environments.domain.names import Credential, printable, without_credentials
from environments.domain.pip_requirements import PipOptions
from environments.domain.progress import Cancelled
from environments.domain.records import PypiPackage
from environments.domain.urls import canonical_or_same
from environments.engine.channels.credentials import (
    CredentialSource,
    redact,
    request_url,
)
from environments.engine.network import forward_proxy
from environments.engine.network.addresses import guard
from environments.engine.pypi.conda_distributions import Provided
from environments.engine.pypi.direct_wheels import DirectWheel
from environments.engine.pypi.targets import Target
from environments.engine.system.confinement import child_environment
from environments.engine.system.processes import Confinement, run_tool

_NO_EXTRA = re.compile(r"`(?P<name>[\w.-]+) @ \S+` does not have an extra named")
#: Minimum time of uv, even if reading conda packages took all of the time.
_MIN_UV_SECONDS = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class UvRun:
    """One resolution with uv, in its own temporary folder."""

    uv: str  # the program
    uv_cache: Path
    usual_indexes: Sequence[str]  # of the installation
    credentials: CredentialSource
    requirements: Sequence[Requirement]
    platform: str
    provided: Mapping[str, Provided]
    metadata: Mapping[str, bytes]
    target: Target
    options: PipOptions
    direct: Mapping[str, DirectWheel]
    exclude_newer: datetime | None
    exclude_newer_of: Mapping[str, datetime | None]
    constraints: Sequence[str]

    def resolve(
        self, folder: Path, *, cancelled: Cancelled, deadline: float
    ) -> tuple[tuple[PypiPackage, ...], set[str]]:
        """Return the wheels, and the conda distributions whose extras uv did not find."""
        environment, credentials = self._write_settings(folder)
        named = dict(self._write_direct(folder))
        lines_in = [self._line(requirement, named) for requirement in self.requirements]
        (folder / "requirements.in").write_text("\n".join(lines_in))
        fixed = (*self._write_stand_ins(folder), *self.constraints)
        (folder / "constraints.txt").write_text("\n".join(fixed))
        lines: list[str] = []
        self.uv_cache.mkdir(parents=True, exist_ok=True)
        confinement = Confinement(
            readable=[guard().path(url) for url in self._indexes if url.startswith("file:")],
            writable=[folder, self.uv_cache],
            connect=[forward_proxy.access_for(guard()).port],
        )

        def run(*arguments: str) -> None:
            lines.clear()
            left = timedelta(seconds=max(deadline - time.monotonic(), _MIN_UV_SECONDS))
            result = run_tool(
                [
                    *(self.uv, "pip", "compile", "requirements.in"),
                    *("--constraint", "constraints.txt", "--config-file", "uv.toml"),
                    *("--python", sys.executable, "--python-version", self.target.python),
                    *("--python-platform", self.target.uv_platform),
                    *("--no-header", "--color", "never", "--no-progress"),
                    *("--only-binary", ":all:"),  # reading a source distribution runs its code
                    *(("--prerelease", "allow") if self.options.prereleases else ()),
                    *self._cutoff(),
                    *arguments,
                ],
                cwd=folder,
                env=environment,
                time_limit=left,
                cancelled=cancelled,
                on_line=lines.append,
                confinement=confinement,
            )
            if result.timed_out:
                raise TimeLimitError("The PyPI part was not resolved within the time limit.")
            result.require_not_killed("uv")
            if not result.succeeded:
                raise self._error(redact("\n".join(lines), credentials), folder)

        run("--format", "pylock.toml", "--output-file", "pylock.toml")
        missing: set[str] = {
            canonicalize_name(match["name"]) for line in lines for match in _NO_EXTRA.finditer(line)
        }
        # pylock.toml has the wheels; only this format has the dependencies between them.
        run("--annotation-style", "line", "--output-file", "requirements.txt")
        content = tomllib.loads((folder / "pylock.toml").read_text())
        needed = self._needed((folder / "requirements.txt").read_text())
        packages = [
            self._package(entry, needed)
            for entry in content.get("packages", ())
            if canonicalize_name(entry["name"]) not in self.provided
        ]
        return tuple(sorted(packages, key=lambda package: package.name)), missing

    def _write_settings(self, folder: Path) -> tuple[dict[str, str], list[Credential | None]]:
        """Write uv's settings to a file; secrets go to the environment, not to a command line."""
        environment = child_environment(forward_proxy.access_for(guard()).environment())
        environment |= {
            "HOME": os.fspath(folder),
            "TMPDIR": os.fspath(folder),
            "UV_CACHE_DIR": os.fspath(self.uv_cache),
            "UV_PYTHON_DOWNLOADS": "never",
            "UV_HTTP_RETRIES": "1",  # the job retries, and can be cancelled in between
        }
        if self.target.macos:
            environment["MACOSX_DEPLOYMENT_TARGET"] = self.target.macos
        credentials: list[Credential | None] = []
        sections = []
        indexes, pages = self._indexes, self.options.find_links
        for number, url in enumerate((*indexes, *pages)):
            credential = self.credentials(url)
            credentials.append(credential)
            if credential is not None and credential.kind == "basic":
                user, _, password = credential.secret.partition(":")
                environment[f"UV_INDEX_I{number}_USERNAME"] = user
                environment[f"UV_INDEX_I{number}_PASSWORD"] = password
            kind = "default = true\n" if number == len(indexes) - 1 else ""
            kind = 'format = "flat"\n' if number >= len(indexes) else kind
            sections.append(
                f'[[index]]\nname = "i{number}"\nurl = {json.dumps(request_url(credential, url))}\n'
                f"{kind}"
            )
        text = "\n".join(sections)
        if not indexes:  # without this, uv would use pypi.org
            urls = [request_url(self.credentials(url), url) for url in pages]
            text = f"no-index = true\nfind-links = {json.dumps(urls)}\n"
        (folder / "uv.toml").write_text(text)
        return environment, credentials

    @property
    def _indexes(self) -> tuple[str, ...]:
        """Simple indexes in the order of priority; the first that has a project is used."""
        usual = (self.options.index,) if self.options.index else self.usual_indexes
        return tuple(dict.fromkeys((*self.options.extra_indexes, *usual)))

    def _line(self, requirement: Requirement, named: Mapping[str, str]) -> str:
        """Return a requirement for uv, which never sees a URL of a pip part."""
        location = named.get(canonicalize_name(requirement.name))
        if not requirement.url or location is None:
            return str(requirement)
        extras = f"[{','.join(sorted(requirement.extras))}]" if requirement.extras else ""
        return f"{requirement.name}{extras} @ {location}"

    def _write_direct(self, folder: Path) -> Iterator[tuple[str, str]]:
        """Yield (name, URL) of a placeholder for each direct wheel: empty, with its METADATA.

        Its dependencies are resolved with all others. A dependency that names its own source must
        be a direct reference of the specification: only those were checked.
        """
        below = folder / "direct"
        below.mkdir()
        for name, wheel in self.direct.items():
            stem = wheel.package.file_name.split("-")[0]
            version = Version(wheel.package.version)
            path = below / f"{stem}-{version}-py3-none-any.whl"
            _write_empty_wheel(path, stem, version, self._direct_metadata(wheel))
            yield name, path.as_uri()

    def _direct_metadata(self, wheel: DirectWheel) -> str:
        """Return the metadata fields that uv needs, one line each."""
        headers = HeaderParser().parsestr(wheel.metadata.decode(errors="replace"))
        lines = ["Metadata-Version: 2.1"]
        for field in ("Name", "Version", "Requires-Python", "Provides-Extra"):
            lines += [f"{field}: {_unfolded(value)}" for value in headers.get_all(field, [])]
        for value in headers.get_all("Requires-Dist", []):
            lines.append(f"Requires-Dist: {self._without_source(wheel.package, _unfolded(value))}")
        return "\n".join(lines) + "\n"

    def _without_source(self, package: PypiPackage, text: str) -> str:
        """Return a dependency of a direct wheel without its source, if a line names the source."""
        try:
            need = Requirement(text)
        except (InvalidRequirement, RecursionError) as error:
            raise PypiError(
                f"{package.name} {package.version} depends on {printable(text)}, which is not a "
                "valid requirement.",
                where="dependencies.pip",
                hint="Use another version, or report it to the project.",
            ) from error
        if not need.url:
            return text
        need_url, need.url = need.url, None
        if canonicalize_name(need.name) in self.direct:
            return str(need)
        if need.marker is not None and "extra" in str(need.marker):
            # No index may replace the source if the extra is requested.
            need.specifier = SpecifierSet("<0")
            return str(need)
        raise PypiError(
            f"{package.name} {package.version} depends on {need.name} from "
            f"{without_credentials(need_url)}, which the specification does not name.",
            where="dependencies.pip",
            hint=f"Add a line for {need.name} under pip: a wheel by its URL with #sha256=..., or "
            "a Git URL with a full commit.",
        )

    def _write_stand_ins(self, folder: Path) -> Iterator[str]:
        """Yield a constraint for each distribution of conda packages: exactly that version.

        An empty wheel represents it, without dependencies, since conda installs those. Only if
        extras are requested, it lists what the extras depend on.
        """
        for item in self.provided.values():
            stem = re.sub(r"[-_.]+", "_", item.name)
            version = Version(item.version)
            path = folder / f"{stem}-{version}-py3-none-any.whl"
            _write_empty_wheel(path, stem, version, self._stand_in_metadata(item))
            yield f"{item.name} @ {path.as_uri()}"

    def _stand_in_metadata(self, item: Provided) -> str:
        lines = ["Metadata-Version: 2.1", f"Name: {item.name}", f"Version: {item.version}"]
        for line in self.metadata.get(item.name, b"").decode(errors="replace").splitlines():
            if not line:
                break
            of_extra = line.startswith("Requires-Dist:") and re.search(r"\bextra\s*==", line)
            if line.startswith("Provides-Extra:") or of_extra:
                lines.append(line)
        return "\n".join(lines) + "\n"

    def _cutoff(self) -> list[str]:
        if self.exclude_newer is None:
            return []
        options = ["--exclude-newer", self.exclude_newer.astimezone(UTC).isoformat()]
        for name, moment in self.exclude_newer_of.items():
            limit = "false" if moment is None else moment.astimezone(UTC).isoformat()
            options += ["--exclude-newer-package", f"{name}={limit}"]
        return options

    def _needed(self, requirements: str) -> dict[str, set[str]]:
        """Return name -> names of its dependencies, from `plain==1.0  # via app, other`."""
        needed: dict[str, set[str]] = {}
        for line in requirements.splitlines():
            requirement, _, via = line.partition("# via ")
            name = re.match(r"[\w.-]+", requirement)
            if name is None:
                continue
            held = self.provided.get(canonicalize_name(name[0]))
            target = held.package.name if held else canonicalize_name(name[0])
            for asker in via.split(","):
                asker = asker.strip()
                if asker and not asker.startswith("-"):
                    needed.setdefault(canonicalize_name(asker), set()).add(target)
        return needed

    def _package(self, entry: Mapping[str, Any], needed: Mapping[str, set[str]]) -> PypiPackage:
        name = canonicalize_name(entry["name"])
        if name in self.direct:
            return replace(self.direct[name].package, requires=tuple(sorted(needed.get(name, ()))))
        file = self._file(name, entry)
        url = canonical_or_same(without_credentials(file["url"]))
        return PypiPackage(
            name=name,
            version=str(entry.get("version", "")),
            file_name=_file_name(url),
            url=url,
            sha256=file["hashes"]["sha256"],
            size=int(file.get("size", 0)),
            requires=tuple(sorted(needed.get(name, ()))),
            requires_python=str(entry.get("requires-python", "")),
            license="",
            uploaded=_moment(file.get("upload-time")),
        )

    def _file(self, name: str, entry: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the best compatible wheel; it must have a sha256 and an HTTP URL."""
        files = [file for file in entry.get("wheels", ()) if _is_taken(file)]
        hashes = self.options.hashes.get(name)
        if hashes:
            files = [file for file in files if file["hashes"]["sha256"] in hashes]
        ranked = [
            (rank, file)
            for file in files
            if (rank := self.target.rank(_file_name(file["url"]))) is not None
        ]
        if ranked:
            return min(ranked, key=lambda pair: pair[0])[1]  # type: ignore[no-any-return]
        if hashes:
            raise PypiError(
                f"On {self.platform}: no wheel of {name} {entry.get('version', '')} for "
                f"{self.target.uv_platform} has a hash that the specification names.",
                where="dependencies.pip",
                hint="Add the --hash of the wheel for this platform, or remove the hashes: "
                "the lock holds the sha256 of every wheel.",
            )
        raise PypiError(
            f"On {self.platform}: the index has no wheel of {name} {entry.get('version', '')} for "
            f"{self.target.uv_platform} with a sha256.",
            where="dependencies.pip",
            hint="Choose another version, or the conda package.",
        )

    def _error(self, output: str, folder: Path) -> StoreError:
        """Convert uv's output to an error."""
        if refused := forward_proxy.refusal_in(output):
            return refused
        text = " ".join(output.replace(folder.as_uri(), "").replace(os.fspath(folder), "").split())
        text = re.sub(r"^.*?(?:cause|error): (?:No solution found[^:]*?cause: )?", "", text)
        text = re.sub(r" @ \S*\.whl", "", text)
        beginning = f"On {self.platform}, the PyPI part has no solution."
        if re.search(
            r"(?i)could not connect|connection|timed out|status server error|\b50\d\b|"
            r"Failed to fetch|error sending request|dns error",
            output,
        ) and not re.search(r"(?i)No solution found|\b40[13]\b", output):
            return ChannelUnavailableError(f"The Python index cannot be read: {text}")
        sdist = re.findall(
            r"(?:because|Because) ([\w.-]+)(?:\S*)? has no (?:usable )?wheels", output
        )
        sdist += re.findall(r"building from source is disabled for `([\w.-]+)`", output)
        if sdist:
            names = ", ".join(sorted(set(sdist)))
            return PypiError(
                f"On {self.platform}: {names} has no wheel for Python {self.target.python} and "
                f"{self.target.uv_platform}, only source, which is not built here.",
                where="dependencies.pip",
                hint="Choose a version with a wheel, or the conda package.",
                details={"explanation": text, "sdist_only": sorted(set(sdist))},
            )
        named = {canonicalize_name(word) for word in re.findall(r"[\w.-]+", output)}
        from_conda = [item for item in self.provided.values() if item.name in named]
        if from_conda:
            return PypiError(
                f"{beginning} {text} (The environment already has"
                f" {'; '.join(map(str, from_conda))}.)",
                where="dependencies.pip",
                hint="Change the version of the conda package, or the pip requirement.",
                details={
                    "explanation": text,
                    "conda": [
                        {"name": item.name, "version": item.version, "package": item.package.name}
                        for item in from_conda
                    ],
                },
            )
        return PypiError(
            f"{beginning} {text}",
            where="dependencies.pip",
            hint="Correct the requirement, or use the conda package instead.",
            details={"explanation": text},
        )


def _unfolded(value: object) -> str:
    return " ".join(str(value).split())


def _write_empty_wheel(path: Path, stem: str, version: Version, metadata: str) -> None:
    with zipfile.ZipFile(path, "w") as wheel:
        info = f"{stem}-{version}.dist-info"
        wheel.writestr(f"{info}/METADATA", metadata)
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")


def _is_taken(file: Mapping[str, Any]) -> bool:
    """Return False for a file without a sha256, or with a URL that is not HTTP."""
    on_server = str(file.get("url", "")).startswith(("https://", "http://"))
    return on_server and "sha256" in file.get("hashes", {})


def _moment(uploaded: object) -> int | None:
    """Return milliseconds since the epoch; None if the index does not say."""
    return int(uploaded.timestamp() * 1000) if isinstance(uploaded, datetime) else None


def _file_name(url: str) -> str:
    return unquote(urlsplit(url).path.rsplit("/", 1)[-1])
