"""Documents over the whole GraphQL schema, with arguments of a tenant, its neighbour or hostile.

Own generator instead of schemathesis: arguments must be the ids and names of another tenant's
rows, each id must be tried in each argument, and every field must be selected once; with hooks
for all of that schemathesis adds twenty packages and no proof.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from random import Random
from typing import Any

from graphql import (
    GraphQLArgument,
    GraphQLEnumType,
    GraphQLField,
    GraphQLInputObjectType,
    GraphQLInterfaceType,
    GraphQLList,
    GraphQLNonNull,
    GraphQLObjectType,
    GraphQLScalarType,
    GraphQLSchema,
    GraphQLUnionType,
    Undefined,
    get_named_type,
    is_leaf_type,
)

from tests.security import hostile_values

#: Argument -> whose values fit it, where the name is not the same.
MEANT = {
    **dict.fromkeys(("environmentId", "buildId", "ids", "requests", "to", "a", "b"), "id"),
    **dict.fromkeys(("targets", "search", "name", "spec", "target", "pattern"), "text"),
    **dict.fromkeys(("username", "owner", "actor", "people"), "user"),
    **dict.fromkeys(("upstream", "urlPrefix", "base", "channelUrl"), "url"),
    **dict.fromkeys(("serviceAccount",), "user"),
    "namespaces": "namespace",
}
#: Levels of fields below a root field. The limit of the server is that of the whole document.
DEPTH = 7
#: Levels of input objects: filters contain themselves below AND, OR and NOT.
INPUT_DEPTH = 3
#: Fields in one selection.
WIDTH = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    text: str
    variables: Mapping[str, Any]

    def body(self) -> str:
        return json.dumps({"query": self.text, "variables": self.variables})


@dataclass(kw_only=True)
class Documents:
    """Generates documents; remembers what it has used, to use first what it has not.

    Args:
        pools: values by the names of arguments; see `two_tenants.Tenants`.
        hostile: the part of the arguments whose value is hostile.
    """

    schema: GraphQLSchema
    random: Random
    pools: Mapping[str, Sequence[Any]]
    hostile: float = 0.0
    selected: Counter[str] = field(default_factory=Counter)
    given: Counter[str] = field(default_factory=Counter)

    def fields(self, operation: str) -> dict[str, GraphQLField]:
        root = {
            "query": self.schema.query_type,
            "mutation": self.schema.mutation_type,
            "subscription": self.schema.subscription_type,
        }[operation]
        assert root is not None
        fields: dict[str, GraphQLField] = root.fields
        return fields

    def document(self, operation: str, names: Sequence[str]) -> Document:
        """One operation that asks for the root fields `names`, each with generated arguments."""
        known = self.fields(operation)
        variables: dict[str, Any] = {}
        declared: list[str] = []
        parts = []
        for number, name in enumerate(names):
            arguments = []
            for argument, one in known[name].args.items():
                for value in self._given(argument, one):
                    key = f"v{len(variables)}"
                    variables[key] = value
                    declared.append(f"${key}: {one.type}")
                    arguments.append(f"{argument}: ${key}")
                    self.given[f"{operation}.{name}.{argument}"] += 1
            parts.append(self._part(f"f{number}", name, arguments, known[name], len(names)))
        head = f"{operation}({', '.join(declared)})" if declared else operation
        return Document(text=f"{head} {{ {' '.join(parts)} }}", variables=variables)

    def every_id(
        self, operation: str, name: str, argument: str, ids: Sequence[str], *, at_once: int = 25
    ) -> Iterator[Document]:
        """The root field `name` once for each id, as aliases."""
        one = self.fields(operation)[name]
        for start in range(0, len(ids), at_once):
            some = ids[start : start + at_once]
            parts = []
            for number, value in enumerate(some):
                arguments = [
                    f"{key}: {self._literal(self._value(arg.type, key), arg.type)}"
                    for key, arg in one.args.items()
                    if key != argument
                    and isinstance(arg.type, GraphQLNonNull)
                    and not _has_default(arg)
                ]
                listed = isinstance(_bare(one.args[argument].type), GraphQLList)
                text = json.dumps(value)
                arguments.append(f"{argument}: {f'[{text}]' if listed else text}")
                parts.append(self._part(f"i{number}", name, arguments, one, len(some)))
            yield Document(text=f"{operation} {{ {' '.join(parts)} }}", variables={})

    def _part(
        self, alias: str, name: str, arguments: list[str], one: GraphQLField, shared: int
    ) -> str:
        budget = [max(4, WIDTH // (shared * shared))]
        selection = self._selection(get_named_type(one.type), DEPTH, budget)
        return f"{alias}: {name}{_in_brackets(arguments)} {selection}"

    # --- arguments ------------------------------------------------------------------------------

    def _given(self, name: str, one: GraphQLArgument) -> Iterator[Any]:
        required = isinstance(one.type, GraphQLNonNull) and not _has_default(one)
        if name in ("first", "last"):
            if self.random.random() < self.hostile:
                yield self.random.choice(hostile_values.INTEGERS)
            elif name == "first":
                yield 2
        elif required or name == "wait" or self.random.random() < 0.5:
            yield self._value(one.type, name)

    def _value(self, kind: Any, name: str, depth: int = 0) -> Any:
        random = self.random
        if isinstance(kind, GraphQLNonNull):
            return self._value(kind.of_type, name, depth)
        if isinstance(kind, GraphQLList):
            return [self._value(kind.of_type, name, depth) for _ in range(random.randrange(1, 3))]
        if isinstance(kind, GraphQLEnumType):
            return random.choice(list(kind.values))
        if isinstance(kind, GraphQLInputObjectType):
            fields = kind.fields
            if getattr(kind.extensions.get("strawberry-definition"), "is_one_of", False):
                fields = dict([random.choice(list(fields.items()))])
            return {
                key: self._value(one.type, key, depth + 1)
                for key, one in fields.items()
                if isinstance(one.type, GraphQLNonNull)
                or (random.random() < 0.5 and (depth < INPUT_DEPTH or is_leaf_type(one.type)))
            }
        assert isinstance(kind, GraphQLScalarType)
        return self._scalar(kind.name, name, wild=random.random() < self.hostile)

    def _scalar(self, kind: str, name: str, *, wild: bool) -> Any:
        random = self.random
        if name == "wait":
            return 0.0  # seconds, in which nothing would happen
        match kind:
            case "Boolean":
                return random.random() < 0.5
            case "Int":
                return random.choice(hostile_values.INTEGERS if wild else (0, 1, 2, 5))
            case "Float":
                return random.choice(hostile_values.FLOATS) if wild else 0.0
            case "BigInt":
                large = (*hostile_values.INTEGERS, *hostile_values.LARGE)
                return random.choice(large if wild else (0, 1, 10**9))
            case "DateTime" | "Date":
                return random.choice(hostile_values.MOMENTS if wild else hostile_values.MOMENTS[:1])
            case "JSON":
                return hostile_values.structure(random) if wild else {"packages": ["left-pad"]}
        if wild:
            return hostile_values.text(random)
        if name == "specification" and kind == "String":
            return "channels: [https://channel.example.org/main]\ndependencies: [python]\n"
        pool = self.pools.get(name) or self.pools.get(MEANT.get(name, ""))
        if not pool:
            pool = self.pools["id"] if kind in ("ID", "UUID") else self.pools["text"]
        return str(hostile_values.one_of(pool, random))

    def _literal(self, value: Any, kind: Any) -> str:
        bare = _bare(kind)
        if isinstance(bare, GraphQLEnumType):
            return str(value)
        if isinstance(bare, GraphQLList):
            return "[" + ", ".join(self._literal(one, bare.of_type) for one in value) + "]"
        if isinstance(bare, GraphQLInputObjectType):
            parts = (
                f"{key}: {self._literal(one, bare.fields[key].type)}" for key, one in value.items()
            )
            return "{" + ", ".join(parts) + "}"
        return _json_literal(value)

    # --- what is selected -----------------------------------------------------------------------

    def _selection(
        self, kind: Any, depth: int, budget: list[int], taken: Set[str] = frozenset()
    ) -> str:
        """Fields of `kind`, those first that were selected least; "" for a leaf."""
        if is_leaf_type(kind):
            return ""
        if isinstance(kind, GraphQLUnionType):
            names: set[str] = set()  # one answer has one field of a name
            parts = []
            for one in self.schema.get_possible_types(kind):
                parts.append(f"... on {one.name} {self._selection(one, depth, budget, names)}")
                names |= set(one.fields)
            return "{ __typename " + " ".join(parts) + " }"
        assert isinstance(kind, GraphQLObjectType | GraphQLInterfaceType)
        order = sorted(
            kind.fields.items(),
            key=lambda item: (self.selected[f"{kind.name}.{item[0]}"], self.random.random()),
        )
        parts = ["__typename"]
        for name, one in order:
            inner = get_named_type(one.type)
            leaf = is_leaf_type(inner)
            if budget[0] <= 0 or name in taken or (not leaf and depth <= 0):
                continue
            budget[0] -= 1
            self.selected[f"{kind.name}.{name}"] += 1
            arguments = [
                f"{argument}: {self._literal(value, arg.type)}"
                for argument, arg in one.args.items()
                for value in self._given(argument, arg)
            ]
            deeper = "" if leaf else " " + self._selection(inner, depth - 1, budget)
            parts.append(f"{name}{_in_brackets(arguments)}{deeper}")
        return "{ " + " ".join(parts) + " }"


def _bare(kind: Any) -> Any:
    return kind.of_type if isinstance(kind, GraphQLNonNull) else kind


def _has_default(one: GraphQLArgument) -> bool:
    return one.default_value is not Undefined


def _in_brackets(arguments: list[str]) -> str:
    return f"({', '.join(arguments)})" if arguments else ""


def _json_literal(value: Any) -> str:
    """A JSON value in the syntax of GraphQL."""
    if isinstance(value, dict):
        parts = (f"{key}: {_json_literal(one)}" for key, one in value.items() if key.isidentifier())
        return "{" + ", ".join(parts) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_json_literal, value)) + "]"
    return json.dumps(value)
