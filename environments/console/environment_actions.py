"""Actions on an environment: a page that states the effect or asks for values, and a form."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from django.http import HttpRequest, HttpResponse
from django.urls import reverse
from django.views.decorators.http import require_http_methods

from accounts.access import Actor, may
from accounts.roles import Perm
from condastore.errors import InvalidInputError, NotFoundError
from environments.console.responses import act, actor_of, render_page
from environments.models import Environment
from environments.operations import builds, environments, namespaces

Values = Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Field:
    name: str
    label: str
    help: str = ""
    required: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Action:
    """One action; texts may contain `{e}`, the name of the environment.

    Attributes:
        run: does it, and returns the environment whose page follows; None for the list.
    """

    label: str
    effect: str
    done: str
    instead: str
    perm: Perm
    run: Callable[[Actor, Environment, Values], Environment | None]
    fields: tuple[Field, ...] = ()
    permanent: bool = False


def _unpin(actor: Actor, environment: Environment, values: Values) -> Environment:
    return builds.unpin(actor=actor, environment=environment)


def _rollback(actor: Actor, environment: Environment, values: Values) -> Environment:
    builds.rollback(actor=actor, environment=environment)
    return environment


def _tag(actor: Actor, environment: Environment, values: Values) -> Environment:
    build = environments.find_build(actor, environment, values.get("build", ""))
    builds.tag_build(actor=actor, build=build, tag=values.get("tag", ""))
    return environment


def _untag(actor: Actor, environment: Environment, values: Values) -> Environment:
    return builds.untag(actor=actor, environment=environment, tag=values.get("tag", ""))


def _holder(values: Values) -> dict[str, str]:
    user, group = values.get("user", "").strip(), values.get("group", "").strip()
    if bool(user) == bool(group):
        raise InvalidInputError("Enter the name of a user or of a group.", where="share")
    return {"user": user, "group": group}


def _share(actor: Actor, environment: Environment, values: Values) -> Environment:
    namespaces.share_environment(actor=actor, environment=environment, **_holder(values))
    return environment


def _unshare(actor: Actor, environment: Environment, values: Values) -> Environment:
    namespaces.unshare_environment(actor=actor, environment=environment, **_holder(values))
    return environment


def _rename(actor: Actor, environment: Environment, values: Values) -> Environment:
    return environments.rename_environment(
        actor=actor, environment=environment, name=values.get("name", "")
    )


def _move(actor: Actor, environment: Environment, values: Values) -> Environment:
    namespace = namespaces.find_namespace(actor, values.get("namespace", ""))
    return environments.move_environment(actor=actor, environment=environment, namespace=namespace)


def _copy(actor: Actor, environment: Environment, values: Values) -> Environment:
    namespace = namespaces.find_namespace(actor, values.get("namespace", ""))
    return environments.copy_environment(
        actor=actor, environment=environment, namespace=namespace, name=values.get("name", "")
    )


def _delete(actor: Actor, environment: Environment, values: Values) -> None:
    if values.get("confirmation", "").strip() != str(environment):
        raise InvalidInputError(f"Type {environment} to confirm.", where="confirmation")
    environments.delete_environment(actor=actor, environment=environment)


_NAMESPACE = Field(name="namespace", label="Namespace")
_HOLDERS = (
    Field(name="user", label="User name", required=False),
    Field(name="group", label="Or group", required=False),
)
ACTIONS = {
    "release-pin": Action(
        label="Release pin",
        effect="The newest ready build becomes current, and later builds replace it again.",
        done="The pin is released.",
        instead="Leave it pinned",
        perm=Perm.BUILD,
        run=_unpin,
    ),
    "roll-back": Action(
        label="Roll back",
        effect="The ready build before the current one becomes current and is pinned. Later "
        "builds do not replace it until the pin is released.",
        done="{e} is rolled back, and pinned.",
        instead="Leave the current build",
        perm=Perm.BUILD,
        run=_rollback,
    ),
    "tag": Action(
        label="Add or move a tag",
        effect="A tag is a name for one build of this environment. A tag that exists moves.",
        done="The tag is set.",
        instead="Back",
        perm=Perm.BUILD,
        run=_tag,
        fields=(
            Field(name="tag", label="Tag", help="For example prod."),
            Field(name="build", label="Build", help="Number of a build, a tag, or current."),
        ),
    ),
    "untag": Action(
        label="Remove a tag",
        effect="The build stays. What uses the tag no longer finds it.",
        done="The tag is removed.",
        instead="Leave the tag",
        perm=Perm.BUILD,
        run=_untag,
        fields=(Field(name="tag", label="Tag"),),
    ),
    "share": Action(
        label="Share",
        effect="One person or group outside the namespace may view, use and download {e}.",
        done="{e} is shared.",
        instead="Back",
        perm=Perm.GRANT,
        run=_share,
        fields=_HOLDERS,
    ),
    "stop-sharing": Action(
        label="Stop sharing",
        effect="The person or group no longer sees {e}. Roles in its namespace stay.",
        done="{e} is no longer shared with them.",
        instead="Keep the share",
        perm=Perm.GRANT,
        run=_unshare,
        fields=_HOLDERS,
    ),
    "rename": Action(
        label="Rename",
        effect="The folder and all addresses change. Running programs continue; scripts that use "
        "the old name no longer find it.",
        done="The environment is renamed.",
        instead="Keep the name",
        perm=Perm.BUILD,
        run=_rename,
        fields=(Field(name="name", label="New name"),),
    ),
    "move": Action(
        label="Move",
        effect="{e} moves with its history to another namespace, whose policy is applied to all "
        "its builds first.",
        done="The environment is moved.",
        instead="Leave it here",
        perm=Perm.MANAGE,
        run=_move,
        fields=(_NAMESPACE,),
    ),
    "copy": Action(
        label="Copy",
        effect="The copy has the same builds, numbers and tags. No files are copied.",
        done="The environment is copied.",
        instead="Back",
        perm=Perm.DOWNLOAD,
        run=_copy,
        fields=(_NAMESPACE, Field(name="name", label="Name of the copy")),
    ),
    "delete": Action(
        label="Delete environment",
        effect="This deletes {e} with all its builds, tags and folders, and cancels builds that "
        "run. It can be restored for a limited time.",
        done="{e} is deleted.",
        instead="Keep it",
        perm=Perm.MANAGE,
        run=_delete,
        fields=(Field(name="confirmation", label="Type the full name to confirm"),),
        permanent=True,
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    name: str
    label: str
    url: str
    permanent: bool


def actions_of(actor: Actor, environment: Environment) -> list[Offer]:
    """Return the actions that the actor may take."""
    perms = {action.perm for action in ACTIONS.values()}
    held = {perm for perm in perms if actor.signed_in and may(actor, perm, environment)}
    names = [environment.namespace.name, environment.name]
    return [
        Offer(
            name=name,
            label=action.label,
            url=reverse("environment-action", args=[*names, name]),
            permanent=action.permanent,
        )
        for name, action in ACTIONS.items()
        if action.perm in held and (name != "release-pin" or environment.pinned)
    ]


@require_http_methods(["GET", "HEAD", "POST"])
def environment_action(
    request: HttpRequest, namespace: str, name: str, action: str
) -> HttpResponse:
    """Show the effect of an action to those who may see the environment, or do it."""
    actor = actor_of(request)
    environment = environments.find_environment(actor, namespace, name)
    chosen = ACTIONS.get(action)
    if chosen is None:
        raise NotFoundError(f"An environment has no action {action!r}.")
    if request.method == "POST":
        return _run(request, actor, environment, chosen)
    full = str(environment)
    context = {
        "section": "environments",
        "environment": environment,
        "title": f"{chosen.label}: {full}",
        "button": chosen.label,
        "permanent": chosen.permanent,
        "effect": chosen.effect.format(e=full),
        "instead": chosen.instead,
        "back": reverse("environment", args=[namespace, name]),
        "permitted": may(actor, chosen.perm, environment),
        "applies": True,
        "fields": [(field, request.GET.get(field.name, "")) for field in chosen.fields],
    }
    return render_page(request, "environments/confirm.html", context)


def _run(
    request: HttpRequest, actor: Actor, environment: Environment, action: Action
) -> HttpResponse:
    full, values = str(environment), {key: str(value) for key, value in request.POST.items()}
    for key, value in values.items():
        if "\0" in value:
            raise InvalidInputError("NUL characters are not allowed.", where=key)
    results: list[Environment | None] = []
    response = act(
        request,
        lambda: results.append(action.run(actor, environment, values)),
        done=action.done.format(e=full),
        then=reverse("environment", args=[environment.namespace.name, environment.name]),
        failed=request.path,
    )
    if results:
        after = results[0]
        response["Location"] = (
            reverse("environments")
            if after is None
            else reverse("environment", args=[after.namespace.name, after.name])
        )
    return response
