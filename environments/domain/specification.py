"""What did a person ask for? An environment file, a lock or an explicit list becomes one value."""

from __future__ import annotations

import hashlib
import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime, timedelta
from difflib import get_close_matches
from typing import Any, Literal, Self, TypeVar

from condastore.errors import FaultError, InvalidInputError, SpecificationError, StoreError
from environments.domain.default_channels import CONDA_DEFAULTS, channels_of
from environments.domain.export_lists import export_list_root, is_export_list
from environments.domain.file_keys import CONDASTORE_KEYS, READ_KEYS, ignored_key_warning
from environments.domain.foreign_files import FOREIGN_HINT, foreign_kind, text_hint
from environments.domain.lock import Lock
from environments.domain.lockfiles import (
    LockDocument,
    ReadLock,
    find_conda_lock,
    is_explicit,
    may_be_conda_lock,
    scan_conda_lock,
    scan_explicit,
)
from environments.domain.names import (
    ChannelRef,
    Credential,
    canonical_channel,
    did_you_mean,
    parse_platform,
    printable,
    without_credentials,
)
from environments.domain.pip_requirements import (
    NO_OPTIONS,
    PipOption,
    PipOptions,
    PipRequirement,
    direct_reference,
    parse_pip_line,
)
from environments.domain.requirements import CondaRequirement, parse_conda_requirement
from environments.domain.selectors import (
    MAMBA_SELECTORS,
    idle_selectors,
    is_mamba_selector,
    lines_for,
    mamba_selector,
    selector_faults,
)
from environments.domain.yaml_text import Node, checked_text, read_yaml

MAX_DEPENDENCIES = 2_000
#: Requirements of one package: each is compared with each.
MAX_ALIKE = 20
MAX_TESTS = 100
MAX_FAULTS = 100  # that are reported; of more, the number
MAX_DESCRIPTION = 4_000  # characters


@dataclass(frozen=True, slots=True, kw_only=True)
class SmokeTests:
    """What must work in the finished environment before it is published."""

    imports: tuple[str, ...] = ()
    commands: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Specification:
    """What was asked for, normalised; immutable, and named by its digest."""

    kind: Literal["environment", "lock", "explicit"]
    channels: tuple[str, ...]  # canonical base URLs, the first wins, no credentials
    platforms: tuple[str, ...]  # sorted
    #: Platform -> sorted MatchSpecs that rattler reads strictly; selectors are applied.
    dependencies: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    #: Platform -> sorted requirements of PEP 508; their markers stay.
    pip: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    #: Platform -> options of the pip part; only platforms that have some.
    pip_options: Mapping[str, PipOptions] = field(default_factory=dict)
    variables: Mapping[str, str] = field(default_factory=dict)
    virtual_packages: tuple[str, ...] = ()  # "__cuda=12", sorted
    exclude_newer: str = ""  # "", an ISO date or time in UTC, or an age such as "P7D"
    smoke_tests: SmokeTests = SmokeTests()
    description: str = ""  # not part of the digest
    name: str = ""  # as the file says, or ""; not part of the digest
    lock: Lock | None = None  # of the kinds "lock" and "explicit"

    @property
    def digest(self) -> str:
        """sha256, hex, of everything but `name` and `description`."""
        content = self.to_json()
        del content["name"], content["description"]
        if self.lock is not None:
            # Of equal bytes two locks may claim different things: each is what its author wrote.
            content["lock"] = self.lock.claims
        text = json.dumps(content, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    def cutoff(self, now: datetime) -> datetime | None:
        """No package that is newer may be chosen; None where `exclude_newer` says nothing."""
        return newest_allowed(self.exclude_newer, now)

    @property
    def pip_urls(self) -> tuple[str, ...]:
        """URLs that the pip part names itself: of wheels, repositories and indexes."""
        direct = (direct_reference(text) for texts in self.pip.values() for text in texts)
        found = [reference.url for reference in direct if reference is not None]
        found += [url for options in self.pip_options.values() for url in options.urls]
        return tuple(dict.fromkeys(found))

    def to_json(self) -> dict[str, Any]:
        """JSON values only; `from_json` gives an equal specification back."""
        options = {key: value.to_json() for key, value in self.pip_options.items()}
        return {
            # Left out where there are none: the digests of older specifications stay.
            **({"pip_options": options} if options else {}),
            "kind": self.kind,
            "channels": list(self.channels),
            "platforms": list(self.platforms),
            "dependencies": {key: list(value) for key, value in self.dependencies.items()},
            "pip": {key: list(value) for key, value in self.pip.items()},
            "variables": dict(self.variables),
            "virtual_packages": list(self.virtual_packages),
            "exclude_newer": self.exclude_newer,
            "smoke_tests": {
                "imports": list(self.smoke_tests.imports),
                "commands": list(self.smoke_tests.commands),
            },
            "description": self.description,
            "name": self.name,
            "lock": self.lock.to_json() if self.lock is not None else None,
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Self:
        lock = content["lock"]
        return cls(
            kind=content["kind"],
            channels=tuple(content["channels"]),
            platforms=tuple(content["platforms"]),
            dependencies={key: tuple(value) for key, value in content["dependencies"].items()},
            pip={key: tuple(value) for key, value in content["pip"].items()},
            pip_options={
                key: PipOptions.from_json(value)
                for key, value in content.get("pip_options", {}).items()
            },
            variables=dict(content["variables"]),
            virtual_packages=tuple(content["virtual_packages"]),
            exclude_newer=content["exclude_newer"],
            smoke_tests=SmokeTests(
                imports=tuple(content["smoke_tests"]["imports"]),
                commands=tuple(content["smoke_tests"]["commands"]),
            ),
            description=content["description"],
            name=content["name"],
            lock=Lock.from_json(lock) if lock is not None else None,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Submission:
    """A specification, the text it came from without credentials, and those credentials."""

    specification: Specification
    source: str
    credentials: tuple[Credential, ...] = ()
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Defaults:
    """What holds where the text says nothing, and the limits."""

    channels: tuple[str, ...] = ("conda-forge",)
    channel_alias: str = "https://conda.anaconda.org"
    #: Below which URL the channels that are hosted here lie; "" where none are.
    hosted_channels: str = ""
    platforms: tuple[str, ...] = ("linux-64",)
    max_bytes: int = 2**20
    max_lock_bytes: int = 16 * 2**20  # of a conda-lock.yml or an explicit list
    #: What `defaults` among the channels stands for.
    default_channels: tuple[str, ...] = CONDA_DEFAULTS


def parse_specification(text: str | bytes, *, defaults: Defaults) -> Submission:
    """Read a specification in any of its forms, which are recognised by their content.

    They are: `environment.yml`, `conda-lock.yml` (version 1), both as YAML or JSON; explicit
    lists (`@EXPLICIT`); and what `conda list --export` writes.

    Raises:
        SpecificationError: every fault that was found, each with its key and line.
    """
    checked = checked_text(text, max_bytes=max(defaults.max_bytes, defaults.max_lock_bytes))
    if is_explicit(checked):
        platform = defaults.platforms[0] if defaults.platforms else ""
        return _locked("explicit", checked, scan_explicit(checked, default_platform=platform))
    if is_export_list(checked):
        checked_text(checked, max_bytes=defaults.max_bytes)
        return _Reader(defaults).read_export_list(checked)
    if not may_be_conda_lock(checked):
        checked_text(checked, max_bytes=defaults.max_bytes)
    root = read_yaml(checked)
    if document := find_conda_lock(root):
        return _locked("lock", checked, scan_conda_lock(document.root), document)
    checked_text(checked, max_bytes=defaults.max_bytes)
    reader = _Reader(defaults)
    submission = reader.read(checked, root)
    if reader.credentials:
        return _without_credentials(checked, root, submission, defaults)
    return submission


def _without_credentials(text: str, root: Node, read: Submission, defaults: Defaults) -> Submission:
    """Return `read` with a source that holds no credentials of channels.

    That nothing secret stays in what is kept is proven on the text itself: it is read again.

    Raises:
        SpecificationError: they cannot be taken out; it names the place.
    """
    everywhere = without_credentials(text)
    # A value that is no channel may hold a login too, such as the URL of a database.
    last = text.count("\n") + 1
    lines = [*_lines_of(root, "channels", last), *_lines_of(root, "dependencies", last)]
    in_channels = _in_lines(text, without_credentials, lines)
    reader = _Reader(defaults)
    for source in (everywhere, in_channels):
        reader = _Reader(defaults)
        try:
            again = reader.read(source, read_yaml(source))
        except SpecificationError:
            continue
        if not reader.credentials and again.specification == read.specification:
            return replace(read, source=source)
    where = next((place for place in reader.credentials.values()), "channels")
    raise SpecificationError(
        [
            FaultError(
                "The credentials of a channel are written in a form that hides them.",
                where=where,
                hint="Write the channel's URL plainly in one line, without escapes.",
            )
        ],
    )


def _in_lines(text: str, change: Callable[[str], str], numbers: Iterable[int]) -> str:
    """Return `text` with those of its lines changed, and all that are comments."""
    chosen = set(numbers)
    return "\n".join(
        change(line) if number in chosen or line.lstrip().startswith("#") else line
        for number, line in enumerate(text.split("\n"), start=1)
    )


def _locked(
    kind: Literal["lock", "explicit"],
    source: str,
    read: ReadLock,
    document: LockDocument | None = None,
) -> Submission:
    lock = read.lock
    return Submission(
        specification=Specification(
            kind=kind,
            channels=lock.channels,
            platforms=tuple(sorted(part.platform for part in lock)),
            description=document.description[:MAX_DESCRIPTION] if document else "",
            lock=lock,
        ),
        source=without_credentials(source),
        credentials=read.credentials,
        warnings=read.warnings,
    )


# --- environment.yml --------------------------------------------------------------------------

_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
#: A URL with a password in it.
_LOGIN = re.compile(r"(?i)\b[a-z][a-z0-9+.-]{0,15}://[^/\s?#@:]{0,200}:[^/\s?#@]{1,200}@")
_MODULE = re.compile(r"[^\W\d]\w*(?:\.[^\W\d]\w*)*")
_VIRTUAL = re.compile(r"__[a-z0-9][a-z0-9_-]*(?:=[A-Za-z0-9_.!+]+(?:=[A-Za-z0-9_.]+)?)?")

_T = TypeVar("_T")


_R = TypeVar("_R", CondaRequirement, PipRequirement)


@dataclass(frozen=True, slots=True)
class _At:
    """A requirement, and where it stands."""

    where: str
    line: int


def _lines_of(root: Node, key: str, last: int = sys.maxsize) -> range:
    """Return the lines from that of `key` to that of the next key, or to `last`."""
    lines = [name.line for name, _ in root.pairs]
    for (name, _), after in zip(root.pairs, [*lines[1:], last + 1], strict=False):
        if name.text == key:
            return range(name.line, max(after, name.line + 1))
    return range(0)


class _Reader:
    """Reads one environment file and gathers its faults, warnings and credentials."""

    def __init__(self, defaults: Defaults) -> None:
        self.defaults = defaults
        self.faults: dict[tuple[str, str], FaultError] = {}  # by line and message
        self.warnings: dict[str, None] = {}
        self.credentials: dict[Credential, str] = {}  # and where each was first written
        self.extra_channels: dict[str, str] = {}  # URL -> the requirement that names it

    def read(self, text: str, root: Node) -> Submission:
        """Read an environment file; `root` is what `text` holds, whose selectors apply."""
        if root.kind != "mapping":
            self.fault(
                f"The text is not an environment file: it holds {root.described}, no keys.",
                f"line {root.line}",
                text_hint(text),
            )
            raise self.error()
        if kind := foreign_kind(root):
            self.fault(
                f"The file is {kind}, and no environment file.", f"line {root.line}", FOREIGN_HINT
            )
            raise self.error()
        ours = root.get("condastore")
        if ours is not None and ours.kind != "mapping":
            self.expected("a mapping", ours, "condastore")
            ours = None
        self.check_file_keys(root)
        lines = _lines_of(root, "dependencies")
        for fault in selector_faults(text, lines):
            self.fault(fault.message, fault.where, fault.hint)
        for number in idle_selectors(text, lines):
            self.warn(f"Line {number}: selectors have an effect under 'dependencies' only.")
        platforms = self.platforms(root.get("platforms"))
        channels = self.channels(root.get("channels"))
        dependencies, pip, pip_options = self.requirements(text, root, platforms)
        ours = ours or Node(kind="mapping", line=0)
        self.check_keys(ours, CONDASTORE_KEYS, "condastore.")
        specification = Specification(
            kind="environment",
            channels=(*channels, *(url for url in self.extra_channels if url not in channels)),
            platforms=platforms,
            dependencies=dependencies,
            pip=pip,
            pip_options=pip_options,
            variables=self.variables(root.get("variables")),
            virtual_packages=self.virtual_packages(ours.get("virtual-packages")),
            exclude_newer=self.exclude_newer(ours.get("exclude-newer")),
            smoke_tests=self.smoke_tests(ours.get("tests")),
            description=self.description(ours.get("description"))
            or self.file_description(root.get("description")),
            name=self.name(root.get("name")),
        )
        for url, requirement in self.extra_channels.items():
            if url not in channels:
                self.warn(
                    f"{requirement} names the channel {url}, which is not listed under "
                    "'channels': it was added with the lowest priority."
                )
        if self.faults:
            raise self.error()
        return Submission(
            specification=specification,
            source=text,
            credentials=tuple(self.credentials),
            warnings=tuple(self.warnings),
        )

    def read_export_list(self, text: str) -> Submission:
        """Read what `conda list --export` wrote."""
        root = export_list_root(text)
        submission = self.read("", root)
        channels = ", ".join(submission.specification.channels)
        self.warn(f"The list names no channels: its packages are looked for in {channels}.")
        if not root.get("platforms").items:  # type: ignore[union-attr]
            platforms = ", ".join(submission.specification.platforms)
            self.warn(f"The list does not say its platform: read as {platforms}.")
        return replace(submission, source=text, warnings=tuple(self.warnings))

    # --- what was found

    def note_credentials(self, channel: ChannelRef, where: str) -> None:
        for credential in channel.credentials:
            self.credentials.setdefault(credential, where)

    def fault(self, message: str, where: str, hint: str | None = None) -> None:
        # Platforms read their own lines: the same fault has another index there, and one line.
        key = (where.rpartition("line ")[2], message)
        self.faults.setdefault(key, FaultError(message, where=where, hint=hint))

    def expected(self, what: str, node: Node, where: str) -> None:
        self.fault(
            f"Expected {what}, found {node.described}.",
            f"{where}, line {node.line}",
            "Check the indentation and the '-' of lists.",
        )

    def warn(self, message: str) -> None:
        self.warnings.setdefault(message)

    def error(self) -> SpecificationError:
        def line(fault: StoreError) -> int:
            found = re.search(r"line (\d+)", fault.where)
            return int(found[1]) if found else 0

        ordered: list[StoreError] = sorted(self.faults.values(), key=line)
        if len(ordered) > MAX_FAULTS:
            more = f"There are {len(ordered) - MAX_FAULTS:,} more faults."
            ordered = [*ordered[:MAX_FAULTS], FaultError(more)]
        return SpecificationError(ordered)

    def attempt(self, parse: Callable[[], _T], where: str) -> _T | None:
        try:
            return parse()
        except StoreError as error:
            self.fault(error.message, where, error.hint)
            return None

    # --- the simple keys

    def check_file_keys(self, root: Node) -> None:
        """Warn of top-level keys that are not read; refuse the one that chooses an index."""
        for name, value in root.pairs:
            if value.empty:
                continue  # conda-store writes `prefix: null`
            if name.text == "pip-repositories":
                self.fault(
                    "The environment chooses an index.",
                    f"pip-repositories, line {name.line}",
                    "Indexes are configured by the administrators; remove the key.",
                )
            elif name.text not in READ_KEYS:
                self.warn(ignored_key_warning(name.text, name.line))

    def check_keys(self, node: Node, known: Sequence[str], prefix: str) -> None:
        for name, _ in node.pairs:
            if name.text not in known:
                where = f"{prefix}{printable(name.text).strip(chr(39))}, line {name.line}"
                hint = did_you_mean(name.text, known) or f"Known are: {', '.join(known)}."
                self.fault(f"The key {printable(name.text)} is not known.", where, hint)

    def entries(self, node: Node | None, where: str, what: str) -> Iterator[tuple[str, Node]]:
        """The texts of a list with where each stands; what is not text is a fault."""
        if node is None or node.empty:
            return
        if node.kind != "list":
            self.expected(f"a list of {what}", node, where)
            return
        for index, item in enumerate(node.items):
            if item.kind != "text" or item.empty:
                self.expected("text", item, f"{where}[{index}]")
            else:
                yield f"{where}[{index}], line {item.line}", item

    def text(self, node: Node | None, where: str) -> tuple[str, str]:
        """A text and where it stands."""
        if node is None or node.empty:
            return "", where
        if node.kind != "text":
            self.expected("text", node, where)
            return "", where
        return node.text, f"{where}, line {node.line}"

    def name(self, node: Node | None) -> str:
        """Return the name in the file; a path, which `conda env export -p` writes, is ignored."""
        text, where = self.text(node, "name")
        if re.search(r"[/\\]", text):
            self.warn(f"{where}: the name is a path, and is ignored: the request names the place.")
            return ""
        if len(text) > 255 or re.search(r"[:#\x00-\x1f\x7f]", text) or text in (".", ".."):
            self.warn(
                f"{where}: {printable(text)} is not a name for an environment, and is ignored."
            )
            return ""
        return text

    def description(self, node: Node | None) -> str:
        text, where = self.text(node, "condastore.description")
        if len(text) > MAX_DESCRIPTION:
            self.fault(
                f"The description has {len(text):,} characters; {MAX_DESCRIPTION:,} are allowed.",
                where,
                "Shorten it.",
            )
        return text.strip()

    def file_description(self, node: Node | None) -> str:
        """Return the top-level `description`, where other tools have one; never a reason to fail.

        `condastore.description` is stronger.
        """
        if node is None or node.empty:
            return ""
        if node.kind != "text":
            self.warn(f"Line {node.line}: 'description' is ignored: it is {node.described}.")
            return ""
        if len(node.text) > MAX_DESCRIPTION:
            self.warn(
                f"Line {node.line}: 'description' is ignored: it has {len(node.text):,} "
                f"characters, and {MAX_DESCRIPTION:,} are allowed."
            )
            return ""
        return node.text.strip()

    def platforms(self, node: Node | None) -> tuple[str, ...]:
        found: dict[str, None] = {}
        for where, item in self.entries(node, "platforms", "platforms"):
            platform = self.attempt(lambda text=item.text: parse_platform(text), where)  # type: ignore[misc]
            if platform in found:
                self.warn(f"{where}: {platform} stands twice.")
            elif platform is not None:
                found[platform] = None
        return tuple(sorted(found or self.defaults.platforms))

    def channels(self, node: Node | None) -> tuple[str, ...]:
        urls: dict[str, None] = {}
        for where, item in self.entries(node, "channels", "channels"):
            if item.text == "nodefaults":
                continue
            for name in channels_of(item.text, self.defaults.default_channels):
                channel = self.channel(name, where)
                if channel is None:
                    continue
                if channel.url in urls:
                    self.warn(f"{where}: the channel {channel.name} stands twice.")
                urls[channel.url] = None
        if not urls:
            for entry in self.defaults.channels:
                for name in channels_of(entry, self.defaults.default_channels):
                    if channel := self.channel(name, "channels"):
                        urls[channel.url] = None
        return tuple(urls)

    def channel(self, text: str, where: str) -> ChannelRef | None:
        places = {
            "alias": self.defaults.channel_alias,
            "hosted": self.defaults.hosted_channels,
        }
        channel = self.attempt(lambda: canonical_channel(text, **places), where)
        if channel is not None:
            self.note_credentials(channel, where)
        return channel

    def variables(self, node: Node | None) -> dict[str, str]:
        if node is None or node.empty:
            return {}
        if node.kind != "mapping":
            self.expected("a mapping of names to values", node, "variables")
            return {}
        found: dict[str, str] = {}
        for name, value in node.pairs:
            where = f"variables.{printable(name.text).strip(chr(39))}, line {name.line}"
            if _VARIABLE.fullmatch(name.text) is None:
                self.fault(
                    f"{printable(name.text)} is not the name of an environment variable.",
                    where,
                    "Use letters, digits and '_', with no digit first.",
                )
            elif value.kind != "text":
                self.expected("text", value, f"variables.{name.text}")
            elif "\n" in value.text or "\r" in value.text:
                self.fault("The value holds a line break.", where, "Write it in one line.")
            else:
                found[name.text] = "" if value.empty else value.text
                if _LOGIN.search(found[name.text]):
                    self.warn(
                        f"{where}: the value holds a login, which everybody who may see the "
                        "environment can read."
                    )
        return dict(sorted(found.items()))

    def virtual_packages(self, node: Node | None) -> tuple[str, ...]:
        found: dict[str, str] = {}
        for where, item in self.entries(node, "condastore.virtual-packages", "virtual packages"):
            text = re.sub(r"\s*=+\s*", "=", item.text.strip())
            name = text.partition("=")[0]
            if _VIRTUAL.fullmatch(text) is None:
                self.fault(
                    f"{printable(item.text)} is not a virtual package.",
                    where,
                    "Write it like __cuda=12, __glibc=2.28 or __unix.",
                )
            elif found.get(name, text) != text:
                self.fault(
                    f"{name} is asked for twice: {found[name]} and {text}.", where, "Keep one."
                )
            else:
                found[name] = text
        return tuple(sorted(found.values()))

    def exclude_newer(self, node: Node | None) -> str:
        text, where = self.text(node, "condastore.exclude-newer")
        return self.attempt(lambda: parse_exclude_newer(text), where) or ""

    def smoke_tests(self, node: Node | None) -> SmokeTests:
        if node is None or node.empty:
            return SmokeTests()
        if node.kind != "mapping":
            self.expected("a mapping with 'imports' or 'commands'", node, "condastore.tests")
            return SmokeTests()
        self.check_keys(node, ("imports", "commands"), "condastore.tests.")
        imports: dict[str, None] = {}
        for where, item in self.entries(node.get("imports"), "condastore.tests.imports", "modules"):
            if _MODULE.fullmatch(item.text) is None:
                self.fault(
                    f"{printable(item.text)} is not the name of a module.",
                    where,
                    "Write what stands after 'import', such as numpy.linalg.",
                )
            imports[item.text] = None
        commands = []
        for where, item in self.entries(
            node.get("commands"), "condastore.tests.commands", "commands"
        ):
            if "\0" in item.text or not item.text.strip():
                self.fault("The command is empty.", where, "Remove the line.")
            commands.append(item.text.strip())
        if len(imports) + len(commands) > MAX_TESTS:
            self.fault(
                f"{len(imports) + len(commands)} tests; {MAX_TESTS} are allowed.",
                f"condastore.tests, line {node.line}",
                "Put them in a script of a package.",
            )
        return SmokeTests(imports=tuple(imports), commands=tuple(commands))

    # --- dependencies

    def requirements(
        self, text: str, root: Node, platforms: tuple[str, ...]
    ) -> tuple[dict[str, tuple[str, ...]], dict[str, tuple[str, ...]], dict[str, PipOptions]]:
        """The requirements of conda and of pip, and pip's options, by platform."""
        dependencies: dict[str, tuple[str, ...]] = {}
        pip: dict[str, tuple[str, ...]] = {}
        options: dict[str, PipOptions] = {}
        by_text: dict[tuple[str, str], tuple[tuple[str, ...], tuple[str, ...], PipOptions]] = {}
        if self.too_many(root.get("dependencies")):
            return {}, {}, {}
        for platform in platforms:
            lines = lines_for(text, platform)
            key = (lines, platform if "sel(" in text else "")
            if key not in by_text:
                own = root if lines == text else read_yaml(lines)
                by_text[key] = self.requirements_of(own, platform)
            dependencies[platform], pip[platform], chosen = by_text[key]
            if chosen:
                options[platform] = chosen
        return dependencies, pip, options

    def dependencies_hint(self, root: Node) -> str:
        """Say what to do where `dependencies` is missing: often another key was meant for it."""
        near = get_close_matches("dependencies", [name.text for name, _ in root.pairs], n=1)
        if not near:
            return "List the packages under 'dependencies:'."
        line = next(name.line for name, _ in root.pairs if name.text == near[0])
        return f"Line {line} has {printable(near[0])}: write 'dependencies'."

    def too_many(self, node: Node | None) -> bool:
        if node is None:
            return False
        count = sum(1 + sum(len(value.items) for _, value in item.pairs) for item in node.items)
        if count > MAX_DEPENDENCIES:
            self.fault(
                f"{count:,} dependencies; {MAX_DEPENDENCIES:,} are allowed.",
                f"dependencies, line {node.line}",
                "Split them into several environments, or submit a lock.",
            )
            return True
        return False

    def requirements_of(
        self, root: Node, platform: str
    ) -> tuple[tuple[str, ...], tuple[str, ...], PipOptions]:
        node = root.get("dependencies")
        if node is None:
            self.fault(
                "The key 'dependencies' is missing.",
                f"line {root.line}",
                self.dependencies_hint(root),
            )
            return (), (), NO_OPTIONS
        if node.empty:
            return (), (), NO_OPTIONS
        if node.kind != "list":
            self.expected("a list of packages", node, "dependencies")
            return (), (), NO_OPTIONS
        conda: list[tuple[CondaRequirement, _At]] = []
        pip: list[tuple[PipRequirement, _At]] = []
        options: list[PipOption] = []
        for index, item in enumerate(node.items):
            where = f"dependencies[{index}]"
            if item.kind == "mapping" and is_mamba_selector(item):
                for package in self.selected(item, where, platform):
                    self.conda_entry(package, where, conda)
            elif item.kind == "mapping":
                self.pip_section(item, where, pip, options)
            elif item.kind != "text" or item.empty:
                self.expected("a package", item, where)
            else:
                self.conda_entry(item, where, conda)
        names = {requirement.name for requirement, _ in conda}
        for requirement, at in pip:
            if requirement.name in names:
                self.warn(
                    f"{at.where}: {requirement.name} is asked of conda too; what conda installs "
                    "is what counts."
                )
        return self.settled(conda), self.settled(pip), self.pip_options(pip, options)

    def selected(self, item: Node, where: str, platform: str) -> Iterator[Node]:
        """Yield the packages of a `sel(linux): gdb` of mamba that are for `platform`."""
        for name, value in item.pairs:
            selector = mamba_selector(name.text)
            if selector is None:
                self.fault(
                    f"The selector {printable(name.text)} is not known.",
                    f"{where}, line {name.line}",
                    f"Use one of {', '.join(MAMBA_SELECTORS)}; a list has no other key.",
                )
            elif value.kind != "text" or value.empty:
                self.expected("a package", value, where)
            elif platform in selector:
                yield value

    def conda_entry(
        self, item: Node, where: str, found: list[tuple[CondaRequirement, _At]]
    ) -> None:
        at = _At(f"{where}, line {item.line}", item.line)
        if item.plain and re.fullmatch(r"[-+]?[\d.]+(?:e[-+]?\d+)?", item.text):
            self.fault(f"{item.text} is a number, not a package.", at.where, "Name the package.")
            return
        places = {
            "alias": self.defaults.channel_alias,
            "hosted": self.defaults.hosted_channels,
        }
        defaults = self.defaults.default_channels
        parsed = self.attempt(
            lambda: parse_conda_requirement(item.text, default_channels=defaults, **places),
            at.where,
        )
        if parsed is None:
            return
        requirement, channel = parsed
        if channel is not None:
            self.note_credentials(channel, at.where)
            urls = [channel.url]
            if channel.name == "defaults":  # what one of them needs may be in another
                urls = [canonical_channel(name, **places).url for name in defaults]
            for url in urls:
                self.extra_channels.setdefault(url, f"{at.where}: {printable(item.text)}")
        if requirement.note:
            self.warn(f"{at.where}: {requirement.note}")
        found.append((requirement, at))

    def pip_section(
        self,
        item: Node,
        where: str,
        found: list[tuple[PipRequirement, _At]],
        options: list[PipOption],
    ) -> None:
        for name, value in item.pairs:
            if name.text != "pip":
                hint = did_you_mean(name.text, ("pip",)) or "Only 'pip:' can stand here."
                if value.kind == "text" and not value.empty:
                    hint = "A version follows without ':', like 'numpy =1.26'."
                self.fault(
                    f"The key {printable(name.text)} is not known here.",
                    f"{where}, line {name.line}",
                    hint,
                )
                continue
            for at, entry in self.entries(value, f"{where}.pip", "requirements"):
                parsed = self.attempt(
                    lambda text=entry.text: parse_pip_line(text),  # type: ignore[misc]
                    at,
                )
                if isinstance(parsed, PipOption):
                    options.append(parsed)
                    if parsed.warning:
                        self.warn(f"{at}: {parsed.warning}")
                elif parsed is not None:
                    found.append((parsed, _At(at, entry.line)))
                    for warning in parsed.warnings:
                        self.warn(f"{at}: {warning}")

    def pip_options(
        self, found: list[tuple[PipRequirement, _At]], options: list[PipOption]
    ) -> PipOptions:
        """The options of one pip part, with the hashes that its requirements name."""

        def urls(kind: str) -> tuple[str, ...]:
            return tuple(dict.fromkeys(each.url for each in options if each.kind == kind))

        hashes: dict[str, tuple[str, ...]] = {}
        for requirement, _ in found:
            if requirement.hashes:
                held = hashes.get(requirement.name, ())
                hashes[requirement.name] = tuple(sorted({*held, *requirement.hashes}))
        indexes = urls("index")
        for url in indexes[1:]:
            self.warn(f"--index-url {url}: the index {indexes[0]} was named before, and is used.")
        return PipOptions(
            index=indexes[0] if indexes else "",
            extra_indexes=urls("extra-index"),
            find_links=urls("find-links"),
            prereleases=any(each.kind == "prereleases" for each in options),
            hashes=hashes,
        )

    def settled(self, found: list[tuple[_R, _At]]) -> tuple[str, ...]:
        """Sorted, each once; what excludes each other is a fault that names both lines."""
        kept: dict[str, dict[str, tuple[_R, _At]]] = {}
        for requirement, at in found:
            same = kept.setdefault(requirement.name, {})
            if requirement.text in same:
                before = same[requirement.text][1].line
                self.warn(f"{at.where}: {requirement.text} stands twice, first in line {before}.")
                continue
            if len(same) >= MAX_ALIKE:
                self.fault(
                    f"More than {MAX_ALIKE} requirements of {requirement.name}.",
                    at.where,
                    "Write them as one, such as 'numpy >=1.26,<3'.",
                )
                break
            for other, place in same.values():
                if requirement.excludes(other):
                    self.fault(
                        f"{other.text} (line {place.line}) and {requirement.text} "
                        f"(line {at.line}) exclude each other.",
                        at.where,
                        "Keep the one that you need.",
                    )
            same[requirement.text] = (requirement, at)
        return tuple(sorted(text for same in kept.values() for text in same))


# --- exclude-newer ----------------------------------------------------------------------------

_AGE = re.compile(r"(\d+)\s*(hours?|h|days?|d|weeks?|w|months?|years?|y)", re.IGNORECASE)
_DURATION = re.compile(r"P(?:(\d+)W|(?=\d|T\d)(?:(\d+)D)?(?:T(\d+)H)?)", re.IGNORECASE)
_HOURS = {"h": 1, "d": 24, "w": 7 * 24, "m": 30 * 24, "y": 365 * 24}
_MAX_AGE = timedelta(days=100 * 365)


def parse_exclude_newer(text: str) -> str:
    """ "", an ISO date or time (in UTC), or an age as `P7D` or `PT12H`.

    Raises:
        InvalidInputError: it is none of them.
    """
    text = text.strip()
    if not text:
        return ""
    age = _AGE.fullmatch(text)
    duration = _DURATION.fullmatch(text)
    if age:
        hours = int(age[1]) * _HOURS[age[2][0].lower()]
    elif duration:
        weeks, days, rest = (int(part or 0) for part in duration.groups())
        hours = (weeks * 7 + days) * 24 + rest
    else:
        return _iso(text)
    if timedelta(hours=1) * hours > _MAX_AGE:
        raise InvalidInputError(f"The age {printable(text)} is more than a hundred years.")
    return f"P{hours // 24}D" if hours % 24 == 0 else f"PT{hours}H"


def _iso(text: str) -> str:
    try:
        if re.fullmatch(r"\d{4}-\d\d-\d\d", text):
            return date.fromisoformat(text).isoformat()
        moment = datetime.fromisoformat(text)
        moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
        return moment.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    except (ValueError, OverflowError) as error:
        raise InvalidInputError(
            f"{printable(text)} is no date and no age.",
            hint="Write it like 2025-01-31, 2025-01-31T12:00:00Z, '7 days' or P7D.",
        ) from error


def newest_allowed(exclude_newer: str, now: datetime) -> datetime | None:
    """The moment that `parse_exclude_newer`'s answer means at `now`; a date holds to its end."""
    if not exclude_newer:
        return None
    if match := re.fullmatch(r"P(\d+)D|PT(\d+)H", exclude_newer):
        return now - timedelta(days=int(match[1] or 0), hours=int(match[2] or 0))
    moment = datetime.fromisoformat(exclude_newer)
    if len(exclude_newer) == len("2025-01-31"):
        return moment.replace(tzinfo=UTC) + timedelta(days=1)
    return moment
