"""Limits of one GraphQL request: depth, aliases, tokens and the number of objects."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from django.conf import settings
from graphql import (
    DocumentNode,
    FieldNode,
    FragmentDefinitionNode,
    FragmentSpreadNode,
    GraphQLError,
    GraphQLSyntaxError,
    InlineFragmentNode,
    IntValueNode,
    Node,
    OperationDefinitionNode,
    SelectionSetNode,
    VariableNode,
    Visitor,
    parse,
    validate,
    visit,
)
from strawberry.extensions import SchemaExtension

from environments.graphql._private import graphql_schema, names_operation

#: Fields that give a list without pages; what they are taken to hold on average.
SHORT_LISTS = frozenset(
    {
        "tags",
        "events",
        "timings",
        "verdicts",
        "downloads",
        "grants",
        "tokens",
        "roles",
        "waiting",
        "approvals",
        "quotas",
        "planned",
    }
)
SHORT_LIST = 10
#: The size of an answer, in pages of the largest size.
PAGES = 100
#: Levels of lists and objects in a variable or a value of the document, such as a filter.
VALUE_DEPTH = 24
#: Documents that are remembered, and their length at most, in characters.
KEPT, SHORT = 256, 20_000


@dataclass(frozen=True, slots=True)
class Cost:
    """Of a selection, all fragments filled in."""

    depth: int = 0
    aliases: int = 0
    objects: int = 0


class Measure:
    """Costs of the selections of one document.

    Each fragment is looked at once, however often it is used: a document of nested fragments
    stands for exponentially many fields, and must be refused without counting them one by one.
    """

    def __init__(self, document: DocumentNode, variables: Mapping[str, Any]) -> None:
        self.variables = variables
        self.fragments = {
            node.name.value: node
            for node in document.definitions
            if isinstance(node, FragmentDefinitionNode)
        }
        self._known: dict[str, Cost] = {}

    def of(self, selection: SelectionSetNode | None) -> Cost:
        depth = aliases = objects = 0
        for node in selection.selections if selection else ():
            cost = self._one(node)
            depth = max(depth, cost.depth)
            aliases += cost.aliases
            objects += cost.objects
        return Cost(depth, aliases, objects)

    def _one(self, node: Node) -> Cost:
        if isinstance(node, FieldNode):
            return self._field(node)
        if isinstance(node, InlineFragmentNode):
            return self.of(node.selection_set)
        assert isinstance(node, FragmentSpreadNode)
        name = node.name.value
        if name not in self._known:
            self._known[name] = Cost()  # in a cycle, which validation refuses
            fragment = self.fragments.get(name)
            self._known[name] = self.of(fragment.selection_set) if fragment else Cost()
        return self._known[name]

    def _field(self, node: FieldNode) -> Cost:
        alias = 1 if node.alias else 0
        if node.selection_set is None or node.name.value.startswith("__"):
            return Cost(aliases=alias)
        inner = self.of(node.selection_set)
        times = self._times(node)
        return Cost(inner.depth + 1, inner.aliases + alias, times * (1 + inner.objects))

    def _times(self, node: FieldNode) -> int:
        """Return the number of objects that the field may return."""
        if node.name.value == "nodes":
            return page_limit()
        if node.name.value in SHORT_LISTS:
            return SHORT_LIST
        if not self._pages(node.selection_set):
            return 1
        asked = [
            self._number(argument.value)
            for argument in node.arguments or ()
            if argument.name.value in ("first", "last")
        ]
        return max((number for number in asked if number is not None), default=page_limit())

    def _pages(
        self, selection: SelectionSetNode | None, seen: frozenset[str] = frozenset()
    ) -> bool:
        """Return True when the selection includes the edges of a connection."""
        for node in selection.selections if selection else ():
            if isinstance(node, FieldNode) and node.name.value == "edges":
                return True
            if isinstance(node, InlineFragmentNode) and self._pages(node.selection_set, seen):
                return True
            if isinstance(node, FragmentSpreadNode):
                fragment = self.fragments.get(node.name.value)
                if fragment and fragment.name.value not in seen:
                    seen |= {fragment.name.value}
                    if self._pages(fragment.selection_set, seen):
                        return True
        return False

    def _number(self, value: Node) -> int | None:
        if isinstance(value, IntValueNode):
            return int(value.value) if len(value.value) < 10 else 10**9
        if isinstance(value, VariableNode):
            given = self.variables.get(value.name.value)
            return given if isinstance(given, int) else None
        return None


def _is_ambiguous(document: DocumentNode) -> bool:
    """Whether the operation is ambiguous; strawberry would run the first one."""
    operations = [
        node for node in document.definitions if isinstance(node, OperationDefinitionNode)
    ]
    return len(operations) > 1


def page_limit() -> int:
    return int(settings.GRAPHQL_MAX_PAGE)


def refused(document: DocumentNode, variables: Mapping[str, Any]) -> list[GraphQLError]:
    """Return all limits that a document exceeds."""
    measure = Measure(document, variables)
    found: list[GraphQLError] = []
    for node in document.definitions:
        if not isinstance(node, OperationDefinitionNode):
            continue
        cost = measure.of(node.selection_set)  # the parser refuses infinite nesting
        for code, what, number, most in (
            ("query-too-deep", "levels deep", cost.depth, settings.GRAPHQL_MAX_DEPTH),
            ("query-too-many-aliases", "aliases", cost.aliases, settings.GRAPHQL_MAX_ALIASES),
            ("query-too-wide", "objects at most", cost.objects, PAGES * page_limit()),
        ):
            if number > most:
                found.append(too_much(code, f"The query has {_short(number)} {what}", most))
    return found


class _Nesting(Visitor):
    """Measures how deep the lists and objects among the values of a document are nested."""

    def __init__(self) -> None:
        super().__init__()
        self.depth = self.deepest = 0

    def enter_object_value(self, *_: Any) -> None:
        self.depth += 1
        self.deepest = max(self.deepest, self.depth)

    def leave_object_value(self, *_: Any) -> None:
        self.depth -= 1

    enter_list_value, leave_list_value = enter_object_value, leave_object_value


def _has_deep_values(document: DocumentNode) -> bool:
    nesting = _Nesting()
    visit(document, nesting)
    return nesting.deepest > VALUE_DEPTH


def _has_deep_variables(variables: Mapping[str, Any]) -> bool:
    """Return whether a variable is nested too deep to be read by recursion."""
    level: list[Any] = [variables]
    for _ in range(VALUE_DEPTH + 1):
        level = [
            inner
            for one in level
            for inner in (one.values() if isinstance(one, Mapping) else one)
            if isinstance(inner, Mapping | list)
        ]
        if not level:
            return False
    return True


def _too_deep_values() -> GraphQLError:
    return too_much("query-too-deep", "A value of the query has too many levels", VALUE_DEPTH)


def _short(number: int) -> str:
    return str(number) if number < 10**9 else "more than 10^9"


def too_much(code: str, what: str, most: int) -> GraphQLError:
    hint = "Ask for less at once: smaller pages (`first`), fewer levels, or several requests."
    return GraphQLError(
        f"{what}; {most} are allowed.", extensions={"code": code, "hint": hint, "limit": most}
    )


def _parsed(text: str, max_tokens: int) -> DocumentNode:
    return _parsed_short(text, max_tokens) if len(text) <= SHORT else _parse(text, max_tokens)


def _parse(text: str, max_tokens: int) -> DocumentNode:
    return parse(text, max_tokens=max_tokens)


_parsed_short = lru_cache(maxsize=KEPT)(_parse)
#: Texts that fitted the schema, so that what programs send again and again is checked once.
_fitting: dict[tuple[int, str], None] = {}


class Limits(SchemaExtension):
    """Refuse documents over the limits before validation; cache valid documents."""

    def on_parse(self) -> Iterator[None]:
        context = self.execution_context
        tokens = settings.GRAPHQL_MAX_TOKENS
        context.parse_options["max_tokens"] = tokens
        if context.query and context.graphql_document is None:
            # A syntax error is found once more, where errors of the query are expected.
            with suppress(GraphQLSyntaxError):
                context.graphql_document = _parsed(context.query, tokens)
        yield
        for error in context.pre_execution_errors or ():
            for said, code, what, most in (
                ("contains more than", "query-too-long", "The query has too many tokens", tokens),
                (
                    "nested too deeply",
                    "query-too-deep",
                    "The query is nested without an end in sight",
                    settings.GRAPHQL_MAX_DEPTH,
                ),
            ):
                if f"Document {said}" in error.message or f"Document is {said}" in error.message:
                    told = too_much(code, what, most)
                    error.message, error.extensions = told.message, told.extensions

    def on_validate(self) -> Iterator[None]:
        context = self.execution_context
        assert context.graphql_document is not None
        key = (id(context.schema), context.query or "")
        if _has_deep_variables(context.variables or {}):
            context.pre_execution_errors = [_too_deep_values()]
        elif found := refused(context.graphql_document, context.variables or {}):
            context.pre_execution_errors = found
        elif not names_operation(context) and _is_ambiguous(context.graphql_document):
            context.pre_execution_errors = [
                GraphQLError("The document has several operations: operationName must choose one.")
            ]
        elif key in _fitting:
            context.pre_execution_errors = []
        elif _has_deep_values(context.graphql_document):
            context.pre_execution_errors = [_too_deep_values()]
        else:
            context.pre_execution_errors = validate(
                graphql_schema(context.schema),
                context.graphql_document,
                context.validation_rules,
            )
            if not context.pre_execution_errors and len(key[1]) <= SHORT:
                _fitting[key] = None
                if len(_fitting) > KEPT:
                    _fitting.pop(next(iter(_fitting)), None)
        yield
