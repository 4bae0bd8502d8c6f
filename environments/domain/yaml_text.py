"""Parse untrusted YAML within limits, with the line of every value."""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

import yaml

from condastore.errors import FaultError, SpecificationError
from environments.domain.json_text import JsonTextError, parse_strict_json
from environments.domain.names import printable

#: Maximum nesting depth of lists and mappings.
MAX_DEPTH = 20
#: Maximum number of values in a file; each use of an alias counts.
MAX_VALUES = 400_000
MAX_ALIASES = 20

# Tab, line feed and carriage return are text; so is the byte order mark at the very start.
# U+0085, U+2028 and U+2029 end a line in YAML, but not in most editors.
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff\ufffe\uffff]")
_LINE_END = re.compile("\r\n?")
_UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
#: JSON escapes characters beyond U+FFFF as two escapes; YAML uses one of eight digits.
_PAIR = re.compile(r"(?i)(?<!\\)((?:\\\\)*)\\u(d[89ab][0-9a-f]{2})\\u(d[c-f][0-9a-f]{2})")
_NULLS = frozenset({"", "~", "null", "Null", "NULL"})
_PLAIN_WORDS = (
    ("cannot start any token", "This character cannot start a value."),
    ("did not find expected key", "A key, or the end of this block, was expected here."),
    ("did not find expected '-'", "An entry that starts with '-' was expected here."),
    ("mapping values are not allowed", "A ':' is not allowed here."),
    ("could not find expected ':'", "A key has no ':'."),
    ("unexpected end of stream", "The text ends inside of quotes."),
    ("did not find expected ',' or ']'", "A list that starts with '[' is not closed."),
    ("did not find expected ',' or '}'", "A mapping that starts with '{' is not closed."),
    ("did not find expected <document start>", "There is more text after the end of the content."),
    ("undefined alias", "An alias (*) has no anchor (&)."),
    ("did not find expected node content", "A value is missing here."),
    ("block sequence entries are not allowed", "A list cannot start here."),
)


@dataclass(slots=True, kw_only=True)
class Node:
    """One value of a YAML text; scalars keep the text that was written (`1.10` stays `1.10`)."""

    kind: Literal["text", "list", "mapping"]
    line: int  # from 1
    text: str = ""
    plain: bool = False  # unquoted: may be a number, a boolean or null
    items: list[Node] = field(default_factory=list)
    pairs: list[tuple[Node, Node]] = field(default_factory=list)

    @property
    def empty(self) -> bool:
        """Whether the value is empty: `key:` or `key: null`."""
        return self.kind == "text" and self.plain and self.text in _NULLS

    @property
    def described(self) -> str:
        if self.empty:
            return "nothing"
        return {"text": "text", "list": "a list", "mapping": "a mapping"}[self.kind]

    def get(self, key: str) -> Node | None:
        return next((value for name, value in self.pairs if name.text == key), None)

    def values(self) -> Iterator[tuple[str, Node]]:
        return ((name.text, value) for name, value in self.pairs)


def checked_text(text: str | bytes, *, max_bytes: int) -> str:
    """Return `text` as a string whose lines end in a line feed, without a byte order mark.

    As in YAML, a carriage return ends a line, alone or before a line feed.

    Args:
        text: bytes are UTF-8, or UTF-16 with a byte order mark, which PowerShell writes.

    Raises:
        SpecificationError: it has more than `max_bytes`, another encoding, or control characters.
    """
    size = len(text) if isinstance(text, bytes) else len(text.encode(errors="surrogatepass"))
    if size > max_bytes:
        raise _fault(
            f"The text has {size:,} bytes; the maximum is {max_bytes:,}.",
            hint="Remove parts that are not needed, or split it into two environments.",
        )
    if isinstance(text, bytes):
        encoding = "utf-16" if text.startswith(_UTF_16) else "utf-8"
        try:
            text = text.decode(encoding)
        except UnicodeDecodeError as error:
            line = error.object[: error.start].count(b"\n") + 1
            raise _fault(
                "The text is not UTF-8.", line=line, hint="Save the file as UTF-8."
            ) from error
    text = _LINE_END.sub("\n", text.removeprefix("\ufeff"))
    strange = _CONTROL.search(text)
    if strange is not None:
        line = text.count("\n", 0, strange.start()) + 1
        code = ord(strange[0])
        surrogate = 0xD800 <= code <= 0xDFFF
        raise _fault(
            "The text is not UTF-8."
            if surrogate
            else f"The text contains a control character (U+{code:04X}).",
            line=line,
            hint="Save the file as UTF-8." if surrogate else "Remove the character.",
        )
    return text


def read_yaml(text: str) -> Node:
    """Parse the one document of `text`, which `checked_text` has passed; JSON is read too.

    Raises:
        SpecificationError: it is not YAML, is too deep or too large, repeats a key, or uses what
            is not read here (tags, merge keys, several documents). Repeated keys are all reported.
    """
    builder = _Builder()
    if text.lstrip().startswith("{") and _PAIR.search(text) and _is_json(text):
        text = _PAIR.sub(_one_escape, text)
    try:
        return builder.read(text)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 0
        raise _yaml_fault(text, error.problem or "", line) from error
    except yaml.YAMLError as error:
        raise _fault("The text is not YAML.") from error


def _is_json(text: str) -> bool:
    try:
        parse_strict_json(text)
    except JsonTextError:
        return False
    return True


def _one_escape(match: re.Match[str]) -> str:
    high, low = int(match[2], 16), int(match[3], 16)
    return f"{match[1]}\\U{0x10000 + ((high - 0xD800) << 10) + (low - 0xDC00):08X}"


class _Builder:
    """Builds the nodes from the parser's events: no recursion, so that depth costs nothing."""

    def __init__(self) -> None:
        self.anchors: dict[str, Node] = {}
        self.sizes: dict[int, int] = {}  # id of an anchored node -> values in it
        self.aliases = self.values = 0
        self.faults: list[FaultError] = []

    def read(self, text: str) -> Node:
        root: Node | None = None
        # (node, key that waits for its value, keys so far with their lines, count at its start)
        stack: list[tuple[Node, list[Node], dict[str, int], str, int]] = []
        documents = 0
        for event in yaml.parse(text, Loader=yaml.CSafeLoader):
            if isinstance(event, yaml.NodeEvent):
                line = _line(event)
                node = self._node(event, line)
                if stack:
                    self._add(node, stack[-1])
                else:
                    root = node
                if isinstance(event, yaml.CollectionStartEvent):
                    if len(stack) >= MAX_DEPTH:
                        raise _fault(
                            f"Lists and mappings are nested more than {MAX_DEPTH} deep.", line=line
                        )
                    stack.append((node, [], {}, event.anchor or "", self.values))
            elif isinstance(event, yaml.CollectionEndEvent):
                node, _, _, anchor, before = stack.pop()
                if anchor:
                    # Only now: an alias inside of its own anchor would never end.
                    self.anchors[anchor] = node
                    self.sizes[id(node)] = self.values - before + 1
            elif isinstance(event, yaml.DocumentStartEvent):
                documents += 1
                if documents > 1:
                    raise _fault(
                        "A second document starts here.",
                        line=_line(event),
                        hint="Keep one document; remove the line '---'.",
                    )
        if self.faults:
            raise SpecificationError(self.faults)
        if root is None:
            raise _fault("The text is empty.")
        return root

    def _node(self, event: yaml.NodeEvent, line: int) -> Node:
        if isinstance(event, yaml.AliasEvent):
            self.aliases += 1
            held = self.anchors.get(event.anchor or "")
            if held is None:
                raise _fault("An alias (*) without an anchor (&) before it.", line=line)
            self.values += self.sizes[id(held)]
            self._limit(line)
            return held
        tag = event.tag if isinstance(event, yaml.ScalarEvent | yaml.CollectionStartEvent) else None
        if tag is not None and tag not in ("!", "tag:yaml.org,2002:str"):
            raise _fault(
                f"The tag {printable(tag)} is not read here.", line=line, hint="Remove the tag."
            )
        self.values += 1
        self._limit(line)
        if isinstance(event, yaml.ScalarEvent):
            plain = bool(event.implicit[0])
            node = Node(kind="text", line=line, text=event.value, plain=plain)
            if event.anchor:
                self.anchors[event.anchor] = node
                self.sizes[id(node)] = 1
            return node
        is_list = isinstance(event, yaml.SequenceStartEvent)
        return Node(kind="list" if is_list else "mapping", line=line)

    def _limit(self, line: int) -> None:
        if self.aliases > MAX_ALIASES:
            raise _fault(
                f"More than {MAX_ALIASES} aliases (*) are used.",
                line=line,
                hint="Write the values out.",
            )
        if self.values > MAX_VALUES:
            raise _fault(
                f"The text holds more than {MAX_VALUES:,} values, with those that aliases repeat.",
                line=line,
            )

    def _add(self, node: Node, parent: tuple[Node, list[Node], dict[str, int], str, int]) -> None:
        holder, waiting, lines, _, _ = parent
        if holder.kind == "list":
            holder.items.append(node)
        elif waiting:
            holder.pairs.append((waiting.pop(), node))
        elif node.kind == "mapping":  # also what YAML makes of `{{ package }}`
            raise _fault(
                "A mapping stands where a key must be; templates are not read.",
                line=node.line,
                hint="Render the file first, and submit the result.",
            )
        elif node.kind != "text":
            raise _fault("A key must be text.", line=node.line)
        elif node.text == "<<" and node.plain:
            raise _fault(
                "Merge keys (<<) are not read here.", line=node.line, hint="Write the values out."
            )
        else:
            waiting.append(node)
            first = lines.get(node.text)
            if first is None:
                lines[node.text] = node.line
            else:
                self.faults.append(
                    FaultError(
                        f"The key {printable(node.text)} is listed twice: lines {first} and "
                        f"{node.line}.",
                        where=f"line {node.line}",
                        hint="Keep one of the two.",
                    )
                )


def _line(event: yaml.Event) -> int:
    return event.start_mark.line + 1 if event.start_mark else 0


def _yaml_fault(text: str, problem: str, line: int) -> SpecificationError:
    lines = text.splitlines()
    written = lines[line - 1] if 0 < line <= len(lines) else ""
    if "\t" in written[: len(written) - len(written.lstrip())]:
        message, hint = "The line is indented with a tab.", "Indent with spaces."
    else:
        message = next((words for key, words in _PLAIN_WORDS if key in problem), "")
        message = message or f"The text is not YAML: {problem}."
        hint = "Check the indentation and the quotes here and in the line above."
        if written.lstrip().startswith(("@", "`", "%", "*")):
            hint = "Put the value in quotes."
    return _fault(message, line=line, hint=hint)


def _fault(message: str, *, line: int = 0, hint: str | None = None) -> SpecificationError:
    where = f"line {line}" if line else ""
    return SpecificationError([FaultError(message, where=where, hint=hint)])
