"""The signed statement of a build: what it says, who can check it, and what a change does to it."""

from __future__ import annotations

import base64
import hashlib
import json
import stat
import subprocess
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from django.core.exceptions import ImproperlyConfigured
from django.test import Client
from django.utils import timezone
from securesystemslib.dsse import Envelope
from securesystemslib.exceptions import VerificationError
from securesystemslib.signer._key import SSlibKey

from accounts.access import Actor
from condastore.cli import verifying
from condastore.cli.errors import CommandError
from environments.domain.artifacts import ArtifactKind, ArtifactState
from environments.domain.provenance import authenticated
from environments.models import Artifact, Blob, Build, Environment, SolveRow
from environments.operations.policies import add_rule
from environments.services import signing
from tests import factories

FILE = "/api/envs/research/ml/1/provenance.intoto.json"


@pytest.fixture
def build(environment: Environment) -> Build:
    return factories.make_build(environment, text="dependencies: [python]  # of the course\n")


@pytest.fixture
def as_bob(bob: Actor) -> Client:
    client = Client()
    client.force_login(bob.account)
    return client


def statement(client: Client) -> tuple[Any, bytes]:
    """What it says, and the whole file."""
    answer = client.get(FILE)
    assert answer.status_code == 200, answer.content
    return json.loads(base64.b64decode(answer.json()["payload"])), answer.content


def test_it_says_what_a_build_was_made_from(as_bob: Client, build: Build, dora: Actor) -> None:
    build.environment.namespace.refresh_from_db()
    add_rule(
        actor=dora,
        namespace=build.environment.namespace,
        kind="size",
        effect="warn",
        name="small",
        settings={"packages": 500},
    )
    SolveRow.objects.create(
        key="k", specification=build.specification, lock=build.lock, channel_state="c" * 64
    )
    Build.objects.filter(pk=build.pk).update(finished_at=timezone.now())
    said, _ = statement(as_bob)
    assert said["_type"] == "https://in-toto.io/Statement/v1"
    definition = said["predicate"]["buildDefinition"]
    requested, inner = definition["externalParameters"], definition["internalParameters"]
    assert requested["specification"] == "dependencies: [python]  # of the course\n"
    assert requested["specificationDigest"] == build.specification.digest
    assert inner["lock"] == build.lock.digest
    assert inner["policy"] == {"research": 1}
    assert inner["channelState"] == "c" * 64
    [package] = build.lock.value().platforms[0].conda
    [found] = definition["resolvedDependencies"]
    assert found["digest"] == {"sha256": package.sha256}
    assert found["downloadLocation"] == package.url
    assert said["predicate"]["runDetails"]["metadata"]["invocationId"] == "research/ml:1"


def test_its_subjects_are_the_files_that_are_given(as_bob: Client, build: Build) -> None:
    said, first = statement(as_bob)
    digests = {one["name"]: one["digest"]["sha256"] for one in said["subject"]}
    for name in ("conda-lock.yml", "explicit.txt", "sbom.cdx.json"):
        given = as_bob.get(f"/api/envs/research/ml/1/{name}")
        saved = given["Content-Disposition"].split('"')[1]
        assert digests[saved] == hashlib.sha256(given.content).hexdigest()
    assert statement(as_bob)[1] == first
    artifact = Artifact.wanted(build, ArtifactKind.TAR_ZST, "linux-64")
    assert statement(as_bob)[1] == first  # not made yet
    blob = Blob.objects.create(sha256="d" * 64, size=1)
    Artifact.objects.filter(pk=artifact.pk).update(state=ArtifactState.READY, blob=blob)
    said, _ = statement(as_bob)
    created = {one["name"]: one["digest"]["sha256"] for one in said["subject"]}
    assert created == digests | {"research-ml-1-linux-64-env.tar.zst": "d" * 64}


def test_another_implementation_checks_the_signature(as_bob: Client, build: Build) -> None:
    _, content = statement(as_bob)
    public = load_pem_public_key(Client().get("/api/signing-key").content)
    key = SSlibKey.from_crypto(public, keyid=signing.key_id())  # type: ignore[arg-type]
    envelope = Envelope.from_dict(json.loads(content))
    envelope.verify([key], 1)
    envelope.payload += b" "
    with pytest.raises(VerificationError):
        envelope.verify([key], 1)


def test_openssl_checks_the_signature_as_documented(
    as_bob: Client, build: Build, tmp_path: Path
) -> None:
    _, content = statement(as_bob)
    document = json.loads(content)
    payload = base64.b64decode(document["payload"])
    (tmp_path / "message").write_bytes(authenticated(document["payloadType"], payload))
    (tmp_path / "sig").write_bytes(base64.b64decode(document["signatures"][0]["sig"]))
    (tmp_path / "key.pem").write_bytes(signing.public_key())
    command = "openssl pkeyutl -verify -pubin -inkey key.pem -rawin -in message -sigfile sig"
    subprocess.run(command.split(), cwd=tmp_path, check=True, capture_output=True)


def test_the_command_line_checks_it_offline(
    as_bob: Client, build: Build, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, content = statement(as_bob)
    file, key, lock = tmp_path / "p.json", tmp_path / "k.pem", tmp_path / "any-lock.yml"
    file.write_bytes(content)
    key.write_bytes(signing.public_key())
    lock.write_bytes(as_bob.get("/api/envs/research/ml/1/conda-lock.yml").content)
    verifying.verify(file, [lock], key=key)
    said = capsys.readouterr().out
    assert "The signature is right" in said
    assert "research-ml-1-conda-lock.yml" in said
    lock.write_text("another one")
    with pytest.raises(CommandError, match="not among the files") as caught:
        verifying.verify(file, [lock], key=key)
    document = json.loads(content)
    payload = base64.b64decode(document["payload"]).replace(b"ml:1", b"ml:2")
    file.write_text(json.dumps(document | {"payload": base64.b64encode(payload).decode()}))
    with pytest.raises(CommandError, match="not signed with this key, or was changed"):
        verifying.verify(file, key=key)
    for broken in ("{}", "[]", "none", '{"payloadType": 1, "payload": "x", "signatures": []}'):
        file.write_text(broken)
        with pytest.raises(CommandError, match="not a signed statement"):
            verifying.verify(file, key=key)
    assert "export the statement again" in caught.value.hint


def test_the_key_is_made_once_and_for_its_owner_alone(data_folder: Path) -> None:
    key = signing.key_id()
    assert signing.key_id() == key
    path = data_folder / "secrets" / "signing_key.pem"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert b"PUBLIC KEY" in Client().get("/api/signing-key").content


def test_a_key_of_another_kind_is_refused(settings: Any) -> None:
    command = ["openssl", "genpkey", "-algorithm", "x25519"]
    created = subprocess.run(command, capture_output=True, text=True, check=True)
    for text in (created.stdout, "-----BEGIN NOTHING-----", "words"):
        settings.SIGNING_KEY = text
        with pytest.raises(ImproperlyConfigured, match="openssl genpkey -algorithm ed25519"):
            signing.private_key()


def test_what_one_may_not_see_has_no_statement(build: Build, charlie: Actor) -> None:
    client = Client()
    assert client.get(FILE).status_code == 404
    client.force_login(charlie.account)
    assert client.get(FILE).status_code == 404
