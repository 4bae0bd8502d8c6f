"""Reading of `environment.yml`: one pass that gathers faults, warnings and credentials.

One file: all keys share the state of the pass (faults, warnings, credentials, line numbers).
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import TypeVar

from condastore.errors import FaultError, SpecificationError, StoreError
from environments.domain.default_channels import channels_of
from environments.domain.exclude_newer import parse_exclude_newer
from environments.domain.export_lists import export_list_root
from environments.domain.file_keys import CONDASTORE_KEYS, READ_KEYS, ignored_key_warning
from environments.domain.foreign_files import FOREIGN_HINT, foreign_kind, text_hint
from environments.domain.names import (
    ChannelRef,
    Credential,
    canonical_channel,
    did_you_mean,
    parse_platform,
    printable,
)
from environments.domain.pip_requirements import (
    NO_OPTIONS,
    PipOption,
    PipOptions,
    PipRequirement,
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
from environments.domain.specification import (
    MAX_DESCRIPTION,
    Defaults,
    SmokeTests,
    Specification,
    Submission,
)
from environments.domain.yaml_text import Node, read_yaml

MAX_DEPENDENCIES = 2_000
#: Maximum requirements of one package: each is compared with each.
MAX_ALIKE = 20
MAX_TESTS = 100
MAX_FAULTS = 100  # reported; of more, the number
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
#: A URL with a password.
_LOGIN = re.compile(r"(?i)\b[a-z][a-z0-9+.-]{0,15}://[^/\s?#@:]{0,200}:[^/\s?#@]{1,200}@")
_MODULE = re.compile(r"[^\W\d]\w*(?:\.[^\W\d]\w*)*")
_VIRTUAL = re.compile(r"__[a-z0-9][a-z0-9_-]*(?:=[A-Za-z0-9_.!+]+(?:=[A-Za-z0-9_.]+)?)?")

_T = TypeVar("_T")


_R = TypeVar("_R", CondaRequirement, PipRequirement)


@dataclass(frozen=True, slots=True)
class _At:
    """A requirement with its position."""

    where: str
    line: int


def lines_of(root: Node, key: str, last: int = sys.maxsize) -> range:
    """Return the line numbers from `key` to the next key, or to `last`."""
    lines = [name.line for name, _ in root.pairs]
    for (name, _), after in zip(root.pairs, [*lines[1:], last + 1], strict=False):
        if name.text == key:
            return range(name.line, max(after, name.line + 1))
    return range(0)


class EnvironmentFileReader:
    """Reads one environment file and collects its faults, warnings and credentials."""

    def __init__(self, defaults: Defaults) -> None:
        self.defaults = defaults
        self.faults: dict[tuple[str, str], FaultError] = {}  # by line and message
        self.warnings: dict[str, None] = {}
        self.credentials: dict[Credential, str] = {}  # with the position of the first occurrence
        self.extra_channels: dict[str, str] = {}  # first requirement that names the URL

    def read(self, text: str, root: Node) -> Submission:
        """Read an environment file; `root` is the parsed `text`, whose selectors apply."""
        if root.kind != "mapping":
            self.fault(
                f"The text is not an environment file: it is {root.described} without keys.",
                f"line {root.line}",
                text_hint(text),
            )
            raise self.error()
        if kind := foreign_kind(root):
            self.fault(
                f"The file is {kind}, not an environment file.", f"line {root.line}", FOREIGN_HINT
            )
            raise self.error()
        ours = root.get("condastore")
        if ours is not None and ours.kind != "mapping":
            self.expected("a mapping", ours, "condastore")
            ours = None
        self.check_file_keys(root)
        lines = lines_of(root, "dependencies")
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
        """Read the output of `conda list --export`."""
        root = export_list_root(text)
        submission = self.read("", root)
        channels = ", ".join(submission.specification.channels)
        self.warn(f"The list names no channels: its packages are searched in {channels}.")
        if not root.get("platforms").items:  # type: ignore[union-attr]
            platforms = ", ".join(submission.specification.platforms)
            self.warn(f"The list names no platform: {platforms} is assumed.")
        return replace(submission, source=text, warnings=tuple(self.warnings))

    # --- what was found

    def note_credentials(self, channel: ChannelRef, where: str) -> None:
        for credential in channel.credentials:
            self.credentials.setdefault(credential, where)

    def fault(self, message: str, where: str, hint: str | None = None) -> None:
        # Selectors differ by platform: one fault has several list indexes, but one line.
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
        """Warn about top-level keys that are not read; refuse the key that selects an index."""
        for name, value in root.pairs:
            if value.empty:
                continue  # conda-store writes `prefix: null`
            if name.text == "pip-repositories":
                self.fault(
                    "The environment selects a Python index.",
                    f"pip-repositories, line {name.line}",
                    "Remove the key: administrators configure the indexes.",
                )
            elif name.text not in READ_KEYS:
                self.warn(ignored_key_warning(name.text, name.line))

    def check_keys(self, node: Node, known: Sequence[str], prefix: str) -> None:
        for name, _ in node.pairs:
            if name.text not in known:
                where = f"{prefix}{printable(name.text).strip(chr(39))}, line {name.line}"
                hint = did_you_mean(name.text, known) or f"Known are: {', '.join(known)}."
                self.fault(f"{printable(name.text)} is not a known key.", where, hint)

    def entries(self, node: Node | None, where: str, what: str) -> Iterator[tuple[str, Node]]:
        """Yield the texts of a list with their positions; other items are faults."""
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
        """Return a text and its position."""
        if node is None or node.empty:
            return "", where
        if node.kind != "text":
            self.expected("text", node, where)
            return "", where
        return node.text, f"{where}, line {node.line}"

    def name(self, node: Node | None) -> str:
        """Return the name in the file; a path (written by `conda env export -p`) is ignored."""
        text, where = self.text(node, "name")
        if re.search(r"[/\\]", text):
            self.warn(
                f"{where}: the name is a path and is ignored: the request names the environment."
            )
            return ""
        if len(text) > 255 or re.search(r"[:#\x00-\x1f\x7f]", text) or text in (".", ".."):
            self.warn(
                f"{where}: {printable(text)} is not a valid name of an environment and is ignored."
            )
            return ""
        return text

    def description(self, node: Node | None) -> str:
        text, where = self.text(node, "condastore.description")
        if len(text) > MAX_DESCRIPTION:
            self.fault(
                f"The description has {len(text):,} characters; at most {MAX_DESCRIPTION:,}.",
                where,
                "Shorten it.",
            )
        return text.strip()

    def file_description(self, node: Node | None) -> str:
        """Return the top-level `description` that other tools write; a bad one is ignored.

        `condastore.description` takes precedence.
        """
        if node is None or node.empty:
            return ""
        if node.kind != "text":
            self.warn(f"Line {node.line}: 'description' is ignored: it is {node.described}.")
            return ""
        if len(node.text) > MAX_DESCRIPTION:
            self.warn(
                f"Line {node.line}: 'description' is ignored: it has {len(node.text):,} "
                f"characters, and the maximum is {MAX_DESCRIPTION:,}."
            )
            return ""
        return node.text.strip()

    def platforms(self, node: Node | None) -> tuple[str, ...]:
        found: dict[str, None] = {}
        for where, item in self.entries(node, "platforms", "platforms"):
            platform = self.attempt(lambda text=item.text: parse_platform(text), where)  # type: ignore[misc]
            if platform in found:
                self.warn(f"{where}: {platform} is listed twice.")
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
                    self.warn(f"{where}: the channel {channel.name} is listed twice.")
                urls[channel.url] = None
        if not urls:
            for entry in self.defaults.channels:
                for name in channels_of(entry, self.defaults.default_channels):
                    if channel := self.channel(name, "channels"):
                        urls[channel.url] = None
        return tuple(urls)

    def channel(self, text: str, where: str) -> ChannelRef | None:
        locations = {
            "alias": self.defaults.channel_alias,
            "hosted": self.defaults.hosted_channels,
        }
        channel = self.attempt(lambda: canonical_channel(text, **locations), where)
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
                    f"{printable(name.text)} is not a valid name of an environment variable.",
                    where,
                    "Use letters, digits and '_'; the first character must not be a digit.",
                )
            elif value.kind != "text":
                self.expected("text", value, f"variables.{name.text}")
            elif "\n" in value.text or "\r" in value.text:
                self.fault("The value contains a line break.", where, "Write it on one line.")
            else:
                found[name.text] = "" if value.empty else value.text
                if _LOGIN.search(found[name.text]):
                    self.warn(
                        f"{where}: the value contains a login, which everybody who may see the "
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
                self.fault(f"{name} is given twice: {found[name]} and {text}.", where, "Keep one.")
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
                    "Write the name that follows 'import', such as numpy.linalg.",
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
                f"{len(imports) + len(commands)} tests; the maximum is {MAX_TESTS}.",
                f"condastore.tests, line {node.line}",
                "Move them into a script of a package.",
            )
        return SmokeTests(imports=tuple(imports), commands=tuple(commands))

    # --- dependencies

    def requirements(
        self, text: str, root: Node, platforms: tuple[str, ...]
    ) -> tuple[dict[str, tuple[str, ...]], dict[str, tuple[str, ...]], dict[str, PipOptions]]:
        """Return the conda requirements, pip requirements and pip options by platform."""
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
        """Return the hint for a missing `dependencies` key, which is often misspelled."""
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
                f"{count:,} dependencies; the maximum is {MAX_DEPENDENCIES:,}.",
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
                    f"{at.where}: {requirement.name} is required from conda too; the conda package "
                    "is installed."
                )
        return self.settled(conda), self.settled(pip), self.pip_options(pip, options)

    def selected(self, item: Node, where: str, platform: str) -> Iterator[Node]:
        """Yield the packages of mamba's `sel(linux): gdb` that apply to `platform`."""
        for name, value in item.pairs:
            selector = mamba_selector(name.text)
            if selector is None:
                self.fault(
                    f"{printable(name.text)} is not a known selector.",
                    f"{where}, line {name.line}",
                    f"Use one of {', '.join(MAMBA_SELECTORS)}; a list allows no other key.",
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
        locations = {
            "alias": self.defaults.channel_alias,
            "hosted": self.defaults.hosted_channels,
        }
        defaults = self.defaults.default_channels
        parsed = self.attempt(
            lambda: parse_conda_requirement(item.text, default_channels=defaults, **locations),
            at.where,
        )
        if parsed is None:
            return
        requirement, channel = parsed
        if channel is not None:
            self.note_credentials(channel, at.where)
            urls = [channel.url]
            if channel.name == "defaults":  # a dependency of one may be in another
                urls = [canonical_channel(name, **locations).url for name in defaults]
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
                hint = did_you_mean(name.text, ("pip",)) or "Only 'pip:' is allowed here."
                if value.kind == "text" and not value.empty:
                    hint = "Write a version without ':', such as 'numpy =1.26'."
                self.fault(
                    f"{printable(name.text)} is not a known key here.",
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
        """Return the options of one pip part, with the hashes that its requirements name."""

        def urls(kind: str) -> tuple[str, ...]:
            return tuple(dict.fromkeys(each.url for each in options if each.kind == kind))

        hashes: dict[str, tuple[str, ...]] = {}
        for requirement, _ in found:
            if requirement.hashes:
                held = hashes.get(requirement.name, ())
                hashes[requirement.name] = tuple(sorted({*held, *requirement.hashes}))
        indexes = urls("index")
        for url in indexes[1:]:
            self.warn(f"--index-url {url}: the index {indexes[0]} was named before and is used.")
        return PipOptions(
            index=indexes[0] if indexes else "",
            extra_indexes=urls("extra-index"),
            find_links=urls("find-links"),
            prereleases=any(each.kind == "prereleases" for each in options),
            hashes=hashes,
        )

    def settled(self, found: list[tuple[_R, _At]]) -> tuple[str, ...]:
        """Return the requirements sorted and without duplicates; contradictions are faults."""
        retained: dict[str, dict[str, tuple[_R, _At]]] = {}
        for requirement, at in found:
            same = retained.setdefault(requirement.name, {})
            if requirement.text in same:
                before = same[requirement.text][1].line
                self.warn(
                    f"{at.where}: {requirement.text} is listed twice, first in line {before}."
                )
                continue
            if len(same) >= MAX_ALIKE:
                self.fault(
                    f"More than {MAX_ALIKE} requirements of {requirement.name}.",
                    at.where,
                    "Write them as one, such as 'numpy >=1.26,<3'.",
                )
                break
            for other, location in same.values():
                if requirement.excludes(other):
                    self.fault(
                        f"{other.text} (line {location.line}) and {requirement.text} "
                        f"(line {at.line}) exclude each other.",
                        at.where,
                        "Keep the one that you need.",
                    )
            same[requirement.text] = (requirement, at)
        return tuple(sorted(text for same in retained.values() for text in same))
