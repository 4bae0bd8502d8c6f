"""Checkout of one commit of a Git repository, with the system's git.

git runs confined to one folder (see `confinement`) and reaches the network only through the forward
proxy, which checks every address, also after a redirect. It reads only the configuration given
here: no hooks, filters (so no LFS), submodules or credential helpers, and no protocol other than
the URL's. A credential is passed in the environment of the process, never in its command line, its
configuration files or a message.

The commit id proves the contents: git verifies every object that it receives, and detects SHA-1
collisions.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from time import monotonic
from urllib.parse import urlsplit

from condastore.errors import (
    ChannelNotAllowedError,
    ChannelUnavailableError,
    PypiError,
    StoreError,
    TimeLimitError,
)
from environments.domain.pip_requirements import DirectReference
from environments.domain.progress import Cancelled
from environments.engine.channels.credentials import (
    CredentialSource,
    no_credentials,
    redact,
    request_headers,
)
from environments.engine.network import forward_proxy
from environments.engine.network.addresses import Guard, guard
from environments.engine.system.confinement import child_environment
from environments.engine.system.processes import Confinement, ToolResult, run_tool

Log = Callable[[str], None]

_OUTPUT_LIMIT = 64 << 20  # bytes
INSTALL = "install git on the machines of the workers, for instance with apt-get install git."


@dataclass(frozen=True, slots=True, kw_only=True)
class GitLimits:
    """Limits of a repository."""

    received_bytes: int = 1 << 30  # of one pack
    tree_bytes: int = 512 << 20
    files: int = 50_000
    time: timedelta = timedelta(minutes=5)


DEFAULT_LIMITS = GitLimits()


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkout:
    """The files of a commit, with a repository in `.git` that holds this commit."""

    folder: Path
    committed: int  # seconds since the epoch, from the committer's clock
    submodules: bool  # True if there are submodules; they are not fetched


class Repository:
    """A repository in an empty folder that fetches from one URL."""

    def __init__(
        self,
        reference: DirectReference,
        folder: Path,
        *,
        credentials: CredentialSource = no_credentials,
        limits: GitLimits = DEFAULT_LIMITS,
        cancelled: Cancelled,
        log: Log,
    ) -> None:
        self.reference = reference
        self._folder = folder
        self._tree = folder / "source"
        self._credential = credentials(reference.url)
        self._limits = limits
        self._cancelled = cancelled
        self._log = log
        self._deadline = monotonic() + limits.time.total_seconds()
        git = shutil.which("git")
        if git is None:
            raise PypiError(
                "Git repositories cannot be read: git is not installed on the worker.",
                hint=f"Ask an administrator to {INSTALL}",
            )
        self._git = git

    def checkout(self) -> Checkout:
        """Fetch the commit and write its files.

        Raises:
            PypiError: the repository has no such commit, or exceeds a limit.
            ChannelNotAllowedError: the server requires a login, or refuses the stored one.
            AddressRefusedError: the guard refuses its address.
            ChannelUnavailableError: the server does not respond now.
            TimeLimitError: it took too long.
            LeaseLostError: `cancelled` returned True.
        """
        self._run("init", "--quiet", "--template=", "--", os.fspath(self._tree), cwd=self._folder)
        everything = self._fetch()
        kind = self._lines("cat-file", "-t", self.reference.commit)
        if kind != ["commit"]:
            raise self._missing()
        self._require_reachable(self._tree if everything else None)
        submodules = self._measure()
        self._run(
            *("checkout", "--quiet", "--force", "--no-recurse-submodules", "--detach"),
            self.reference.commit,
        )
        head = self._lines("rev-parse", "HEAD")
        if head != [self.reference.commit]:
            raise self._missing()
        [moment] = self._lines("show", "--no-patch", "--format=%ct", self.reference.commit)
        return Checkout(
            folder=self._tree,
            committed=int(moment) if moment.isdecimal() else 0,
            submodules=submodules,
        )

    def read(self, path: str) -> str | None:
        """Return a text file of the commit, up to 1 MiB; None if there is no such file.

        A symbolic link is not followed: its text is its target.
        """
        lines: list[str] = []
        result = self._git_run(
            "cat-file", "blob", f"{self.reference.commit}:{path}", on_line=lines.append
        )
        text = "\n".join(lines)
        return text if result.succeeded and len(text) <= 1 << 20 else None

    def fetch_history(self) -> None:
        """Fetch older commits and tags, from which some projects derive their version.

        A failure is only logged; such a project then gets a default version.
        """
        depth = ["--unshallow"] if (self._tree / ".git" / "shallow").exists() else []
        result = self._git_run(
            *("fetch", "--quiet", *depth, "--tags", "--no-recurse-submodules", "--"),
            *(self.reference.url, self.reference.commit),
        )
        if not result.succeeded:
            self._log(f"{self.reference.location}: its history and tags could not be fetched.")

    # --- steps

    def _fetch(self) -> bool:
        """Fetch the commit; return True if all branches and tags were fetched with it."""
        options = ("--quiet", "--no-tags", "--no-recurse-submodules")
        result = self._git_run(
            "fetch", *options, "--depth=1", "--", self.reference.url, self.reference.commit
        )
        if result.succeeded:
            return False
        output = "\n".join(result.tail)
        # Servers with old protocols serve branches and tags only; plain file servers no depth.
        if re.search(r"unadvertised object|dumb http transport|does not support shallow", output):
            result = self._git_run(
                *("fetch", *options, "--", self.reference.url),
                *("+refs/heads/*:refs/remotes/origin/*", "+refs/tags/*:refs/tags/*"),
            )
        if not result.succeeded:
            raise self._failure(result)
        return True

    def _require_reachable(self, fetched: Path | None) -> None:
        """Refuse a commit that no branch or tag of the repository contains.

        Git hosts serve the commits of every fork under the URL of the original too: anyone who may
        fork a repository could pass off their code as its owners'.

        Args:
            fetched: a repository with all branches and tags; None if they must be fetched.
        """
        url, commit = self.reference.url, self.reference.commit
        if fetched is None:
            tips = self._lines("ls-remote", "--heads", "--tags", "--", url)
            if any(line.startswith(f"{commit}\trefs/") for line in tips):
                return
            fetched = self._folder / "references"
            init = ("init", "--quiet", "--bare", "--template=", "--", os.fspath(fetched))
            self._run(*init, cwd=self._folder)
            # Fetch commits only, if the server can leave out their files.
            self._run(
                *("fetch", "--quiet", "--no-tags", "--filter=tree:0", "--", url),
                *("+refs/heads/*:refs/heads/*", "+refs/tags/*:refs/tags/*"),
                cwd=fetched,
            )
        lines: list[str] = []
        requested = ("for-each-ref", "--count=1", f"--contains={commit}", "--format=%(refname)")
        result = self._git_run(*requested, on_line=lines.append, cwd=fetched)
        if not result.succeeded or not any(line.startswith("refs/") for line in lines):
            raise PypiError(
                f"The commit {commit} is not in a branch or tag of {url}.",
                where="dependencies.pip",
                hint="Name a commit of a branch or tag. Commits of forks and pull requests, and of "
                "branches that were rewritten, do not count as the repository's.",
            )

    def _measure(self) -> bool:
        """Refuse a tree that exceeds a limit; return True if it has submodules.

        Trees can refer to each other so that a few kilobytes contain millions of files, so listing
        stops at the limit.
        """
        files = size = listed = 0
        submodules = False

        def count(line: str) -> None:
            nonlocal files, size, listed, submodules
            # Output beyond the limit is dropped without being counted: stop before that.
            listed += len(line) + 1
            entry = re.match(r"(\d+) (\w+) [0-9a-f]+ +(\d+|-)\t", line)
            if entry is not None:
                files += 1
                size += int(entry[3]) if entry[3].isdecimal() else 0
                submodules |= entry[2] == "commit"
            if (
                files > self._limits.files
                or size > self._limits.tree_bytes
                or listed > _OUTPUT_LIMIT // 2
            ):
                raise PypiError(
                    f"{self.reference.location} has more than {self._limits.files:,} files or "
                    f"{self._limits.tree_bytes >> 20:,} MiB, the limits for a build.",
                    where="dependencies.pip",
                    hint="Publish a wheel of the project, and name the wheel.",
                )

        self._run("ls-tree", "-r", "-l", "--full-tree", self.reference.commit, on_line=count)
        return submodules

    # --- git

    def _lines(self, *arguments: str) -> list[str]:
        lines: list[str] = []
        self._run(*arguments, on_line=lines.append)
        return lines

    def _run(
        self,
        *arguments: str,
        on_line: Callable[[str], None] = lambda line: None,
        cwd: Path | None = None,
    ) -> None:
        result = self._git_run(*arguments, on_line=on_line, cwd=cwd)
        if not result.succeeded:
            raise self._failure(result)

    def _git_run(
        self,
        *arguments: str,
        on_line: Callable[[str], None] = lambda line: None,
        cwd: Path | None = None,
    ) -> ToolResult:
        left = timedelta(seconds=max(self._deadline - monotonic(), 0.1))
        result = run_tool(
            [self._git, *arguments],
            cwd=cwd or self._tree,
            env=self._environment(),
            time_limit=left,
            cancelled=self._cancelled,
            on_line=on_line,
            limits={
                "RLIMIT_FSIZE": self._limits.received_bytes,
                "RLIMIT_DATA": 2 << 30,
                "RLIMIT_CORE": 0,
            },
            confinement=Confinement(
                writable=[self._folder], connect=[forward_proxy.access_for(guard()).port]
            ),
            output_limit=_OUTPUT_LIMIT,
        )
        if result.timed_out:
            raise TimeLimitError(
                f"{self.reference.location} could not be fetched within "
                f"{self._limits.time.total_seconds():g} seconds."
            )
        result.require_not_killed("git")
        return result

    def _environment(self) -> dict[str, str]:
        environment = child_environment(forward_proxy.access_for(guard()).environment())
        certificates = os.environ.get("SSL_CERT_FILE")
        if certificates:
            environment["GIT_SSL_CAINFO"] = certificates
        environment |= {
            "HOME": os.fspath(self._folder),
            "LC_ALL": "C",
            "GIT_CONFIG_NOSYSTEM": "1",
            "GIT_CONFIG_GLOBAL": os.devnull,
            "GIT_ATTR_NOSYSTEM": "1",
            "GIT_TERMINAL_PROMPT": "0",
            "GIT_ASKPASS": "/bin/false",
            "GIT_OPTIONAL_LOCKS": "0",
        }
        settings = self._settings()
        environment["GIT_CONFIG_COUNT"] = str(len(settings))
        for number, (key, value) in enumerate(settings):
            environment[f"GIT_CONFIG_KEY_{number}"] = key
            environment[f"GIT_CONFIG_VALUE_{number}"] = value
        return environment

    def _settings(self) -> list[tuple[str, str]]:
        scheme = urlsplit(self.reference.url).scheme
        settings = [
            ("protocol.allow", "never"),
            (f"protocol.{scheme}.allow", "always"),
            # git sends the header wherever a redirect leads, so with a login follow none.
            ("http.followRedirects", "false" if self._credential else "initial"),
            ("http.lowSpeedLimit", "1000"),
            ("http.lowSpeedTime", "60"),
            ("core.hooksPath", os.devnull),
            ("core.attributesFile", os.devnull),
            ("core.fsmonitor", "false"),
            ("core.autocrlf", "false"),
            ("credential.helper", ""),
            ("fetch.unpackLimit", "1"),
            ("fetch.writeCommitGraph", "false"),
            ("submodule.recurse", "false"),
            ("gc.auto", "0"),
            ("maintenance.auto", "false"),
            ("advice.detachedHead", "false"),
            ("pack.threads", "1"),
        ]
        for name, value in request_headers(self._credential).items():
            settings.append((f"http.{self.reference.url}.extraHeader", f"{name}: {value}"))
        return settings

    # --- errors

    def _missing(self) -> PypiError:
        return PypiError(
            f"{self.reference.url} has no commit {self.reference.commit}.",
            where="dependencies.pip",
            hint="Check the commit. It may be gone if its branch was rewritten: ask the "
            "repository's owner for a current commit.",
        )

    def _failure(self, result: ToolResult) -> StoreError:
        output = redact("\n".join(result.tail), [self._credential])
        output = output.replace(os.fspath(self._folder), "")
        url = self.reference.url
        if refused := _refusal(url, output):
            return refused
        if re.search(r"not our ref|no such remote ref|Could not find remote ref", output, re.I):
            return self._missing()
        if re.search(r"could not read (?:Username|Password)|Authentication failed|error: 40[13]",
                     output):  # fmt: skip
            return ChannelNotAllowedError(
                f"{url} requires a login"
                + (" and refuses the stored one." if self._credential else "."),
                where="dependencies.pip",
                hint="Check the URL. For a private repository, store a login for its URL: "
                "`condastore credential set`.",
            )
        if re.search(r"not found|error: 404|does not appear to be a git repo", output):
            return PypiError(
                f"There is no Git repository at {url}.",
                where="dependencies.pip",
                hint="Check the URL; it may need a login: `condastore credential set`.",
            )
        if result.status in (128 + 25, 25) or "File too large" in output or "signal 25" in output:
            return PypiError(
                f"{url} is larger than {self._limits.received_bytes >> 20:,} MiB, the limit for a "
                "build.",
                where="dependencies.pip",
                hint="Publish a wheel of the project, and name the wheel.",
            )
        last = _last_message(output.splitlines())
        if re.search(r"redirect|error: 30\d", output, re.I):
            return PypiError(
                f"{url} redirects to another server or protocol, which is not followed: {last}",
                where="dependencies.pip",
                hint="Write the URL that it redirects to.",
            )
        return ChannelUnavailableError(f"{url} cannot be read now: {last}", where=url)


def _last_message(lines: Sequence[str]) -> str:
    messages = [
        line.strip() for line in lines if re.match(r"(?:fatal|error|remote):", line.strip())
    ]
    return (messages or [line for line in lines if line.strip()] or ["git failed"])[-1][:500]


def _refusal(url: str, output: str) -> StoreError | None:
    """Return the guard's refusal if it made git fail."""
    shown = " ".join(
        f"failed to fetch: `{each}`" for each in re.findall(r"'(https?://\S+?)'", output)
    )
    if refused := forward_proxy.refusal_in(f"{shown} failed to fetch: `{url}`"):
        return refused
    if re.search(r"response 407|CONNECT.*407|HTTP code 407", output):
        return Guard.refusal(urlsplit(url).hostname or url)
    return None
