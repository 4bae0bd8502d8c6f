"""Secrets of private channels: stored sealed, and found nowhere else."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.channels.server import ChannelServer, serving
from tests.faults.conftest import Start
from tests.system import System

USER, PASSWORD, TOKEN = "reader", "pa55-w0rd-of-the-channel", "tk-0123456789-secret"
SECRETS = (PASSWORD, TOKEN)


@pytest.fixture(scope="module")
def private(small_channel: Path) -> Iterator[dict[str, ChannelServer]]:
    with ExitStack() as stack:
        yield {
            "basic": stack.enter_context(serving(small_channel, basic=(USER, PASSWORD))),
            "token": stack.enter_context(serving(small_channel, token=TOKEN)),
        }


@pytest.fixture(scope="module")
def system(start: Start) -> Iterator[System]:
    with start(LOG_LEVEL="DEBUG", BUILD_ATTEMPTS="1") as running:
        yield running


@pytest.mark.parametrize("kind", ["basic", "token"])
def test_a_private_channel_works_and_its_secret_is_nowhere(
    system: System, private: dict[str, ChannelServer], kind: str
) -> None:
    reference = f"private/{kind}"
    system.create(reference)
    url = private[kind].url_with_credentials
    text = f"channels: ['{url}']\ndependencies: [apptool, hello-noarch]\n"
    done = system.build(reference, text)
    assert (system.folder(reference) / "bin/apptool").exists()
    answers = [
        system.get(f"/api/envs/{reference}/current/{name}").text
        for name in ("conda-lock.yml", "environment.yml", "explicit.txt", "log")
    ]
    query = """query($id: ID!) { build(id: $id) {
      source specification { channels } log(start: 0, limit: 1000)
      lock { packages(first: 100) { edges { node { url channel } } } } } }"""
    answers.append(str(system.graphql(query, id=done["id"])))
    assert private[kind].url.rstrip("/") in answers[-1]
    for answer in answers:
        assert not [secret for secret in SECRETS if secret in answer], answer
    _nowhere_on_disk(system)


@pytest.mark.parametrize("kind", ["basic", "token"])
def test_an_error_about_a_private_channel_does_not_repeat_its_secret(
    system: System, private: dict[str, ChannelServer], kind: str
) -> None:
    reference = f"private/wrong-{kind}"
    system.create(reference)
    wrong = private[kind].url_with_credentials.replace(PASSWORD, PASSWORD[::-1])
    wrong = wrong.replace(TOKEN, TOKEN[::-1])
    text = f"channels: ['{wrong}']\ndependencies: [apptool]\n"
    done = system.wait(system.submit(reference, text))
    assert done["state"] == "FAILED", done
    assert private[kind].url.rstrip("/") in done["failure"]["message"]
    for secret in SECRETS:
        assert secret[::-1] not in str(done)
    # An unsatisfiable requirement is reported with the channel's name.
    text = f"channels: ['{private[kind].url_with_credentials}']\ndependencies: [no-such-package]\n"
    done = system.wait(system.submit(reference, text))
    assert done["failure"]["code"] == "unsatisfiable", done
    assert not [secret for secret in SECRETS if secret in str(done)]
    _nowhere_on_disk(system)


def test_another_namespace_does_not_get_in_by_a_secret_of_somebody_else(
    system: System, private: dict[str, ChannelServer]
) -> None:
    system.create("private/owner")
    system.create("other/stranger")
    server = private["basic"]
    system.build(
        "private/owner", f"channels: ['{server.url_with_credentials}']\ndependencies: [libalpha]\n"
    )
    text = f"channels: ['{server.url}']\ndependencies: [libalpha]\n"
    assert system.build("private/owner", text)["state"] == "READY"
    done = system.wait(system.submit("other/stranger", text))
    assert done["state"] == "FAILED", done
    assert done["failure"]["code"] == "channel-not-allowed", done


def _nowhere_on_disk(system: System) -> None:
    """Not in the database, by its rows or by its bytes; not in any file of ours, nor in a log."""
    with sqlite3.connect(f"file:{system.data}/db.sqlite3?mode=ro", uri=True) as rows:
        dump = "\n".join(rows.iterdump())
    rows.close()
    secrets = [*SECRETS, *(secret[::-1] for secret in SECRETS)]
    assert not [secret for secret in secrets if secret in dump]
    assert not [secret for secret in secrets if secret in system.log()]
    for path in sorted(system.data.rglob("*")):
        if path.is_symlink() or not path.is_file() or path.stat().st_size > 50_000_000:
            continue
        content = path.read_bytes()
        assert not [secret for secret in secrets if secret.encode() in content], path
