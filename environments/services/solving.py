"""Solve a specification, or reuse the stored lock of an identical solve."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cached_property

from django.conf import settings
from django.utils import timezone

from accounts.access import Actor
from condastore import row_changes
from condastore.errors import LeaseLostError, UnsatisfiableError
from environments.domain.lock import Lock
from environments.domain.names import Credential
from environments.domain.pip_requirements import DirectReference
from environments.domain.policy import Policy
from environments.domain.records import (
    CondaPackage,
    Package,
    require_archives,
    require_sha256,
)
from environments.domain.specification import Specification
from environments.domain.urls import canonical_or_same, is_below
from environments.engine.channels.first_seen import FirstSeen
from environments.engine.solve.lock_completion import History
from environments.engine.solve.policy_view import Rules
from environments.engine.solve.solve import SolveRequest
from environments.models import (
    ChannelCredential,
    CondaRecord,
    LockRow,
    Namespace,
    PypiRecord,
    SolveRow,
    SpecificationRow,
)
from environments.models.leased_work import Lease
from environments.models.locks import BATCH
from environments.services import folders, hosted_channels
from environments.services.channel_hints import add_channel_hints
from environments.services.engine_context import get_engine

#: Part of the key of every stored solve; change it when solving itself changes.
SOLVE_VERSION = "2"


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    row: LockRow
    lock: Lock
    reused: bool


def credentials_for(namespace: Namespace, urls: tuple[str, ...]) -> tuple[Credential, ...]:
    """Return the credentials that builds of `namespace` may use for `urls`, by precedence."""
    return _covering(ChannelCredential.objects.usable_in(namespace), urls)


def source_urls(wanted: Specification) -> tuple[str, ...]:
    """Return URL prefixes of the packages in a specification, for choosing credentials."""
    pip = any(wanted.pip.values()) or (
        wanted.lock is not None and any(part.pypi for part in wanted.lock)
    )
    indexes = tuple(settings.PYPI_INDEX_URLS) if pip else ()
    named = [
        DirectReference.of_location(package.url, sha256=package.sha256).url
        for part in wanted.lock or ()
        for package in part.pypi
    ]
    urls = (*wanted.channels, *indexes, *wanted.pip_urls, *named)
    return tuple(dict.fromkeys(canonical_or_same(url) for url in urls))


def mirror_credentials(namespace: Namespace | None, upstream: str) -> tuple[Credential, ...]:
    """Return the credentials of a mirror's upstream. `namespace` None means the installation's."""
    return _covering(ChannelCredential.objects.usable_by_mirror(namespace), (upstream,))


def _covering(rows: Sequence[ChannelCredential], urls: tuple[str, ...]) -> tuple[Credential, ...]:
    return tuple(
        row.value()
        for row in rows
        if any(is_below(url, canonical_or_same(row.url_prefix)) for url in urls)
    )


def solve_or_reuse(
    specification: SpecificationRow,
    *,
    policy: Policy,
    namespace: Namespace,
    actor: Actor,
    force: bool,
    lease: Lease,
    cancelled: Callable[[], bool],
    log: Callable[[str], None],
) -> Answer:
    """Return the lock of a specification; equal inputs share one stored solve.

    The inputs are specification, channel state, platforms, policy and credentials. A caller with
    the same inputs as a running solve waits for its result, and solves in its place if the attempt
    that does so loses its lease.

    Args:
        lease: of the attempt that calls.
        actor: the submitter of the build; decides which hosted channels can be read.
        force: solve again even if a stored solve exists.
    """
    wanted = specification.value()
    hosted_channels.require_readable(actor, namespace, wanted)
    credentials = credentials_for(namespace, source_urls(wanted))
    engine = get_engine()
    solver = engine.solver(credentials)
    if wanted.lock is not None:
        brought = solver.complete_lock(
            wanted.lock,
            history=Listings(namespace),
            limits=engine.packages.limits,
            cancelled=cancelled,
            direct=policy.may_name,
            log=log,
        )
        return _store(brought)
    state = solver.channel_state(
        wanted.channels,
        wanted.platforms,
        cancelled=cancelled,
        time_limit=settings.SOLVE_TIME_LIMIT,
    )
    adds_pip = namespace.add_pip_as_python_dependency
    key = _key(wanted, state, policy, credentials, adds_pip=adds_pip)
    if force or not settings.REUSE_LOCKS:
        SolveRow.objects.filter(key=key).exclude(lock=None).delete()
    row = _claim_or_await(key, specification, state, lease=lease, cancelled=cancelled)
    if row.lock is not None:
        log(f"channels unchanged: using the lock of {row.created_at:%Y-%m-%d %H:%M}")
        return Answer(row=row.lock, lock=row.lock.value(), reused=True)
    request = _request(wanted, policy, adds_pip=adds_pip)
    try:
        started = time.monotonic()
        answer = _store(solver.solve(request, cancelled=cancelled, log=log))
        seconds = time.monotonic() - started
    except BaseException as error:
        row.give_up(lease)
        if isinstance(error, UnsatisfiableError):
            add_channel_hints(error, listed=wanted.channels)
        raise
    row.finish(lease, answer.row, seconds=seconds)
    log(f"solved in {seconds:.2f} s: {answer.row.package_count} packages")
    return answer


def _claim_or_await(
    key: str,
    specification: SpecificationRow,
    channel_state: str,
    *,
    lease: Lease,
    cancelled: Callable[[], bool],
) -> SolveRow:
    """Return the stored solve with its lock, or without one if this attempt is to solve.

    Raises:
        LeaseLostError: the attempt was cancelled while another one solves the same.
    """
    with row_changes.Watch(SolveRow(key=key).topic) as watch:
        while True:
            row, is_new = SolveRow.objects.get_or_create(
                key=key,
                defaults={
                    "specification": specification,
                    "channel_state": channel_state,
                    "lease_owner": lease.owner,
                },
            )
            if is_new or row.lock is not None or row.take_over(lease):
                return row
            if cancelled():
                raise LeaseLostError("Cancelled while waiting for an identical solve.")
            watch.wait(cancelled=cancelled)


class Listings(History):
    """Packages that channels and indexes have listed, as far as the namespace may see them."""

    def __init__(self, namespace: Namespace) -> None:
        self._namespace = namespace
        self._looks = FirstSeen(folders.data() / folders.SEEN)

    def records(self, packages: Sequence[Package]) -> Mapping[str, Package]:
        wanted = {
            (package.url, package.sha256, _channel(package))
            for package in packages
            if package.sha256
        }
        digests = sorted({sha256 for _, sha256, _ in wanted})
        found: dict[str, Package] = {}
        for start in range(0, len(digests), BATCH):
            some = {"sha256__in": digests[start : start + BATCH], "listed": True}
            for model in (CondaRecord, PypiRecord):
                for row in model.objects.filter(**some).order_by("pk"):
                    # Another channel may list the same URL with different metadata.
                    channel = row.channel if isinstance(row, CondaRecord) else ""
                    if (row.url, row.sha256, channel) in wanted:
                        found[row.url] = row.value()
        return {url: package for url, package in found.items() if not self._private(url)}

    def was_listed(self, package: CondaPackage) -> bool:
        return self._looks.sighting(package.channel, package.subdir, package.sha256) is not None

    def _private(self, url: str) -> bool:
        """Return whether the channel is known through a credential that the namespace lacks."""
        own, others = self._prefixes
        return any(is_below(url, one) for one in others) and not any(
            is_below(url, one) for one in own
        )

    @cached_property
    def _prefixes(self) -> tuple[set[str], set[str]]:
        mine = ChannelCredential.objects.usable_in(self._namespace)
        own = {canonical_or_same(row.url_prefix) for row in mine}
        every = ChannelCredential.objects.order_by().values_list("url_prefix", flat=True)
        return own, {canonical_or_same(prefix) for prefix in every} - own


def _channel(package: Package) -> str:
    return package.channel if isinstance(package, CondaPackage) else ""


def _store(lock: Lock) -> Answer:
    conda = [package for part in lock for package in part.conda]
    require_archives(conda)
    hosted_channels.require_own_channel(conda)
    if not settings.ALLOW_MD5:
        require_sha256(conda)
    return Answer(row=LockRow.store(lock), lock=lock, reused=False)


def _request(wanted: Specification, policy: Policy, *, adds_pip: bool) -> SolveRequest:
    required = policy.required
    return SolveRequest(
        channels=wanted.channels,
        dependencies={
            platform: tuple(dict.fromkeys((*wanted.dependencies.get(platform, ()), *required)))
            for platform in wanted.platforms
        },
        pip=wanted.pip,
        pip_options=wanted.pip_options,
        platforms=wanted.platforms,
        virtual_packages=wanted.virtual_packages,
        exclude_newer=wanted.exclude_newer,
        constraints=policy.constraints,
        rules=Rules(policy=policy, now=time.time(), first_seen=folders.data() / folders.SEEN),
        pypi_cutoff=_since(policy.pypi_age),
        pypi_cutoffs={name: _since(age) for name, age in policy.pypi_ages.items()},
        timeout=settings.SOLVE_TIME_LIMIT,
        allow_md5=settings.ALLOW_MD5,
        add_pip_as_python_dependency=adds_pip,
    )


def _since(age: timedelta) -> datetime | None:
    return timezone.now() - age if age else None


def _key(
    wanted: Specification,
    state: str,
    policy: Policy,
    credentials: tuple[Credential, ...],
    *,
    adds_pip: bool,
) -> str:
    # A relative age ("7 days") admits more packages over time, so the key changes each hour.
    ages = wanted.exclude_newer and not wanted.exclude_newer[:4].isdecimal()
    hour = timezone.now().strftime("%Y%m%d%H") if ages or policy.ages else ""
    who = sorted(f"{credential.url_prefix} {credential.secret}" for credential in credentials)
    parts = (SOLVE_VERSION, wanted.digest, state, policy.version, hour, f"pip={adds_pip}", *who)
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()
