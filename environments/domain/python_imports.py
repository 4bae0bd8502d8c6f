"""Static discovery of the modules that importing a Python module loads.

A hint for the order of compilation, never a decision: a wrong answer costs time only. Sources are
matched by regular expressions of linear cost, not parsed, so hostile text cannot harm the reader.
Imports in functions, below `if TYPE_CHECKING` and below `if __name__` are left out, as importing
the module does not run them; those in `try` and other blocks count.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping

#: Maximum bytes read of one import statement, and of its line.
_LONGEST_STATEMENT, _LONGEST_LINE = 1 << 14, 1 << 10
#: Lines that open a block or import. (A leading newline in place of `^` is twice as fast.)
_LINE = re.compile(
    rb"\n([ \t]*)(async def|def|class|if|elif|else|try|except|finally|with|for|while|import|from)\b"
)
#: `__getattr__` of a module usually runs during imports, too.
_SKIPPED_FUNCTION = re.compile(rb"[ \t]+(?!__getattr__\b)")
_SKIPPED_CONDITION = re.compile(rb"\s*(?:(?:[A-Za-z_]\w*\.)?TYPE_CHECKING|__name__)\b")
_FROM = re.compile(rb"[ \t]+(\.{0,20})[ \t]*([A-Za-z_][\w.]*)?[ \t]+import[ \t]*(\(?)")
_NAME = re.compile(rb"[A-Za-z_]\w*")
_DOTTED = re.compile(rb"[A-Za-z_][\w.]*")
_COMMENT = re.compile(rb"#[^\n]*")
_ALIAS = re.compile(rb"\bas[ \t]+[A-Za-z_]\w*")


def imported_names(source: bytes, *, module: str, is_package: bool) -> list[str]:
    """Return the dotted names that importing `module` may load, in order of appearance.

    Args:
        source: text of the module.
        module: its dotted name; relative imports start there.
        is_package: True for an `__init__.py`.
    Returns:
        Absolute names. `from a import b` gives `a` and `a.b`, which need not be a module.
    """
    found: dict[str, None] = {}
    skipped: int | None = None  # indentation of a block that is not run at import
    source = b"\n" + source + b"\n"
    for match in _LINE.finditer(source):
        indent, word = len(match[1]), match[2]
        if skipped is not None:
            if indent > skipped:
                continue
            skipped = None
        if word == b"import":
            rest = source[match.end() : source.find(b"\n", match.end())][:_LONGEST_LINE]
            for name in _DOTTED.findall(_ALIAS.sub(b"", _COMMENT.sub(b"", rest))):
                found[_text(name)] = None
        elif word == b"from":
            for name in _names_from(source, match, module=module, is_package=is_package):
                found[name] = None
        elif word == b"if":
            if _SKIPPED_CONDITION.match(source, match.end()):
                skipped = indent
        elif word.endswith(b"def") and _SKIPPED_FUNCTION.match(source, match.end()):
            skipped = indent
    return list(found)


def _names_from(
    source: bytes, match: re.Match[bytes], *, module: str, is_package: bool
) -> Iterable[str]:
    statement = _FROM.match(source, match.end(), match.end() + 400)
    if statement is None:
        return
    base = _text(statement[2] or b"")
    if dots := len(statement[1]):
        parts = module.split(".")
        levels = len(parts) - dots + is_package
        if levels < 1:
            return
        parts = parts[:levels]
        base = ".".join([*parts, base] if base else parts)
    yield base
    end = _LONGEST_STATEMENT + statement.end()
    if statement[3]:
        close = source.find(b")", statement.end(), end)
    else:
        close = source.find(b"\n", statement.end(), end)
    names = source[statement.end() : close if close >= 0 else end]
    for name in _NAME.findall(_ALIAS.sub(b"", _COMMENT.sub(b"", names))):
        yield f"{base}.{_text(name)}"


def _text(name: bytes) -> str:
    return name.decode("ascii", "replace")


def import_closure(
    roots: Iterable[str],
    modules: Mapping[str, str],
    read: Callable[[str], bytes],
    *,
    most: int,
) -> list[str]:
    """Return the modules that importing `roots` loads, breadth first.

    Args:
        roots: dotted names.
        modules: path by dotted name of all considered modules; that of a package ends with
            `/__init__.py`.
        read: source of the module of that name; b"" if it cannot be read.
        most: number of modules after which the search ends.
    Returns:
        Names of `modules`; a package comes before what is in it.
    """
    found: dict[str, None] = {}
    pending = list(roots)
    for name in pending:  # grows
        parts = name.split(".")
        for end in range(1, len(parts) + 1):
            module = ".".join(parts[:end])
            if module in found or module not in modules:  # a namespace, an extension, or nothing
                continue
            if len(found) >= most:
                return list(found)
            found[module] = None
            is_package = modules[module].endswith("/__init__.py")
            pending += imported_names(read(module), module=module, is_package=is_package)
    return list(found)
