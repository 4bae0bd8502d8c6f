"""Hosted channels as their users meet them: the command line uploads, py-rattler installs."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from rattler import Gateway, MatchSpec, install, solve

from accounts.access import Actor
from environments.models import HostedPackage, Namespace
from environments.operations import hosted_channels
from tests import factories
from tests.condastore.command_line import Person
from tests.environments.engine.packing import conda, named


# Django leaves the file of a request's body to the collector where the client hangs up early.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_what_the_command_line_uploads_a_conda_client_installs(
    server: str, dora: Actor, alice: Actor, bob: Actor, research: Namespace, tmp_path: Path
) -> None:
    hosted_channels.create_channel(actor=dora, namespace=research, name="research/tools")
    files = []
    for name, content in (named("1.0"), ("bad-1.0-0.conda", conda()), named("2.0")):
        files.append(tmp_path / name)
        files[-1].write_bytes(content)
    (tmp_path / "home").mkdir()
    token = factories.make_token(alice.account)
    person = Person(home=tmp_path / "home", url=server, token=token)
    ended = person.does("channel", "upload", "research/tools", *map(str, files))
    assert ended.status == 6
    assert "bad-1.0-0.conda" in ended.err
    assert HostedPackage.objects.count() == 2  # the good ones, before and after
    shown = person.does("channel", "show", "research/tools", "--json").succeeded().document
    assert [one["version"] for one in shown["listed"]] == ["2.0", "1.0"]
    refused = person.does(
        "channel", "yank", "research/tools", "noarch/tool-2.0-0.conda", "--reason", "x"
    )
    assert refused.status == 3

    reading = factories.make_token(bob.account)
    channel = f"{server}/t/{reading}/channel/hosted/research/tools"
    prefix = tmp_path / "prefix"

    async def installed() -> None:
        records = await solve(
            sources=[channel],
            gateway=Gateway(cache_dir=tmp_path / "repodata"),
            specs=[MatchSpec("tool")],
            platforms=["linux-64", "noarch"],
        )
        await install(records, prefix, cache_dir=tmp_path / "packages")

    asyncio.run(installed())
    assert (prefix / "share" / "tool.txt").read_text() == "2.0"
