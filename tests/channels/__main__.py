"""``python -m tests.channels KIND OUT``: make a channel in a folder, or serve one."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import zstandard

from . import building
from .server import ChannelServer
from .synthetic_repodata import SyntheticShape, write_synthetic_channel


def main() -> None:
    arguments = _parser().parse_args()
    started = time.monotonic()
    arguments.run(arguments)
    print(f"done in {time.monotonic() - started:.1f} s")


def _small(arguments: argparse.Namespace) -> None:
    building.build_small(arguments.out, python=arguments.python, level=arguments.level)


def _demo(arguments: argparse.Namespace) -> None:
    if not building.ensure_demo(arguments.out, work=arguments.work):
        print(f"{arguments.out} is complete already")


def _full(arguments: argparse.Namespace) -> None:
    building.build_full(
        arguments.out,
        pythons=arguments.python.split(","),
        interpreters=arguments.interpreter,
        stacks=arguments.stacks,
        work=arguments.work,
        level=arguments.level,
    )


def _synthetic(arguments: argparse.Namespace) -> None:
    shape = SyntheticShape(
        names=arguments.names,
        records=arguments.records,
        noarch_records=arguments.noarch_records,
        seed=arguments.seed,
        spare_names=_read_names(arguments.names_from) if arguments.names_from else (),
    )
    print(json.dumps(write_synthetic_channel(arguments.out, shape, shards=arguments.shards)))


def _read_names(path: Path) -> tuple[str, ...]:
    """The keys of a JSON object, or the items of a JSON array; the file may be zstd-compressed."""
    content = path.read_bytes()
    if path.suffix == ".zst":
        content = zstandard.ZstdDecompressor().decompress(content)
    return tuple(sorted(json.loads(content)))


def _serve(arguments: argparse.Namespace) -> None:
    with ChannelServer(arguments.out, port=arguments.port) as server:
        print(f"serving {arguments.out} at {server.url} (stop with Ctrl-C)", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.channels", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="KIND")

    small = commands.add_parser("small", help="generated packages and a real Python; no network")
    small.add_argument("--python", choices=("real", "stub", "none"), default="real")
    _add_level(small)
    small.set_defaults(run=_small)

    demo = commands.add_parser("demo", help="this Python and a choice of wheels; kept if complete")
    demo.add_argument("--work", type=Path, help="downloads kept between runs (OUT-work)")
    demo.set_defaults(run=_demo)

    full = commands.add_parser("full", help="Python, native libraries and converted wheels")
    full.add_argument("--python", default="3.11,3.12", help="minor versions, with commas")
    full.add_argument(
        "--interpreter",
        type=Path,
        action="append",
        default=[],
        help="a CPython to package; may be given several times",
    )
    full.add_argument(
        "--stacks", type=Path, default=building.FULL_STACKS, help="what to take from the index"
    )
    full.add_argument("--work", type=Path, help="downloads kept between runs (OUT-work)")
    _add_level(full)
    full.set_defaults(run=_full)

    synthetic = commands.add_parser("synthetic", help="repodata as of a large public channel")
    synthetic.add_argument("--names", type=int, default=25_000)
    synthetic.add_argument("--records", type=int, default=600_000)
    synthetic.add_argument("--noarch-records", type=int, default=150_000)
    synthetic.add_argument("--names-from", type=Path, help="JSON file of names to use")
    synthetic.add_argument("--seed", type=int, default=1)
    synthetic.add_argument("--shards", action="store_true", help="also write sharded repodata")
    synthetic.set_defaults(run=_synthetic)

    index = commands.add_parser("index", help="only index the packages that are in OUT")
    index.set_defaults(run=lambda arguments: building.index(arguments.out))

    serve = commands.add_parser("serve", help="serve OUT over HTTP, to this machine only")
    serve.add_argument("--port", type=int, default=8765)
    serve.set_defaults(run=_serve)

    for command in (small, demo, full, synthetic, index, serve):
        command.add_argument("out", type=Path, help="the channel's folder")
    return parser


def _add_level(command: argparse.ArgumentParser) -> None:
    command.add_argument("--level", type=int, default=3, help="zstd level (3)")


if __name__ == "__main__":
    main()
