"""Edits of the text of an environment file that keep its comments, order and layout.

Changes are spliced into the text at the positions of the parsed values. Writing the file anew, also
by a round trip of ruamel.yaml, changes indentation and drops the comments below a removed entry.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from difflib import SequenceMatcher
from typing import Any

import yaml

from condastore.errors import InvalidInputError
from environments.domain.yaml_text import checked_text, read_yaml

#: Maximum size of a text with a form, in bytes; longer texts are edited as text.
MAX_FORM_BYTES = 65_536
#: Maximum number of items of a field: lists are compared item by item.
MAX_ITEMS = 1_000
_DASH = re.compile(r"\s*-\s+")
_NAME_END = re.compile(r"[\s=<>!~\[,|]")


@dataclass(frozen=True, slots=True, kw_only=True)
class FileFields:
    """Values of an environment file as written: selectors are not applied, nothing is checked."""

    dependencies: tuple[str, ...] = ()
    pip: tuple[str, ...] = ()
    channels: tuple[str, ...] = ()
    platforms: tuple[str, ...] = ()
    variables: tuple[tuple[str, str], ...] = ()
    virtual_packages: tuple[str, ...] = ()
    imports: tuple[str, ...] = ()
    commands: tuple[str, ...] = ()
    description: str = ""
    exclude_newer: str = ""


#: Keys that lead to each field; `pip` is an entry of the list of dependencies.
PATHS: Mapping[str, tuple[str, ...]] = {
    "channels": ("channels",),
    "platforms": ("platforms",),
    "dependencies": ("dependencies",),
    "pip": ("dependencies", "pip"),
    "variables": ("variables",),
    "virtual_packages": ("condastore", "virtual-packages"),
    "imports": ("condastore", "tests", "imports"),
    "commands": ("condastore", "tests", "commands"),
    "description": ("condastore", "description"),
    "exclude_newer": ("condastore", "exclude-newer"),
}


def split_requirement(text: str) -> tuple[str, str]:
    """Split `numpy >=1.26` into the name, with its channel, and the rest."""
    found = _NAME_END.search(text)
    return (text[: found.start()], text[found.start() :].strip()) if found else (text, "")


def join_requirement(name: str, version: str, *, was: str = "") -> str:
    """Join a name and a version, in the spacing of the earlier text `was`."""
    name, version = name.strip(), version.strip()
    if not version or not name:
        return name
    before, rest = split_requirement(was)
    tight = bool(rest) and was[len(before)] != " " and not version[0].isalnum()
    return f"{name}{version}" if tight or version.startswith("[") else f"{name} {version}"


def read_fields(text: str) -> FileFields:
    """Read the values of a file that can be edited by its fields.

    Raises:
        SpecificationError: the text is not YAML within the limits.
        InvalidInputError: the text is too long, has no keys, or uses aliases.
    """
    found = _fields_of(_root(_checked(text)))
    _require_few(found)
    return found


def requirement_lines(text: str) -> tuple[tuple[str, int], ...]:
    """Return the conda requirements of a file with their line numbers, from 1."""
    node = _value(_root(_checked(text)), ("dependencies",))
    if not isinstance(node, yaml.SequenceNode):
        return ()
    return tuple(
        (child.value, child.start_mark.line + 1) for child in _scalars(node) if not _empty(child)
    )


def with_fields(text: str, *, base: FileFields, changed: FileFields) -> str:
    """Apply the differences between `base` and `changed` to the text.

    The text may have changed since `base` was read: differences in both are merged, and of two
    changes of one value the one in `changed` wins.

    Raises:
        SpecificationError: the text is not YAML within the limits.
        InvalidInputError: the text has a form in which a value cannot be changed.
    """
    _require_few(changed)
    text = _checked(text)
    if text and not text.endswith("\n"):
        text += "\n"
    for field in fields(FileFields):
        before, after = getattr(base, field.name), getattr(changed, field.name)
        if before == after:
            continue
        now = getattr(_fields_of(_root(text)), field.name)
        wanted = after if now == before else _merged(before, after, now)
        if wanted == now:
            continue
        result = _with_value(text, field.name, wanted)
        read = getattr(_fields_of(_root(result)), field.name)
        if sorted(read) != sorted(wanted):
            raise _not_editable(field.name)
        text = result
    return text


def with_requirement(text: str, was: str, becomes: str) -> str:
    """Replace the conda requirement `was`, remove it if `becomes` is empty, add it without `was`.

    Raises: as `with_fields`.
    """
    now = read_fields(text)
    listed = list(now.dependencies)
    if not was:
        listed.append(becomes)
    elif was in listed:
        index = listed.index(was)
        listed[index : index + 1] = [becomes] if becomes else []
    return with_fields(text, base=now, changed=replace(now, dependencies=tuple(listed)))


def _require_few(values: FileFields) -> None:
    for field in fields(FileFields):
        value = getattr(values, field.name)
        if not isinstance(value, str) and len(value) > MAX_ITEMS:
            raise InvalidInputError(
                f"More than {MAX_ITEMS:,} entries.", where=field.name, hint="Edit them as text."
            )


# --- reading


def _checked(text: str) -> str:
    text = checked_text(text, max_bytes=MAX_FORM_BYTES)
    if all(not line.strip() or line.lstrip().startswith("#") for line in text.split("\n")):
        return text
    read_yaml(text)
    return text


def _root(text: str) -> yaml.MappingNode | None:
    """Compose a text that `_checked` has passed; None for one without content."""
    if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, yaml.CSafeLoader)):
        raise InvalidInputError("The text uses aliases (*).", hint="Edit it as text.")
    root = yaml.compose(text, Loader=yaml.CSafeLoader)
    if root is None:
        return None
    if not isinstance(root, yaml.MappingNode) or root.flow_style:
        raise InvalidInputError(
            "The text is not an environment file with one key per line.", hint="Edit it as text."
        )
    return root


def _pair(node: yaml.Node | None, key: str) -> tuple[yaml.Node, yaml.Node] | None:
    if not isinstance(node, yaml.MappingNode):
        return None
    return next(((name, value) for name, value in node.value if name.value == key), None)


def _find(root: yaml.Node | None, path: Sequence[str]) -> tuple[yaml.Node, yaml.Node] | None:
    """Return the key and value at the path; lists are searched for the first mapping."""
    node, found = root, None
    for key in path:
        if isinstance(node, yaml.SequenceNode):
            pairs = (_pair(child, key) for child in node.value)
            found = next((pair for pair in pairs if pair), None)
        else:
            found = _pair(node, key)
        if found is None:
            return None
        node = found[1]
    return found


def _value(root: yaml.Node | None, path: Sequence[str]) -> yaml.Node | None:
    found = _find(root, path)
    return found[1] if found else None


def _scalars(node: yaml.Node) -> list[yaml.ScalarNode]:
    return [child for child in node.value if isinstance(child, yaml.ScalarNode)]


def _empty(node: yaml.Node) -> bool:
    return isinstance(node, yaml.ScalarNode) and node.tag == "tag:yaml.org,2002:null"


def _fields_of(root: yaml.Node | None) -> FileFields:
    values: dict[str, Any] = {}
    for name, path in PATHS.items():
        node = _value(root, path)
        if name == "variables":
            pairs = node.value if isinstance(node, yaml.MappingNode) else ()
            values[name] = tuple(
                (key.value, "" if _empty(value) else value.value)
                for key, value in pairs
                if isinstance(value, yaml.ScalarNode)
            )
        elif name in ("description", "exclude_newer"):
            text = isinstance(node, yaml.ScalarNode) and not _empty(node)
            values[name] = node.value.strip() if text and node is not None else ""
        else:
            items = _scalars(node) if isinstance(node, yaml.SequenceNode) else ()
            values[name] = tuple(item.value for item in items if not _empty(item))
    return FileFields(**values)


# --- merging


def _merged(before: Any, after: Any, now: Any) -> Any:
    """Apply the difference of two values to a third one."""
    if isinstance(after, str):
        return after
    merged = list(now)
    for action, start, end, first, last in _opcodes(before, after):
        if action == "equal":
            continue
        old, new = list(before[start:end]), list(after[first:last])
        for index, item in enumerate(new):
            if index < len(old) and old[index] in merged:
                merged[merged.index(old[index])] = item
            elif item not in merged:
                merged.append(item)
        for item in old[len(new) :]:
            if item in merged:
                merged.remove(item)
    return tuple(merged)


def _opcodes(old: Sequence[Any], new: Sequence[Any]) -> Sequence[tuple[str, int, int, int, int]]:
    if len(set(old)) < len(old) or len(set(new)) < len(new):  # slow where items repeat
        short, same, tail = min(len(old), len(new)), 0, 0
        while same < short and old[same] == new[same]:
            same += 1
        while tail < short - same and old[-1 - tail] == new[-1 - tail]:
            tail += 1
        return [("replace", same, len(old) - tail, same, len(new) - tail)]
    return SequenceMatcher(None, list(old), list(new), autojunk=False).get_opcodes()


# --- writing


@dataclass(frozen=True, slots=True, order=True)
class _Splice:
    start: int
    end: int
    text: str


def _apply(text: str, splices: Iterable[_Splice]) -> str:
    for splice in sorted(splices, reverse=True):
        text = text[: splice.start] + splice.text + text[splice.end :]
    return text


def _with_value(text: str, name: str, wanted: Any) -> str:
    root, path = _root(text), PATHS[name]
    found = _find(root, path)
    if found is None:
        return _with_new_key(text, root, path, wanted) if wanted else text
    key, value = found
    lines = _Lines(text)
    if isinstance(wanted, str):
        if not wanted:
            return _apply(text, [lines.removal(key, value)])
        return _apply(text, [_scalar_splice(text, key, value, wanted)])
    kind = yaml.MappingNode if name == "variables" else yaml.SequenceNode
    if not _empty(value) and not isinstance(value, kind):
        raise _not_editable(name)
    if isinstance(value, yaml.CollectionNode) and value.flow_style:
        written = _flow(text, value, wanted)
        return _apply(text, [_Splice(value.start_mark.index, value.end_mark.index, written)])
    if _empty(value):
        indent = " " * (key.start_mark.column + 2)
        block = "".join(f"{indent}{line}\n" for line in _entries(wanted))
        here = lines.end(key.start_mark.line)
        return _apply(text, [*_null_removal(value), _Splice(here, here, block)])
    if isinstance(value, yaml.MappingNode):
        return _apply(text, _mapping_splices(text, value, wanted))
    return _apply(text, _list_splices(text, value, wanted))


def _null_removal(value: yaml.Node) -> list[_Splice]:
    """Remove a written `null` or `~`."""
    return [_Splice(value.start_mark.index, value.end_mark.index, "")] if value.value else []


class _Lines:
    """Offsets of the lines of a text whose last line ends in a line feed."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.starts = [0, *(found.end() for found in re.finditer("\n", text))]

    def end(self, line: int) -> int:
        return self.starts[min(line + 1, len(self.starts) - 1)]

    def removal(self, first: yaml.Node, last: yaml.Node) -> _Splice:
        """Remove the lines of one entry."""
        start = self.starts[first.start_mark.line]
        before = self.text[start : first.start_mark.index]
        if before.strip(" -") or before.count("-") > 1:
            raise _not_editable(str(first.value))
        if "-" in before and isinstance(last, yaml.CollectionNode):
            raise _not_editable(str(first.value))
        end = first.start_mark.line if _empty(last) else _last_line(last)
        return _Splice(start, self.end(end), "")


def _last_line(node: yaml.Node) -> int:
    """Return the last line of a value, without the comments below it."""
    if isinstance(node, yaml.CollectionNode) and not node.flow_style and node.value:
        child = node.value[-1]
        key, value = child if isinstance(child, tuple) else (child, child)
        line: int = key.start_mark.line if _empty(value) else _last_line(value)
        return line
    end = node.end_mark
    before = end.column == 0 and end.line > node.start_mark.line
    return int(end.line) - before


def _scalar_splice(text: str, key: yaml.Node, value: yaml.Node, wanted: str) -> _Splice:
    if not isinstance(value, yaml.ScalarNode):
        raise _not_editable(str(key.value))
    if _empty(value) and not value.value:
        after = text.index(":", key.end_mark.index) + 1
        return _Splice(after, after, f" {_scalar(wanted)}")
    start, end = value.start_mark.index, value.end_mark.index
    written = text[start:end].rstrip() if value.style in ("|", ">") else text[start:end]
    return _Splice(start, start + len(written), _scalar(wanted, style=value.style))


def _list_splices(text: str, node: yaml.Node, wanted: Sequence[str]) -> Iterator[_Splice]:
    lines = _Lines(text)
    items = [item for item in _scalars(node) if not _empty(item)]
    first = node.value[0]
    dash = _DASH.match(text, lines.starts[first.start_mark.line])
    if dash is None or dash.end() != first.start_mark.index:
        raise _not_editable("the list")
    indent = " " * node.start_mark.column
    for action, start, end, begin, stop in _opcodes([item.value for item in items], wanted):
        if action == "equal":
            continue
        old, new = items[start:end], list(wanted[begin:stop])
        for item, becomes in zip(old, new, strict=False):
            yield _scalar_splice(text, item, item, becomes)
        for item in old[len(new) :]:
            yield lines.removal(item, item)
        if more := new[len(old) :]:
            before = items[end - 1] if end else None
            here = lines.end(_last_line(before)) if before else lines.starts[first.start_mark.line]
            yield _Splice(here, here, "".join(f"{indent}- {_scalar(item)}\n" for item in more))


def _mapping_splices(
    text: str, node: yaml.Node, wanted: Sequence[tuple[str, str]]
) -> Iterator[_Splice]:
    lines, left = _Lines(text), dict(wanted)
    for key, value in node.value:
        if not isinstance(value, yaml.ScalarNode):
            continue
        if key.value not in left:
            yield lines.removal(key, value)
            continue
        becomes = left.pop(key.value)
        if becomes != ("" if _empty(value) else value.value):
            yield _scalar_splice(text, key, value, becomes)
    here = lines.end(_last_line(node))
    indent = " " * node.start_mark.column
    entries = "".join(f"{indent}{line}\n" for line in _entries(left))
    if entries:
        yield _Splice(here, here, entries)


def _flow(text: str, node: yaml.Node, wanted: Any) -> str:
    if isinstance(node, yaml.MappingNode):
        pairs = (f"{_scalar(key, flow=True)}: {_scalar(v, flow=True)}" for key, v in wanted)
        return f"{{{', '.join(pairs)}}}"
    old = {item.value: text[item.start_mark.index : item.end_mark.index] for item in _scalars(node)}
    parts = [old.get(item) or _scalar(item, flow=True) for item in wanted]
    parts += [
        text[child.start_mark.index : child.end_mark.index]
        for child in node.value
        if isinstance(child, yaml.CollectionNode)
    ]
    return f"[{', '.join(parts)}]"


def _with_new_key(text: str, root: yaml.Node | None, path: Sequence[str], wanted: Any) -> str:
    """Add a key with its missing parents, after the last entry of the deepest one that exists."""
    depth = max(n for n in range(len(path)) if n == 0 or _find(root, path[:n]))
    key, parent = _find(root, path[:depth]) or (None, root)
    block = list(_nested(path[depth:], wanted))
    lines = _Lines(text)
    if key is None:
        return text + "".join(f"{line}\n" for line in block)
    in_list = path[0] == "dependencies"
    if in_list:
        block = [f"- {block[0]}", *(f"  {line}" for line in block[1:])]
    splices: list[_Splice] = []
    if parent is None or _empty(parent):
        column, last = key.start_mark.column + 2, key.start_mark.line
        splices = _null_removal(parent) if parent is not None else []
    elif isinstance(parent, yaml.CollectionNode) and not parent.flow_style:
        column, last = parent.start_mark.column, _last_line(parent)
    elif isinstance(parent, yaml.SequenceNode) and in_list:
        inner = ", ".join(_scalar(item, flow=True) for item in wanted)
        start, end = parent.start_mark.index, parent.end_mark.index
        held = text[start + 1 : end - 1].strip().rstrip(",")
        parts = [held] if held else []
        return _apply(text, [_Splice(start, end, f"[{', '.join([*parts, f'pip: [{inner}]'])}]")])
    else:
        raise _not_editable(path[-1])
    here = lines.end(last)
    added = "".join(f"{' ' * column}{line}\n" for line in block)
    return _apply(text, [*splices, _Splice(here, here, added)])


def _nested(path: Sequence[str], wanted: Any) -> Iterator[str]:
    key, *rest = path
    if rest:
        yield f"{key}:"
        below = list(_nested(rest, wanted))
        dash = "- " if key == "dependencies" else ""  # `pip` is an entry of this list
        yield f"  {dash}{below[0]}"
        yield from (f"  {' ' * len(dash)}{line}" for line in below[1:])
    elif isinstance(wanted, str):
        yield f"{key}: {_scalar(wanted)}"
    else:
        yield f"{key}:"
        yield from (f"  {line}" for line in _entries(wanted))


def _entries(wanted: Any) -> Iterator[str]:
    """Yield the lines of a list of texts, or of pairs of texts."""
    for item in wanted.items() if isinstance(wanted, dict) else wanted:
        if isinstance(item, tuple):
            yield f"{_scalar(item[0])}: {_scalar(item[1])}"
        else:
            yield f"- {_scalar(item)}"


def _scalar(text: str, *, flow: bool = False, style: str | None = None) -> str:
    """Write a text as a YAML scalar: quoted as before, plain, or in double quotes."""
    if style == "'" and "\n" not in text:
        return "'" + text.replace("'", "''") + "'"
    if style != '"' and _is_plain(text, flow=flow):
        return text
    return json.dumps(text, ensure_ascii=False)


def _is_plain(text: str, *, flow: bool) -> bool:
    try:
        found = yaml.load(f"[{text}]" if flow else f"- {text}\n", Loader=yaml.CSafeLoader)
    except (yaml.YAMLError, ValueError):
        return False
    # A key in a mapping must not become a mapping of its own: `a: b` is not equal to its text.
    return bool(found == [text]) and "\n" not in text


def _not_editable(what: str) -> InvalidInputError:
    return InvalidInputError(
        f"{what} is written in a form that only the text can change.",
        where=what,
        hint="Change it in environment.yml.",
    )
