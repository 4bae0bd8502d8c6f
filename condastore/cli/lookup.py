"""Find what a reference names: the API's rows and their ids."""

from __future__ import annotations

from typing import Any

from condastore.cli import queries
from condastore.cli.client import Api, Json, not_signed_in
from condastore.cli.errors import CommandError, Status
from condastore.cli.references import CURRENT, Reference, parse_reference


def reference(api: Api, text: str) -> Reference:
    return parse_reference(text, own_namespace=lambda: api.username.lower())


def environment_only(api: Api, text: str) -> Reference:
    """A reference that names no build."""
    found = reference(api, text)
    if found.build:
        raise CommandError(
            f"{text!r} names a build; this command is for the whole environment.",
            status=Status.USAGE,
            code="invalid-input",
            hint=f"Write {found.namespace}/{found.environment}.",
        )
    return found


def not_found(message: str, *, hint: str = "") -> CommandError:
    return CommandError(message, status=Status.NOT_FOUND, code="not-found", hint=hint)


def not_visible(api: Api, message: str, *, hint: str = "") -> CommandError:
    """Return the error for what does not exist or is hidden; signed out, it says to sign in."""
    return not_found(message, hint=hint) if api.server.token else not_signed_in(api.server.url)


def find_environment(api: Api, ref: Reference) -> Json:
    found: Json | None = api.ask(
        queries.ENVIRONMENT, namespace=ref.namespace, name=ref.environment
    )["environment"]
    if found is None:
        raise not_visible(
            api,
            f"There is no environment {ref.namespace}/{ref.environment} that you may see.",
            hint="See yours with `condastore env list`.",
        )
    return found


def latest(api: Api, ref: Reference) -> Reference:
    """`ref`, with its newest build where it names none."""
    if ref.build:
        return ref
    newest = find_environment(api, ref)["latest"]
    if newest is None:
        raise not_found(
            f"{ref} has no build yet.", hint=f"Make one: `condastore env build {ref} -f FILE`."
        )
    return Reference(
        namespace=ref.namespace, environment=ref.environment, build=str(newest["number"])
    )


def ask_build(api: Api, document: str, ref: Reference, **variables: Any) -> Json:
    """The answer's `build`; the current one where `ref` names none."""
    found: Json | None = api.ask(
        document,
        namespace=ref.namespace,
        environment=ref.environment,
        number=ref.build or CURRENT,
        **variables,
    )["build"]
    if found is not None:
        return found
    name = f"{ref.namespace}/{ref.environment}"
    environment = find_environment(api, ref)  # says so where it is the environment that is missing
    if ref.build in {"", CURRENT}:
        newest = environment["latest"]
        hint = f"Make one: `condastore env build {name} -f FILE`."
        if newest is not None:
            hint = f"Its newest build is {newest['state']}: `condastore env log {name}`."
        raise not_found(f"{name} has no build that is ready.", hint=hint)
    raise not_found(
        f"{name} has no build or tag {ref.build!r}.",
        hint=f"See its builds with `condastore env history {name}`.",
    )


def find_build(api: Api, ref: Reference) -> Json:
    return ask_build(api, queries.BUILD, ref)
