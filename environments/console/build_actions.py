"""Actions on a build: each has a page that states its effect, and a form that does it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from django.http import HttpRequest, HttpResponse
from django.urls import reverse
from django.views.decorators.http import require_http_methods

from accounts.access import Actor, may
from accounts.roles import Perm
from condastore.errors import NotFoundError
from environments.console.responses import act, actor_of, render_page
from environments.domain.lifecycle import CANCELLABLE, FINISHED, BuildState
from environments.models import Build
from environments.operations import builds
from environments.operations.environments import find_build, find_environment


@dataclass(frozen=True, slots=True, kw_only=True)
class Action:
    """One action; texts may contain `{n}`, the number of the build.

    Attributes:
        run: does it, and returns the build whose page follows; None for the environment's page.
        permanent: whether its button is destructive.
    """

    label: str
    icon: str
    effect: str
    done: str
    instead: str
    run: Callable[[Actor, Build], Build | None]
    perm: Perm = Perm.BUILD
    permanent: bool = False
    states: frozenset[BuildState] = FINISHED
    #: Whether it is for the current build (True), for others (False), or for both.
    current: bool | None = None


def _retry(actor: Actor, build: Build) -> Build:
    submitted = builds.submit_build(
        actor=actor,
        environment=build.environment,
        specification=build.source,
        platforms_wanted=build.specification.value().platforms,
        reason=build.reason,
    )
    return submitted.build


def _delete(actor: Actor, build: Build) -> None:
    builds.delete_build(actor=actor, build=build)


READY = frozenset({BuildState.READY})
ACTIONS = {
    "cancel": Action(
        label="Cancel build",
        icon="x",
        effect="The build stops, and its number is not used again. The current build stays as it "
        "is. The same specification can be built again later.",
        done="Build {n} is cancelled.",
        instead="Continue the build",
        run=lambda actor, build: builds.cancel_build(actor=actor, build=build),
        permanent=True,
        states=CANCELLABLE,
    ),
    "retry": Action(
        label="Build again",
        icon="retry",
        effect="The specification of build {n} is submitted again as a new build. Versions of "
        "packages may differ where newer ones were released.",
        done="The specification of build {n} was submitted again.",
        instead="Back to build {n}",
        run=_retry,
    ),
    "make-current": Action(
        label="Make current",
        icon="check",
        effect="Build {n} becomes the current build for everybody. The next build that is ready "
        "replaces it.",
        done="Build {n} is current.",
        instead="Leave the current build",
        run=lambda actor, build: builds.set_current_build(actor=actor, build=build),
        states=READY,
        current=False,
    ),
    "pin": Action(
        label="Make current and pin",
        icon="pin",
        effect="Build {n} is the current build for everybody until somebody releases the pin. "
        "Later builds do not replace it.",
        done="Build {n} is current and pinned.",
        instead="Leave it as it is",
        run=lambda actor, build: builds.set_current_build(actor=actor, build=build, pin=True),
        states=READY,
    ),
    "archive": Action(
        label="Archive",
        icon="st-archived",
        effect="The folder of build {n} is deleted. Lock and log are kept, and the build can be "
        "restored without a new solve.",
        done="Build {n} is archived.",
        instead="Keep the folder",
        run=lambda actor, build: builds.archive_build(actor=actor, build=build),
        permanent=True,
        states=READY,
        current=False,
    ),
    "restore": Action(
        label="Restore",
        icon="upload",
        effect="Build {n} is linked again from its lock. It does not become current.",
        done="Build {n} is being restored.",
        instead="Leave it archived",
        run=lambda actor, build: builds.restore_build(actor=actor, build=build),
        states=frozenset({BuildState.ARCHIVED}),
    ),
    "delete": Action(
        label="Delete build",
        icon="trash",
        effect="Build {n}, its folder and its tags are deleted. An administrator of the namespace "
        "can undo this for a limited time.",
        done="Build {n} is deleted.",
        instead="Keep build {n}",
        run=_delete,
        perm=Perm.MANAGE,
        permanent=True,
        current=False,
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """An action that the page of a build offers."""

    url: str
    action: Action

    @property
    def label(self) -> str:
        return self.action.label


def _applies(action: Action, build: Build) -> bool:
    is_current = build.environment.current_id == build.pk
    if action is ACTIONS["pin"] and is_current and build.environment.pinned:
        return False
    return build.state in action.states and action.current in {None, is_current}


def actions_of(actor: Actor, build: Build) -> list[Offer]:
    """Return the actions that the actor may take on the build in its state."""
    if not may(actor, Perm.BUILD, build):
        return []
    manages = may(actor, Perm.MANAGE, build)
    return [
        Offer(url=url_of(build, name), action=action)
        for name, action in ACTIONS.items()
        if _applies(action, build) and (manages or action.perm == Perm.BUILD)
    ]


def url_of(build: Build, action: str) -> str:
    environment = build.environment
    names = [environment.namespace.name, environment.name, build.number, action]
    return reverse("build-action", args=names)


@require_http_methods(["GET", "HEAD", "POST"])
def build_action(
    request: HttpRequest, namespace: str, name: str, reference: str, action: str
) -> HttpResponse:
    """Show the effect of an action to those who may see the build, or do it."""
    actor = actor_of(request)
    build = find_build(actor, find_environment(actor, namespace, name), reference)
    chosen = ACTIONS.get(action)
    if chosen is None:
        raise NotFoundError(f"A build has no action {action!r}.")
    page = reverse("build", args=[namespace, name, build.number])
    number = build.number
    if request.method == "POST":
        return _run(request, actor, build, chosen, page)
    context = {
        "section": "environments",
        "environment": build.environment,
        "build": build,
        "title": f"{chosen.label}: {build}",
        "button": chosen.label,
        "permanent": chosen.permanent,
        "effect": chosen.effect.format(n=number),
        "instead": chosen.instead.format(n=number),
        "back": page,
        "permitted": may(actor, chosen.perm, build),
        "applies": _applies(chosen, build),
    }
    return render_page(request, "environments/confirm.html", context)


def _run(
    request: HttpRequest, actor: Actor, build: Build, action: Action, page: str
) -> HttpResponse:
    number = build.number
    results: list[Build | None] = []
    response = act(
        request,
        lambda: results.append(action.run(actor, build)),
        done=action.done.format(n=number),
        then=page,
    )
    if results:
        after = results[0]
        names = [build.environment.namespace.name, build.environment.name]
        response["Location"] = (
            reverse("build", args=[*names, after.number])
            if after is not None
            else reverse("environment", args=names)
        )
    return response
