"""Run one build: a table of stages, with a guarded move before each.

    specification -> rules on names -> solve -> lock -> rules on every record -> [held]
      -> fetch, every byte checked -> link into a hidden folder -> PyPI part -> rename
      -> smoke tests -> publish: the pointer moves, the folder follows

Everything a stage needs is in `Run`. A stage raises a StoreError: a transient one means another
attempt, any other one is the outcome. Nothing here trusts the queue: the row is the truth.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import structlog
from django.conf import settings
from django.db import transaction

from environments import folders
from environments.domain.errors import (
    LeaseLostError,
    StoreError,
    TransitionError,
    UnavailableError,
    UnexpectedError,
)
from environments.domain.lifecycle import BuildState
from environments.domain.policy import Effect, judge_lock, judge_names
from environments.engine import disk, linking, smoke
from environments.engine.bytecode import link_bytecode
from environments.engine.pypi_install import install_wheels
from environments.leases import DATABASE_DOWN, Run
from environments.models import Build, Preview
from environments.policies import policy_of
from environments.solving import solve_or_reuse
from environments.tools import tools

logger = structlog.get_logger(__name__)


def solve(run: Run) -> None:
    """Specification -> lock, seen through the policy; then the rules on every record."""
    build, specification = run.build, run.specification
    policy = policy_of(build.environment.namespace)
    verdicts = [*judge_names(policy, specification)]
    answer = solve_or_reuse(
        build.specification,
        policy=policy,
        namespace=build.environment.namespace,
        force=build.force_solve,
        cancelled=run.cancelled,
        log=run.log,
    )
    verdicts += judge_lock(policy, answer.lock)
    run.update(lock=answer.row, verdicts=[verdict.to_json() for verdict in verdicts])
    for verdict in verdicts:
        run.log(f"{verdict.effect.value}: {verdict.reason}")
    if any(verdict.effect is Effect.ASK for verdict in verdicts):
        raise HeldForApproval


def fetch(run: Run) -> None:
    """Packages of the lock -> the shared caches; every byte is checked on its way in."""
    part = run.part
    needed = sum(package.size for package in (*part.conda, *part.pypi))
    disk.require_space(folders.data(), needed=0, reserve=settings.DISK_RESERVE)
    run.log(f"{len(part.conda) + len(part.pypi)} packages, {needed / 1e6:.1f} MB")
    run.packages = run.tools.packages.ensure(part.conda, **run.fetching)
    run.wheels = run.tools.wheels.ensure(part.pypi, **run.fetching)


def link(run: Run) -> None:
    """Cache -> a hidden folder, then one rename: no half-made prefix is ever to be seen."""
    part, build, final = run.part, run.build, run.final_prefix
    hidden = run.leaves_behind(final.with_name(f".{final.name}.{run.lease.token}"))
    disk.require_space(folders.data(), needed=0, reserve=settings.DISK_RESERVE)
    report = linking.link(
        part,
        target=hidden,
        final_prefix=final,
        cache=run.tools.packages,
        packages=run.packages,
        requested=run.specification.dependencies.get(part.platform, ()),
        variables=run.specification.variables,
        moment=build.created_at,
        note=f"condastore build {build} ({build.specification.digest[:12]})",
        progress=run.progress,
        cancelled=run.cancelled,
    )
    if run.wheels:
        install_wheels(
            run.wheels,
            conda=run.packages,
            target=hidden,
            final_prefix=final,
            python=report.python,
            cancelled=run.cancelled,
        )
    if settings.LINK_BYTECODE and run.runs_here and report.python is not None:
        link_bytecode(
            run.packages,
            target=hidden,
            final_prefix=final,
            cache=run.tools.bytecode,
            python=report.python,
            cancelled=run.cancelled,
            log=run.log,
        )
    for package, scripts in report.link_scripts.items():
        run.log(f"{package} has link scripts, which were not run: {', '.join(scripts)}")
    run.update(link_scripts=sorted(report.link_scripts))
    size = disk.tree_size(hidden)
    run.check()
    if final.exists():  # of an attempt that ended between this rename and its outcome
        folders.discard(final, build.environment)
    linking.publish_prefix(hidden, final)
    run.prefix_made(apparent_size=size.apparent, unique_size=size.unique)


def check(run: Run) -> None:
    """The smoke tests of the specification, in the finished prefix, before anybody sees it."""
    tests = run.specification.smoke_tests
    if not tests.imports and not tests.commands:
        return
    if not run.runs_here:
        run.log(f"smoke tests left out: {run.part.platform} does not run on this machine")
        return
    sandboxed = smoke.run_smoke_tests(
        run.final_prefix,
        tests.imports,
        tests.commands,
        time_limit=settings.SMOKE_TEST_TIME_LIMIT,
        require_sandbox=settings.REQUIRE_SANDBOX,
        cancelled=run.cancelled,
        on_line=run.log,
    )
    run.update(sandboxed=sandboxed)


def publish(run: Run) -> None:
    """READY and the pointer in one transaction; the folder follows before it is committed.

    So whoever sees READY finds the folder switched, and an older build that finishes late, or a
    pinned pointer, leaves the folder where it is.
    """
    build = run.build
    with transaction.atomic():
        build.move(BuildState.READY, lease=run.lease, progress={}, timings=run.timings)
        moved = build.environment.advance(build)
        if moved:
            folders.follow_environment(build.environment)
    run.log(f"{build.environment} is now at build {build.number}" if moved else "not made current")


STAGES: Sequence[tuple[BuildState, Callable[[Run], None]]] = (
    (BuildState.SOLVING, solve),
    (BuildState.FETCHING, fetch),
    (BuildState.LINKING, link),
    (BuildState.CHECKING, check),
    (BuildState.PUBLISHING, publish),
)


class HeldForApproval(Exception):  # noqa: N818 - an outcome, not an error
    """The lock needs decisions of people."""


def run(build_id: int) -> None:
    """Take a build from queued to a final state, or to its next attempt.

    Does nothing for a build that is not due, that another worker has, or that is finished.
    """
    build = Build.objects.select_related(
        "environment__namespace", "specification", "lock", "prefix"
    ).get(pk=build_id)
    lease = build.claim(tools().owner, life=settings.LEASE)
    if lease is None:
        return
    with structlog.contextvars.bound_contextvars(build=build.pk, attempt=build.attempt):
        with Run(build, lease, tools()) as running:
            _run_stages(running)
        if build.finished:
            build.archive_log()


def _run_stages(run: Run) -> None:
    build = run.build
    try:
        first = [state for state, _ in STAGES].index(BuildState(build.state))
        for state, work in STAGES[first:]:
            run.check()
            if build.state != state:
                build.move(state, lease=run.lease, progress={})
            with run.stage(state):
                work(run)
    except HeldForApproval:
        build.move(BuildState.HELD, lease=run.lease, message="waits for approval")
    except (LeaseLostError, TransitionError):
        run.abandon()
    except DATABASE_DOWN as error:
        run.give_up(UnavailableError(f"The database could not be reached: {error}"))
    except StoreError as error:
        run.give_up(error)
    except Exception:
        logger.exception("build stopped unexpectedly", build=build.pk)
        run.give_up(UnexpectedError(f"Build {build.pk} stopped unexpectedly."))
    except BaseException as error:  # Dramatiq stops the thread: shutdown, or its own time limit
        run.interrupted(error)
        raise


def run_preview(preview_id: str) -> None:
    """Solve without building. Delivered twice, the second does nothing."""
    preview = Preview.objects.select_related("specification", "namespace").get(pk=preview_id)
    limit = settings.SOLVE_TIME_LIMIT
    if not preview.claim(patience=limit):
        return
    deadline = time.monotonic() + 2 * limit.total_seconds()
    try:
        policy = policy_of(preview.namespace)
        judge_names(policy, preview.specification.value())
        answer = solve_or_reuse(
            preview.specification,
            policy=policy,
            namespace=preview.namespace,
            force=preview.force_solve,
            cancelled=lambda: time.monotonic() > deadline,
            log=lambda line: logger.debug(line, preview=preview_id),
        )
        judge_lock(policy, answer.lock)
    except StoreError as error:
        preview.finish(error=error)
    except Exception:
        logger.exception("preview failed", preview=preview_id)
        preview.finish(error=UnexpectedError(f"Preview {preview_id} stopped unexpectedly."))
    else:
        preview.finish(lock=answer.row)
