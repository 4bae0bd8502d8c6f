"""Cost of archives relative to conda-pack's, and of archives that share packages.

Both have one thread and write the same format. Processor time is compared: conda-pack's command
starts a Python of its own, which is a twentieth of it.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import rattler

from environments.domain.lock import Lock, PlatformLock
from environments.engine.artifacts.archives import archive_parts
from environments.engine.artifacts.file_systems import make_squashfs
from environments.engine.artifacts.parts import (
    GZIP,
    ZSTD,
    Compression,
    PartFolder,
    write_parts,
)
from environments.engine.artifacts.staging import Material
from environments.engine.network import addresses
from environments.engine.packages.cache import PackageCache
from environments.engine.prefix import linking
from tests.benchmarks.channels import demo
from tests.benchmarks.measure import MEGABYTE, Measure, median, scratch
from tests.benchmarks.running import STACK
from tests.environments.engine.package_fixtures import packages_of

ROUNDS = 2
#: Packages that come on top: the rest, nine of ten, is shared.
MORE = ("requests",)
#: Each with the most that it may take of the processor time of conda-pack's command.
FORMATS = {"tar.zst": (ZSTD, 0.28), "tar.gz": (GZIP, 0.5)}


def archives() -> Iterator[Measure]:
    channel = demo()
    addresses.install(lambda: addresses.Guard.from_settings(folders=[str(channel)]))
    with scratch() as folder:
        cache = PackageCache(folder / "cache/packages")
        stack = _material(channel, STACK, cache, folder / "stack")
        more = _material(channel, (*STACK, *MORE), cache, folder / "more")
        prefix = folder / "prefix"
        linking.link(
            stack.part,
            target=prefix,
            final_prefix=prefix,
            cache=cache,
            packages=stack.packages,
            requested=STACK,
            variables={},
            moment=stack.moment,
            note="",
        )
        for name, (compression, ceiling) in FORMATS.items():
            yield from _compared(name, compression, ceiling, stack, more, prefix, folder)
        yield _mounted(stack)


def _compared(
    name: str,
    compression: Compression,
    ceiling: float,
    stack: Material,
    more: Material,
    prefix: Path,
    folder: Path,
) -> Iterator[Measure]:
    ours, theirs, again = [], [], []
    created: set[str] = set()
    for number in range(ROUNDS):
        peer = folder / f"peer-{number}.{name}"
        theirs.append(_conda_pack(prefix, peer))
        retained = PartFolder(folder / f"parts-{number}-{name}")
        out = folder / f"ours-{number}.{name}"
        ours.append(_write(stack, out, compression, retained))
        created.add(hashlib.sha256(out.read_bytes()).hexdigest())
        again.append(_write(more, folder / f"more-{number}.{name}", compression, retained))
        sizes = out.stat().st_size, peer.stat().st_size
        peer.unlink()
    assert len(created) == 1, "the same bytes each time"
    yield Measure(
        name=f"{name} / conda-pack's command, processor time",
        value=median(ours) / median(theirs),
        unit="x",
        ceiling=ceiling,
        note=f"{median(ours):.1f} s / {median(theirs):.1f} s, one thread each, medians of {ROUNDS}",
    )
    yield Measure(
        name=f"size of {name} / conda-pack's",
        value=sizes[0] / sizes[1],
        unit="x",
        ceiling=1.05,
        note=f"{sizes[0] / MEGABYTE:.1f} MB / {sizes[1] / MEGABYTE:.1f} MB",
    )
    yield Measure(
        name=f"{name} of an environment that shares 90 % / the first",
        value=median(again) / median(ours),
        unit="x",
        ceiling=0.5,
        note=f"{median(again):.2f} s; parts of shared packages are copied",
    )


def _mounted(stack: Material) -> Measure:
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    begun, before = time.process_time(), children.ru_utime + children.ru_stime
    path = make_squashfs(stack)
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return Measure(
        name="squashfs, processor time",
        value=time.process_time() - begun + children.ru_utime + children.ru_stime - before,
        unit="s",
        note=f"{path.stat().st_size / MEGABYTE:.0f} MB",
    )


def _material(channel: Path, specs: Sequence[str], cache: PackageCache, work: Path) -> Material:
    found = {one.url.rpartition("/")[2]: one for one in packages_of(channel).values()}
    records = asyncio.run(
        rattler.solve(
            [channel.as_uri()],
            list(specs),
            platforms=[rattler.Subdir("linux-64"), rattler.Subdir("noarch")],
            virtual_packages=rattler.VirtualPackage.detect(),
        )
    )
    packages = tuple(found[record.file_name] for record in records)
    work.mkdir()
    part = PlatformLock(platform="linux-64", conda=packages)
    return Material(
        lock=Lock(channels=(channel.as_uri(),), platforms=(part,)),
        platform="linux-64",
        packages=cache.ensure(packages),
        wheels=(),
        variables={},
        cache=cache,
        work=work,
    )


def _write(material: Material, path: Path, compression: Compression, kept: PartFolder) -> float:
    begun = time.process_time()
    with path.open("xb") as out:
        write_parts(archive_parts(material), out, compression=compression, kept=kept, threads=1)
    return time.process_time() - begun


def _conda_pack(prefix: Path, path: Path) -> float:
    command = Path(sys.executable).with_name("conda-pack")
    before = os.times()
    subprocess.run(
        [command, "--prefix", prefix, "--output", path, "--n-threads", "1", "--quiet"],
        check=True,
        stderr=subprocess.DEVNULL,
    )
    after = os.times()
    return (after.children_user + after.children_system) - (
        before.children_user + before.children_system
    )
