"""Page that compares two builds of an environment."""

from __future__ import annotations

from django.http import HttpRequest, HttpResponse
from django.views.decorators.http import require_safe

from accounts.access import Actor
from condastore.errors import NotFoundError
from environments.console.lock_tables import Comparison, compare
from environments.console.responses import actor_of, render_page
from environments.models import Build, Environment
from environments.operations.environments import find_build, find_environment

#: Builds that the page offers to compare.
OFFERED = 100


@require_safe
def comparison(request: HttpRequest, namespace: str, name: str) -> HttpResponse:
    actor = actor_of(request)
    environment = find_environment(actor, namespace, name)
    locked = (
        Build.objects.visible_to(actor)
        .filter(environment=environment)
        .exclude(lock=None)
        .order_by("-number")
    )
    after = _chosen(actor, environment, request.GET.get("after", "")) or locked.first()
    before = _chosen(actor, environment, request.GET.get("before", ""))
    if before is None and after is not None:
        before = locked.filter(number__lt=after.number).first()
    found = Comparison()
    title = f"Builds of {environment}"
    if before is not None and after is not None:
        found = compare(before, after)
        title = f"{environment}: build {before.number} to build {after.number}"
    context = {
        "section": "environments",
        "environment": environment,
        "before": before,
        "after": after,
        "numbers": locked.values_list("number", flat=True)[:OFFERED],
        "comparison": found,
        "title": title,
        "groups": [("Requested", found.requested), ("Dependencies", found.dependencies)],
        "markdown": found.markdown(title),
    }
    return render_page(request, "environments/comparison.html", context)


def _chosen(actor: Actor, environment: Environment, reference: str) -> Build | None:
    if not reference:
        return None
    found = find_build(actor, environment, reference.replace("\0", ""))
    if found.lock_id is None:
        raise NotFoundError(f"{found} has no lock to compare.")
    return found
