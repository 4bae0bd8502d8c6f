"""Solve requests with rattler (conda packages) and uv (PyPI packages).

`RattlerSolver` is the entry point of the engine for solves and for reading whole channels.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Protocol

from condastore.errors import (
    ChannelUnavailableError,
    LeaseLostError,
    MemoryLimitError,
    RequestError,
    StoreError,
)
from environments.domain.exclude_newer import newest_allowed, parse_exclude_newer
from environments.domain.lock import Lock, PlatformLock
from environments.domain.names import Credential
from environments.domain.pip_requirements import NO_OPTIONS, PipOptions
from environments.domain.progress import Cancelled, never
from environments.domain.records import CondaPackage, PypiPackage
from environments.domain.unpacking import DEFAULT_LIMITS, Limits
from environments.domain.urls import canonical_or_same
from environments.engine.channels.jobs import ChannelJob, Described, Description, Listing
from environments.engine.channels.records import to_rattler
from environments.engine.channels.repodata import Channels
from environments.engine.network import forward_proxy
from environments.engine.pypi.direct_wheels import DirectWheel
from environments.engine.pypi.indexes import PythonIndexes
from environments.engine.pypi.rules import resolve_within_policy
from environments.engine.solve.lock_completion import History, complete_lock
from environments.engine.solve.match_specs import spec_name
from environments.engine.solve.process import MemoryExceededError, SolverProcesses
from environments.engine.solve.solve import Log, SolveRequest, Work, check, solve_conda
from environments.engine.solve.virtual_packages import virtual_packages

__all__ = ["RattlerSolver", "SolveRequest", "Solver", "to_rattler"]


class Solver(Protocol):
    """Interface of a solver; `RattlerSolver` implements it."""

    def solve(self, request: SolveRequest, *, cancelled: Cancelled, log: Log) -> Lock: ...

    def channel_state(
        self,
        channels: Sequence[str],
        platforms: Sequence[str],
        *,
        cancelled: Cancelled = ...,
        time_limit: timedelta | None = None,
    ) -> str: ...


class PypiPart(Protocol):
    """Interface of the PyPI resolver; `pypi.PypiResolver` implements it."""

    def provide(
        self,
        requirements: Sequence[str],
        platform_lock: PlatformLock,
        *,
        host: PlatformLock | None,
        virtual_packages: Sequence[str],
        exclude_newer: datetime | None,
        cancelled: Cancelled,
        log: Log,
        time_limit: timedelta,
    ) -> Mapping[str, DirectWheel]: ...

    def lock(
        self,
        requirements: Sequence[str],
        platform_lock: PlatformLock,
        *,
        virtual_packages: Sequence[str],
        exclude_newer: datetime | None,
        cancelled: Cancelled,
        log: Log,
        time_limit: timedelta,
        constraints: Sequence[str] = (),
        exclude_newer_of: Mapping[str, datetime | None] = ...,
        options: PipOptions = ...,
        direct: Mapping[str, DirectWheel] = ...,
    ) -> tuple[PypiPackage, ...]: ...


class RattlerSolver:
    """Solve the conda part with rattler, then the PyPI part with uv.

    rattler runs in a separate process: while it words the reason of an unsatisfiable request, its
    solver can take all memory of the machine, and its own time limit does not stop that.
    """

    def __init__(
        self,
        *,
        cache: Path,
        channels: Channels,
        pypi: PypiPart | None = None,
        indexes: PythonIndexes | None = None,
        isolated: bool = True,
        memory_limit: int = 1 << 30,
        idle_memory: int = 220 << 20,
        readable: Sequence[Path] = (),
        platform: str = "",
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """
        Args:
            cache: folder where the solver's processes keep repodata; usually that of `channels`.
            indexes: Python indexes that wheels of an imported lock may come from.
            isolated: False solves in this process; only for tests that look inside.
            memory_limit: bytes that a solve may use before it is stopped.
            idle_memory: bytes above which an idle solver process is replaced by a new one.
            readable: files that the processes may read beside their cache and the request's own.
            platform: platform of this machine, whose Python builds wheels from source.
        """
        self.channels = channels
        self.indexes = indexes
        self._pypi = pypi
        self._memory_limit = memory_limit
        self._platform = platform
        self._now = now
        self._processes = (
            SolverProcesses(
                cache=cache,
                memory_limit=memory_limit,
                idle_memory=idle_memory,
                readable=readable,
                limits=channels.limits,
            )
            if isolated
            else None
        )

    def warm_up(self) -> None:
        """Start a solver process, so that the first solve does not wait for it."""
        if self._processes is not None:
            self._processes.warm_up()

    def close(self) -> None:
        """Stop the processes and threads that were started here; the next call restarts them."""
        if self._processes is not None:
            self._processes.close()
        self.channels.close()

    def channel_state(
        self,
        channels: Sequence[str],
        platforms: Sequence[str],
        *,
        cancelled: Cancelled = never,
        time_limit: timedelta | None = None,
    ) -> str:
        """Return a digest of the channels' current contents; see `Channels.state`."""
        deadline = None if time_limit is None else time.monotonic() + time_limit.total_seconds()
        return self.channels.state(channels, platforms, cancelled=cancelled, deadline=deadline)

    def describe(
        self,
        channel: str,
        platforms: Sequence[str],
        *,
        each: Callable[[Described], None],
        cancelled: Cancelled = never,
        time_limit: timedelta,
    ) -> None:
        """Read all packages that a channel lists; call `each` in the order of their names.

        Raises:
            ChannelNotFoundError, ChannelNotAllowedError, ChannelUnavailableError: the channel
                cannot be read.
            TimeLimitError: it was not read within `time_limit`.
            LeaseLostError: `cancelled` returned True.
        """
        deadline = time.monotonic() + time_limit.total_seconds()
        states = self.channels.observe([channel], platforms, cancelled=cancelled, deadline=deadline)
        job = Description(
            channel=channel, platforms=tuple(platforms), states=states, deadline=deadline
        )
        self._read(job, each=each, cancelled=cancelled)

    def listed(
        self,
        channel: str,
        subdir: str,
        names: Sequence[str],
        *,
        urls: Collection[str],
        cancelled: Cancelled = never,
        deadline: float,
    ) -> list[CondaPackage]:
        """Return the files of one subdir that its channel lists, including files yanked here.

        Args:
            names: names of the packages in `urls`.
            urls: canonical URLs of files.
            deadline: a value of `time.monotonic()`.
        Raises:
            StoreError: the same errors as `describe`.
        """
        states = self.channels.observe([channel], [subdir], cancelled=cancelled, deadline=deadline)
        here = self.channels.hosted_packages(channel, subdir, names)
        if here is not None:
            return [package for package in here if canonical_or_same(package.url) in urls]
        found: list[CondaPackage] = []
        job = Listing(
            channel=channel,
            subdir=subdir,
            names=tuple(names),
            urls=frozenset(urls),
            states=states,
            deadline=deadline,
        )
        self._read(job, each=found.append, cancelled=cancelled)
        return [package for package in found if package.url in urls]

    def _read(self, job: ChannelJob, *, each: Callable[[Any], None], cancelled: Cancelled) -> None:
        if self._processes is None:
            self.channels.refresh(job.states)
            job.run(self.channels, lambda item: each(job.read_item(item)))
            return
        credentials = {channel: self.channels.credential(channel) for channel in job.channels}
        try:
            self._processes.run(job, credentials, each=each, cancelled=cancelled)
        except ChannelUnavailableError as error:
            if refused := forward_proxy.refusal_in(error.message):
                raise refused from error
            raise
        except MemoryExceededError as error:
            raise ChannelUnavailableError(
                f"Reading the package list of {', '.join(job.channels)} takes more memory than "
                "this installation allows.",
                hint="Ask the channel's owner to check its repodata, or leave the channel out.",
            ) from error

    def solve(self, request: SolveRequest, *, cancelled: Cancelled, log: Log) -> Lock:
        """Return a lock with the packages of every platform of `request`.

        Raises:
            SpecificationError: requirements that cannot be parsed; reports all of them.
            UnsatisfiableError, PypiError: there is no solution; the message says why.
            ChannelNotFoundError, ChannelNotAllowedError, ChannelUnavailableError: a channel
                cannot be read.
            TimeLimitError: no solution was found in time.
            LeaseLostError: `cancelled` returned True.
            MemoryLimitError: the solve needs more memory than it may use.
        """
        deadline = time.monotonic() + request.timeout.total_seconds()
        cutoff = newest_allowed(parse_exclude_newer(request.exclude_newer), self._now())
        check(request)
        states = self.channels.observe(
            request.channels, request.platforms, cancelled=cancelled, deadline=deadline
        )
        work = Work(
            request=request,
            cutoff=cutoff,
            states=states,
            hosted=self.channels.hosted(request.channels),
            deadline=deadline,
        )
        parts = self._solve_conda(work, cancelled=cancelled, log=log)
        if any(request.pip.get(platform) for platform in request.platforms):
            parts = [
                replace(
                    part, pypi=self._resolve_wheels(work, part, parts, cancelled=cancelled, log=log)
                )
                for part in parts
            ]
        return Lock(channels=request.channels, platforms=tuple(parts))

    def complete_lock(
        self,
        lock: Lock,
        *,
        cancelled: Cancelled,
        log: Log,
        history: History | None = None,
        limits: Limits = DEFAULT_LIMITS,
        time_limit: timedelta = timedelta(minutes=5),
        direct: Callable[[str], bool] = lambda url: False,
    ) -> Lock:
        """Complete an imported `lock` with the metadata of its channels and indexes.

        Raises:
            StoreError: the same errors as `lock_completion.complete_lock`.
        """
        return complete_lock(
            lock,
            channels=self.channels,
            listed=self.listed,
            indexes=self.indexes,
            history=history,
            limits=limits,
            cancelled=cancelled,
            log=log,
            time_limit=time_limit,
            direct=direct,
        )

    def _solve_conda(self, work: Work, *, cancelled: Cancelled, log: Log) -> list[PlatformLock]:
        if self._processes is None:
            return solve_conda(self.channels, work, cancelled=cancelled, log=log)
        credentials = {
            channel: self.channels.credential(channel) for channel in work.request.channels
        }
        try:
            return self._processes.run(work, credentials, cancelled=cancelled, log=log)
        except ChannelUnavailableError as error:
            if refused := forward_proxy.refusal_in(error.message):
                raise refused from error
            if not any(channel in error.message for channel in work.request.channels):
                raise _with_channel_names(error, work.request.channels) from error
            raise
        except MemoryExceededError:
            log("The solver needed too much memory; searching for the reason without it.")
        try:
            return self._processes.run(
                replace(work, explain_only=True), credentials, cancelled=cancelled, log=log
            )
        except MemoryExceededError as error:
            raise self._memory_fault(work, credentials, cancelled=cancelled) from error

    def _memory_fault(
        self, work: Work, credentials: Mapping[str, Credential | None], *, cancelled: Cancelled
    ) -> StoreError:
        """Return the error of a solve that took too much memory.

        The error names a channel if reading the required names from that channel alone takes too
        much. The oversized records may belong to a package that only other packages need; then
        the error names all channels.
        """
        assert self._processes is not None, "only solver processes have a memory limit"
        request = work.request
        here = {hosted.url for hosted in work.hosted}
        most = f"{self._memory_limit >> 20:,} MiB of memory"
        for channel, subdir in work.states:
            names = {
                spec_name(spec)
                for platform, specs in request.dependencies.items()
                if subdir in (platform, "noarch")
                for spec in specs
            }
            job = Listing(
                channel=channel,
                subdir=subdir,
                names=tuple(sorted(name for name in names if not name.startswith("__"))),
                urls=frozenset(),
                states={(channel, subdir): work.states[channel, subdir]},
                deadline=work.deadline,
            )
            if channel in here or not work.states[channel, subdir] or not job.names:
                continue
            try:
                self._processes.run(job, credentials, cancelled=cancelled)
            except MemoryExceededError:
                return ChannelUnavailableError(
                    f"Reading what {channel} lists for {subdir} takes more than {most}.",
                    hint="Leave the channel out, or ask its owner to check its repodata.",
                )
            except LeaseLostError:
                raise
            except StoreError:
                continue
        return MemoryLimitError(
            f"Solving with {', '.join(request.channels)} takes more than {most}.",
            hint="Give versions for more of the requirements, or ask for fewer packages.",
        )

    def _resolve_wheels(
        self,
        work: Work,
        part: PlatformLock,
        parts: Sequence[PlatformLock],
        *,
        cancelled: Cancelled,
        log: Log,
    ) -> tuple[PypiPackage, ...]:
        request = work.request
        requested = request.pip.get(part.platform, ())
        if not requested:
            return ()
        if self._pypi is None:
            raise RequestError(
                "This installation installs no packages from a Python index.",
                where="dependencies.pip",
                hint="Use conda packages instead, or ask an administrator to configure an index.",
            )
        pypi = self._pypi
        virtual = virtual_packages(part.platform, request.virtual_packages)
        others = {
            name: _earliest(work.cutoff, moment) for name, moment in request.pypi_cutoffs.items()
        }

        started = time.monotonic()
        cutoff = _earliest(work.cutoff, request.pypi_cutoff)
        direct = pypi.provide(
            requested,
            part,
            host=next((each for each in parts if each.platform == self._platform), None),
            virtual_packages=virtual,
            exclude_newer=cutoff,
            cancelled=cancelled,
            log=log,
            time_limit=request.timeout,
        )
        # Building a wheel has its own time limit, so it does not count here.
        deadline = work.deadline + (time.monotonic() - started if direct else 0)

        def resolve(constraints: Sequence[str]) -> tuple[PypiPackage, ...]:
            left = deadline - time.monotonic()
            return pypi.lock(
                requested,
                part,
                virtual_packages=virtual,
                exclude_newer=cutoff,
                exclude_newer_of=others,
                options=request.pip_options.get(part.platform, NO_OPTIONS),
                direct=direct,
                constraints=constraints,
                cancelled=cancelled,
                log=log,
                time_limit=timedelta(seconds=max(left, 1)),
            )

        if request.rules is None:
            return resolve(())
        return resolve_within_policy(resolve, request.rules, log=log)


def _with_channel_names(
    error: ChannelUnavailableError, channels: Sequence[str]
) -> ChannelUnavailableError:
    """Add the channels that may be meant to `error`, whose message names no channel."""
    which = "The channel is" if len(channels) == 1 else "The channel is one of"
    return ChannelUnavailableError(
        f"{error.message.rstrip('.')}. {which} {', '.join(channels)}.",
        where=error.where,
        hint=error.hint,
        details=error.details,
    )


def _earliest(*moments: datetime | None) -> datetime | None:
    return min((moment for moment in moments if moment is not None), default=None)
