"""The floor: what solve and install cost with py-rattler alone, in a process that stays warm."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import rattler

from tests.benchmarks.channels import PROJECT
from tests.benchmarks.measure import Clock, peak_memory


@dataclass(frozen=True, slots=True, kw_only=True)
class Bare:
    """Seconds of one solve and, where it was asked for, of its install."""

    solve: float
    install: float
    packages: int
    peak: int  # bytes that the process ever held

    @property
    def total(self) -> float:
        return self.solve + self.install


class BareRattler:
    """Use as a context manager; each `cache` is a cache and a gateway of its own."""

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.benchmarks.bare_rattler"],
            cwd=PROJECT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.kill()
        self._process.communicate()

    def run(
        self, channel: str, specs: Sequence[str], *, cache: Path, prefix: Path | None = None
    ) -> Bare:
        """Solve; install into `prefix` where there is one."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        request = {"channel": channel, "specs": list(specs), "cache": str(cache)}
        request["prefix"] = str(prefix or "")
        print(json.dumps(request), file=self._process.stdin, flush=True)
        return Bare(**json.loads(self._process.stdout.readline()))


async def _answer(request: dict[str, Any], gateways: dict[str, rattler.Gateway]) -> dict[str, Any]:
    cache = Path(request["cache"])
    if request["cache"] not in gateways:
        gateways.clear()
        gateways[request["cache"]] = rattler.Gateway(cache_dir=cache / "repodata")
    clock = Clock()
    records = await rattler.solve(
        [request["channel"]],
        request["specs"],
        gateway=gateways[request["cache"]],
        platforms=[rattler.Subdir("linux-64"), rattler.Subdir("noarch")],
        virtual_packages=[*rattler.VirtualPackage.detect()],
        channel_priority=rattler.ChannelPriority.Strict,
    )
    solve, clock = clock.seconds, Clock()
    if request["prefix"]:
        packages = cache / "packages"
        await rattler.install(
            records, request["prefix"], cache_dir=packages, installed_packages=[],
            show_progress=False,
        )  # fmt: skip
    return {
        "solve": solve,
        "install": clock.seconds if request["prefix"] else 0.0,
        "packages": len(records),
        "peak": peak_memory(),
    }


async def _serve() -> None:
    gateways: dict[str, rattler.Gateway] = {}
    for line in sys.stdin:
        print(json.dumps(await _answer(json.loads(line), gateways)), flush=True)


if __name__ == "__main__":
    asyncio.run(_serve())
    os._exit(0)  # its native threads do not survive the interpreter's own way out
