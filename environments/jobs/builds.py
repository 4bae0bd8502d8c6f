"""Run one build: a table of stages, with a guarded move before each.

    specification -> rules on names -> solve -> lock -> rules on every record -> [held]
      -> fetch, every byte checked -> link into a hidden folder -> PyPI part -> smoke tests
      -> publish: rename, then the pointer moves and the folder follows

Everything a stage needs is in `BuildRun`. A stage raises a StoreError: a transient one means
another attempt, any other one is the outcome.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import Enum
from typing import Any

import structlog
from django.conf import settings
from django.db import transaction
from dramatiq.threading import Interrupt

from condastore.errors import (
    SmokeTestError,
    SmokeTestKilledError,
    UnavailableError,
)
from condastore.outages import persist
from environments.domain.lifecycle import BuildState
from environments.domain.linking import check_paths
from environments.domain.policy import Effect, Verdict, judge_names
from environments.engine.prefix import linking
from environments.engine.prefix.python_sources import python_sources
from environments.engine.prefix.smoke_tests import SmokeReport, run_smoke_tests
from environments.engine.pypi.install import install_wheels
from environments.engine.solve import conda_lock_reader
from environments.engine.system import disk
from environments.jobs import bytecode
from environments.jobs.build_run import BuildRun, LinkRun
from environments.jobs.leased_run import claim
from environments.models import (
    Artifact,
    Build,
    Environment,
    LockConflicts,
    RecalledLock,
)
from environments.models.recalls import refuse_recalled
from environments.services import (
    approval_requests,
    folder_access,
    folders,
    hosted_channels,
    package_claims,
    recalled_locks,
)
from environments.services.isolation import sandboxed
from environments.services.policies import judge, judge_paths, policy_of
from environments.services.solving import solve_or_reuse

logger = structlog.get_logger(__name__)
#: Statuses of a test that was ended by SIGKILL: of its sandbox, and of a program inside it.
KILLED = (-9, 128 + 9)


def solve(run: BuildRun) -> None:
    """Specification -> lock, seen through the policy; then the rules on every record."""
    build, specification = run.build, run.specification
    policy = policy_of(build.environment.namespace)
    for warning in build.submission_warnings():
        run.log(f"warning: {warning}")
    verdicts = list(judge_names(policy, specification))
    if specification.kind == "lock" and specification.lock is not None:
        conda_lock_reader.confirm(build.source, specification.lock)
    with run.sharing_slot():
        answer = solve_or_reuse(
            build.specification,
            policy=policy,
            namespace=build.environment.namespace,
            actor=hosted_channels.actor_of_submitter(build.requested_by),
            force=build.force_solve,
            lease=run.lease,
            cancelled=run.cancelled,
            log=run.log,
        )
    recalled_locks.mark_lock(answer.row)
    verdicts += judge(policy, answer.lock, specification)
    run.update(lock=answer.row)
    run.policy = policy
    _obey(run, verdicts)


def judge_again(run: BuildRun) -> None:
    """The rules on every record of a lock that is there already: they may have changed since."""
    run.policy = policy = policy_of(run.build.environment.namespace)
    assert run.build.lock is not None, "solved before it is fetched"
    _obey(run, judge(policy, run.build.lock.value(), run.specification))


def _obey(run: BuildRun, verdicts: Sequence[Verdict]) -> None:
    """Tell the verdicts; HeldForApproval where people must decide."""
    run.update(verdicts=[verdict.to_json() for verdict in verdicts])
    for verdict in verdicts:
        run.log(f"{verdict.effect.value}: {verdict.sentence}")
    if any(verdict.effect is Effect.ASK for verdict in verdicts):
        raise HeldForApproval(verdicts)


def fetch(run: BuildRun) -> None:
    """Packages of the lock -> the shared caches; every byte is checked on its way in.

    Some rules are about what is in the packages: they are asked once more when that is known.
    """
    if run.policy is None:
        judge_again(run)
    fetch_packages(run)
    assert run.policy is not None, "the lock was judged"
    if package_claims.store_claims(run.packages, run.wheels, policy=run.policy, log=run.log):
        judge_again(run)
    _judge_paths(run)
    approval_requests.withdraw(
        run.build
    )  # held once, it may go on for another reason than a decision


def fetch_packages(run: LinkRun[Any]) -> None:
    """Fetch and extract what the caches lack; kept packages need no channel."""
    part = run.part
    needed = sum(package.size for package in part.conda) + sum(w.size for w in part.pypi)
    disk.require_space(folders.data(), needed=0, reserve=settings.DISK_RESERVE)
    run.log(f"{len(part.conda) + len(part.pypi)} packages, {needed / 1e6:.1f} MB")
    run.packages = run.tools.packages.ensure(part.conda, **run.fetching)
    run.wheels = run.tools.wheels.ensure(part.pypi, **run.fetching)


def _judge_paths(run: BuildRun) -> None:
    """The rules on files that packages replace of others, which only fetched packages show."""
    build, part = run.build, run.part
    run.paths = check_paths(
        [cached.contents for cached in run.packages],
        python=linking.python_of(part.conda, part.platform),
        platform=part.platform,
        prefix=str(run.final_prefix),
    )
    conflicts = run.paths.conflicts
    if not conflicts or run.paths.faults:  # faults are reported when it is linked
        return
    assert build.lock is not None, "solved before it is fetched"
    assert run.policy is not None, "the lock was judged"
    LockConflicts.note(build.lock, part.platform, conflicts)
    verdicts = judge_paths(run.policy, part, conflicts, run.specification)
    before = [Verdict.from_json(verdict) for verdict in build.verdicts]
    _obey(run, [*before, *verdicts])


def link(run: LinkRun[Any]) -> None:
    """Caches -> a hidden folder, as if it stood under its final name already."""
    part, build = run.part, run.build
    disk.require_space(folders.data(), needed=0, reserve=settings.DISK_RESERVE)
    folder_access.create_folder(folders.PREFIXES, build.environment.namespace)
    report = linking.link(
        part,
        target=run.hidden_prefix,
        final_prefix=run.final_prefix,
        cache=run.tools.packages,
        packages=run.packages,
        checked=run.paths,
        requested=run.specification.dependencies.get(part.platform, ()),
        variables=run.specification.variables,
        moment=build.created_at,
        note=f"condastore build {build} ({build.specification.digest[:12]})",
        progress=run.progress,
        cancelled=run.cancelled,
    )
    for package, scripts in report.link_scripts.items():
        run.log(f"{package} has link scripts, which were not run: {', '.join(scripts)}")
    run.update(link_scripts=sorted(report.link_scripts))
    run.size.add_packages(run.packages)
    run.size.add_folder(run.hidden_prefix / "conda-meta")
    if report.python is None:
        return
    sources = python_sources(run.packages, report.python, conflicts=report.conflicts)
    if run.wheels:
        installed = install_wheels(
            run.wheels,
            target=run.hidden_prefix,
            final_prefix=run.final_prefix,
            python=report.python,
            progress=run.progress,
            cancelled=run.cancelled,
        )
        run.size.add_wheels(
            run.wheels, apparent=installed.bytes_apparent, written=installed.bytes_unique
        )
        sources += installed.sources
    if run.runs_here:
        bytecode.prepare(run, sources, report.python)


def check(run: BuildRun) -> None:
    """The smoke tests of the specification, in the finished prefix, before anybody sees it."""
    tests = run.specification.smoke_tests
    if not tests.imports and not tests.commands:
        return
    if not run.runs_here:
        run.log(f"smoke tests left out: {run.part.platform} does not run on this machine")
        return
    if run.uncompiled is not None:
        run.uncompiled.compile_imported(run, tests.imports)
    report = _smoke_tested(run)
    run.update(sandboxed=report.sandboxed)
    if run.uncompiled is not None:
        run.uncompiled.compile_places(run, report.uncompiled)
    if run.compile_later:
        run.log("the rest of the Python files is compiled after the build")


def _smoke_tested(run: BuildRun) -> SmokeReport:
    """Run the smoke tests; once more where they were killed from outside.

    Raises:
        SmokeTestKilledError: they were killed twice.
    """
    tests = run.specification.smoke_tests
    for again in (False, True):
        try:
            return run_smoke_tests(
                run.hidden_prefix,
                final_prefix=run.final_prefix,
                imports=tests.imports,
                commands=tests.commands,
                time_limit=settings.SMOKE_TEST_TIME_LIMIT,
                cancelled=run.cancelled,
                on_line=run.log,
                sandboxed=sandboxed(),
            )
        except SmokeTestError as error:
            if error.details.get("status") not in KILLED:
                raise
            if again:
                raise SmokeTestKilledError(
                    f"The smoke test ({error.details.get('test')}) was killed twice by SIGKILL.",
                    details=error.details,
                ) from error
            run.log("the test was killed by SIGKILL, as the kernel does when memory runs out")
    raise AssertionError("unreachable")


def publish(run: BuildRun) -> None:
    """Rename the folder to its final name; set READY and move the pointer in one transaction.

    The link under `envs/` is switched before the commit, so a client that sees READY finds it
    switched. It stays if a newer build is current, or if the pointer is pinned. A worker that is
    asked to stop publishes first: users may have the folder open, so it is not removed again.
    """
    build = run.build
    assert build.lock is not None
    recalled_locks.mark_lock(build.lock)
    refuse_recalled(build)
    run.name_prefix()
    try:
        moved = _make_ready(run)
    except Interrupt:
        build.refresh_from_db(fields=["state", "lease_token"])
        if build.state == BuildState.READY:  # committed a moment before
            moved = Environment.objects.filter(pk=build.environment_id, current=build).exists()
        else:
            moved = _make_ready(run)
    if RecalledLock.objects.active().filter(lock=build.lock).exists():  # meanwhile
        recalled_locks.follow_lock(build.lock)
    run.log(f"{build.environment} is now at build {build.number}" if moved else "not made current")


def _make_ready(run: BuildRun) -> bool:
    """Set READY and, if the build is newer than the current one, current, in one transaction.

    The environment is locked first: see the lock order in docs/architecture.md.
    """
    build = run.build
    judged_in = build.environment.namespace_id
    with transaction.atomic():
        environments = Environment.objects.select_for_update().filter(pk=build.environment_id)
        if environments.filter(namespace=judged_in).first() is None:
            raise UnavailableError(f"{build.environment} was moved while the build ran.")
        build.move(BuildState.READY, lease=run.lease, progress={}, timings=run.timings)
        Artifact.wanted_of(build)
        moved = build.environment.advance(build)
        if moved:
            folders.follow_environment(build.environment)
    return moved


STAGES: Sequence[tuple[BuildState, Callable[[BuildRun], None]]] = (
    (BuildState.SOLVING, solve),
    (BuildState.FETCHING, fetch),
    (BuildState.LINKING, link),
    (BuildState.CHECKING, check),
    (BuildState.PUBLISHING, publish),
)


class HeldForApproval(Exception):  # noqa: N818 - an outcome, not an error
    """The lock needs decisions of people."""

    def __init__(self, verdicts: Sequence[Verdict]) -> None:
        super().__init__("The lock needs decisions of people.")
        self.verdicts = tuple(verdicts)


class Outcome(Enum):
    """What `run` did."""

    NOT_CLAIMED = "the build is not due, or another worker has it"
    ENDED = "the attempt has ended: see the state of the build"
    COMPILE_LATER = "the build is READY; `bytecode.complete` compiles the rest of its Python files"


def run(build_id: int) -> Outcome:
    """Run the next attempt of a build, if it is due."""
    build = Build.objects.select_related(
        "environment__namespace", "specification", "lock", "prefix"
    ).get(pk=build_id)
    lease = claim(build)
    if lease is None:
        return Outcome.NOT_CLAIMED
    with structlog.contextvars.bound_contextvars(build=build.pk, attempt=build.attempt):
        with persist(lambda: BuildRun(build, lease)) as running:  # it reads the specification
            running.carry_out(lambda: _run_stages(running))
        if build.finished:
            build.archive_log()
    ready = build.state == BuildState.READY
    return Outcome.COMPILE_LATER if ready and running.compile_later else Outcome.ENDED


def _run_stages(run: BuildRun) -> None:
    build = run.build
    first = [state for state, _ in STAGES].index(BuildState(build.state))
    for state, work in STAGES[first:]:
        run.check()
        if build.state != state:
            build.move(state, lease=run.lease, progress={})
        try:
            with run.stage(state):
                work(run)
        except HeldForApproval as held:
            approval_requests.hold(build, held.verdicts, lease=run.lease)
            return
