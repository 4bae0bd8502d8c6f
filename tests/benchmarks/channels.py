"""The channels of the benchmarks, kept between runs, and a process that serves them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.channels import building
from tests.channels.fixtures import TODAY, cache_folder, cached_channel
from tests.channels.server import ChannelServer
from tests.channels.synthetic_repodata import SyntheticShape, write_synthetic_channel

PROJECT = Path(__file__).resolve().parents[2]


def small() -> Path:
    """A real Python and generated packages."""
    return cached_channel(
        "small", lambda folder: building.build_small(folder, now=TODAY), day=f"{TODAY:%Y%m%d}"
    )


def demo() -> Path:
    """A real scientific stack; half a minute and the network the first time."""
    work = cache_folder() / "downloads"
    return cached_channel("demo", lambda folder: building.build_demo(folder, work=work))


def synthetic() -> Path:
    """Records of the number and shape of conda-forge's, sharded; a minute the first time."""

    def build(folder: Path) -> None:
        write_synthetic_channel(folder, SyntheticShape(), shards=True)

    return cached_channel("synthetic", build)


CHANNELS = {"small": small, "demo": demo, "synthetic": synthetic}


@contextmanager
def served(*names: str) -> Iterator[str]:
    """Serve channels from a process of its own, so that a client never waits for this one.

    Yields the root's URL, with a slash: a channel is below its name.
    """
    folders = [f"{name}={CHANNELS[name]()}" for name in names]
    command = [sys.executable, "-m", "tests.benchmarks.channels", *folders]
    with subprocess.Popen(command, cwd=PROJECT, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield process.stdout.readline().strip()
        finally:
            process.kill()


def main() -> None:
    folders = {name: Path(path) for name, _, path in (word.partition("=") for word in sys.argv[1:])}
    with ChannelServer(folders) as server:
        print(server.url, flush=True)
        server.serve_forever()


if __name__ == "__main__":
    main()
