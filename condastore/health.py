"""Liveness, readiness and metrics of an installation.

`/healthz` and `/readyz` are answered before anything reads the Host header: container engines and
Kubernetes probe the address of a container, which no administrator lists in ALLOWED_HOSTS.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable
from http import HTTPStatus
from typing import Any

import structlog
from asgiref.sync import sync_to_async
from django.conf import settings
from django.core.exceptions import DisallowedHost
from django.db import Error, connection
from django.db.migrations.executor import MigrationExecutor
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.http.response import HttpResponseBase
from django.urls import resolve
from django.utils import timezone
from prometheus_client import CONTENT_TYPE_LATEST

from accounts.access import Actor
from accounts.roles import Perm
from condastore import metrics, object_store, startup_errors
from condastore.errors import AccessDeniedError, NotSignedInError, UnavailableError

logger = structlog.get_logger(__name__)


def alive(request: HttpRequest) -> HttpResponse:
    """Answer 200 without looking at anything else."""
    return HttpResponse("ok\n", content_type="text/plain")


def ready(request: HttpRequest) -> HttpResponse:
    """Answer 503 while something is missing without which a build would not run."""
    checks = {name: _result(check) for name, check in CHECKS.items()}
    # Without a database each of these checks would wait for its own timeout.
    database = checks["database"]["ok"]
    checks |= {
        name: _result(check) if database else {"ok": False, "wrong": NOT_ASKED}
        for name, check in IN_DATABASE.items()
    }
    ok = all(check["ok"] for check in checks.values())
    checks |= {
        name: _result(check) if database else {"ok": False, "wrong": NOT_ASKED}
        for name, check in ADVICE.items()
    }
    body = {"ready": ok, "version": settings.VERSION, "checks": checks}
    return JsonResponse(body, status=200 if ok else 503)


class Probes:
    """Middleware that answers the probes, whatever their Host header is."""

    sync_capable = True
    async_capable = False

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponseBase]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        probe = PROBES.get(request.path_info)
        if probe is None or request.method not in ("GET", "HEAD"):
            return self.get_response(request)
        request.resolver_match = resolve(request.path_info)  # names the route in the metrics
        response = probe(request)
        response.headers["X-Content-Type-Options"] = "nosniff"
        if probe is ready and not _has_allowed_host(request):
            response.content = json.dumps({"ready": response.status_code == HTTPStatus.OK})
        response.headers["Content-Length"] = str(len(response.content))  # CommonMiddleware sets it
        return response


def _has_allowed_host(request: HttpRequest) -> bool:
    """Whether no page of another site can be the reader (DNS rebinding)."""
    try:
        request.get_host()
    except DisallowedHost:
        return False
    return True


def _result(check: Callable[[], str]) -> dict[str, Any]:
    try:
        wrong = check()
    except UnavailableError as error:
        wrong = error.message
    except Error as error:
        found = startup_errors.of_database(error)
        logger.warning("database unreachable", error=str(error), hint=found.hint)
        wrong = str(found)
    except Exception:
        logger.exception("a check failed")
        wrong = "The check itself failed; see the log."
    return {"ok": not wrong, "wrong": wrong}


def _database() -> str:
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1")
    return ""


def _migrations() -> str:
    executor = MigrationExecutor(connection)
    missing = executor.migration_plan(executor.loader.graph.leaf_nodes())
    return f"{len(missing)} migrations are not applied." if missing else ""


def _broker() -> str:
    import dramatiq

    from environments import tasks  # noqa: F401 - creates the broker
    from environments.operations.queueing import DOWN

    broker = dramatiq.get_broker()
    try:
        if client := getattr(broker, "client", None):
            client.ping()
        elif hasattr(broker, "channel"):
            assert broker.channel.is_open
    except (*DOWN, AssertionError) as error:
        logger.warning("queue unreachable", error=str(error))
        return "The queue does not answer."
    return ""


def _blob_store() -> str:
    found = object_store.fault()
    if found is not None:
        logger.warning("object store unusable", error=str(found), hint=found.hint)
    return str(found) if found is not None else ""


def _keys() -> str:
    from environments.services import key_rotation

    return key_rotation.fault()


def _data_folder() -> str:
    try:
        with tempfile.TemporaryFile(dir=settings.DATA) as file:
            file.write(b"?")
        free = shutil.disk_usage(settings.DATA).free
    except OSError as error:
        return f"The data folder cannot be written: {error.strerror}."
    if free < settings.DISK_RESERVE:
        return f"The disk has {free:,} bytes free; {settings.DISK_RESERVE:,} are reserved."
    return ""


def _workers() -> str:
    from environments.models import Worker

    return "" if Worker.objects.alive().exists() else "No worker is alive."


def _scheduler() -> str:
    from environments.models import Leader, Worker

    leading = Leader.objects.filter(duty=Worker.SCHEDULER, expires_at__gt=timezone.now())
    return "" if leading.exists() else "No scheduler is alive."


def _unprotected(kind: str) -> str:
    """Return what live workers report about their isolation; see `isolation.problems`."""
    from environments.models import Worker

    said = [row.get(kind) for row in Worker.objects.alive().values_list("unprotected", flat=True)]
    counts = Counter(filter(None, said))
    return " ".join(
        sentence if number == len(said) else f"{number} of {len(said)} workers: {sentence}"
        for sentence, number in sorted(counts.items())
    )


def _sandbox() -> str:
    return _unprotected("sandbox")


def _confinement() -> str:
    return _unprotected("confinement")


def _folders() -> str:
    """Return how many READY builds have no folder; see `missing_folders`."""
    from environments.models import FolderRestore
    from environments.models.folder_restores import RestoreState

    states = Counter(FolderRestore.objects.missing().values_list("state", flat=True))
    failed = states.pop(RestoreState.FAILED, 0)
    said = []
    if waiting := sum(states.values()):
        said.append(f"{waiting:,} folders of READY builds are missing and are linked again.")
    if failed:
        said.append(
            f"{failed:,} folders of READY builds are missing and cannot be linked again; "
            "see Missing folders in the console."
        )
    return " ".join(said)


def _administrator() -> str:
    """Report an installation that nobody can administer."""
    from accounts.models import User

    if settings.ADMIN_GROUPS or User.objects.filter(is_superuser=True, is_active=True).exists():
        return ""
    return "There is no administrator. Create one: condastore manage prepare."


#: Paths that are answered before the Host header is checked.
PROBES: dict[str, Callable[[HttpRequest], HttpResponse]] = {"/healthz": alive, "/readyz": ready}

CHECKS: dict[str, Callable[[], str]] = {
    "database": _database,
    "broker": _broker,
    "data_folder": _data_folder,
    "blob_store": _blob_store,
}
#: Checks that need the database.
IN_DATABASE: dict[str, Callable[[], str]] = {
    "migrations": _migrations,
    "keys": _keys,
    "workers": _workers,
    "scheduler": _scheduler,
}
#: Checks that do not make the installation unready: builds run all the same.
ADVICE: dict[str, Callable[[], str]] = {
    "sandbox": _sandbox,
    "confinement": _confinement,
    "folders": _folders,
    "administrator": _administrator,
}
NOT_ASKED = "Not known: the database does not answer."


def _require_metrics(request: HttpRequest) -> None:
    from environments.models.namespaces import READ_METRICS, holds_everywhere

    actor: Actor = request.actor  # type: ignore[attr-defined]
    if not actor.signed_in:
        raise NotSignedInError("The metrics need a sign-in.")
    if not holds_everywhere(actor, READ_METRICS, Perm.VIEW):
        raise AccessDeniedError(
            "You may not read the metrics of the installation.",
            hint="Use a token of an account with the permission *May read the metrics of the "
            "installation*, which is not limited to namespaces.",
        )


async def measured(request: HttpRequest) -> HttpResponse:
    """Answer Prometheus; unless METRICS_PUBLIC, superusers and holders of READ_METRICS only."""
    if not settings.METRICS_PUBLIC:
        await sync_to_async(_require_metrics)(request)
    text = await sync_to_async(metrics.exposition)()
    return HttpResponse(text, content_type=CONTENT_TYPE_LATEST)
