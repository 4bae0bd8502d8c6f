"""The pull side of OCI distribution 1.1, as container tools see it."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from django.utils import timezone
from typer.testing import CliRunner

from accounts.access import Actor
from accounts.models import ApiToken
from condastore.cli.main import app
from environments.domain.images import LAYER, SBOM, STATEMENT
from environments.domain.lifecycle import BuildState
from environments.domain.provenance import authenticated
from environments.models import Artifact, BaseImage, Build, BuildTag, Environment, Namespace
from environments.operations.policies import add_rule
from environments.operations.recalls import recall
from environments.services.engine_context import Engine
from tests import factories
from tests.environments.registry.conftest import SMALL, Puller, build_it

pytestmark = pytest.mark.django_db(transaction=True)
Pulling = Callable[[str], Puller]
ML = "/v2/research/ml"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"


def errors(answer) -> list[str]:
    assert answer.headers["Docker-Distribution-API-Version"] == "registry/2.0"
    return [one["code"] for one in answer.json()["errors"]]


def test_an_image_is_pulled_by_tag_and_each_part_of_it_by_digest(
    small: Build, pull_as: Pulling
) -> None:
    bob = pull_as("bob")
    assert bob.get("/v2/").status_code == 200
    answer = bob.get(f"{ML}/manifests/latest", Accept=MANIFEST)
    assert answer.status_code == 200, answer.text
    assert answer.headers["Content-Type"] == MANIFEST
    digest = f"sha256:{hashlib.sha256(answer.content).hexdigest()}"
    assert answer.headers["Docker-Content-Digest"] == digest
    manifest = answer.json()
    assert bob.get(f"{ML}/manifests/{digest}").content == answer.content
    config = bob.get(f"{ML}/blobs/{manifest['config']['digest']}").json()
    assert config["config"]["Entrypoint"] == ["/opt/env/etc/condastore/entrypoint"]
    assert config["config"]["Env"][0].startswith("PATH=/opt/env/bin:")
    assert config["config"]["Labels"]["io.condastore.lock"] == f"sha256:{small.lock.digest}"
    assert config["config"]["Labels"]["made.by"] == "a test"
    assert len(manifest["layers"]) == len(config["rootfs"]["diff_ids"])
    for layer, diff_id in zip(manifest["layers"], config["rootfs"]["diff_ids"], strict=True):
        part = bob.get(f"{ML}/blobs/{layer['digest']}")
        assert part.headers["Docker-Content-Digest"] == layer["digest"]
        assert len(part.content) == layer["size"]
        assert f"sha256:{hashlib.sha256(part.content).hexdigest()}" == layer["digest"]
        inner = hashlib.sha256(gzip.decompress(part.content)).hexdigest()
        assert f"sha256:{inner}" == diff_id


def test_a_head_says_what_a_get_gives_and_conditions_and_ranges_hold(
    small: Build, pull_as: Pulling
) -> None:
    bob = pull_as("bob")
    whole = bob.get(f"{ML}/manifests/1")
    head = bob.request("HEAD", f"{ML}/manifests/1")
    for name in ("Content-Length", "Content-Type", "Docker-Content-Digest", "ETag"):
        assert head.headers[name] == whole.headers[name]
    assert head.content == b""
    layer = whole.json()["layers"][0]["digest"]
    content = bob.get(f"{ML}/blobs/{layer}").content
    part = bob.get(f"{ML}/blobs/{layer}", Range="bytes=10-19")
    assert (part.status_code, part.content) == (206, content[10:20])
    known = bob.get(f"{ML}/blobs/{layer}", If_None_Match=f'"{layer}"')
    assert (known.status_code, known.content) == (304, b"")
    assert bob.request("HEAD", f"{ML}/blobs/{layer}").headers["Content-Length"] == str(len(content))


def test_numbers_tags_latest_and_the_lock_lead_to_builds(
    small: Build, submit: Callable[..., Build], environment: Environment, pull_as: Pulling
) -> None:
    second = build_it(submit("dependencies: [activating]"))
    BuildTag.objects.create(environment=environment, name="prod", build=small)
    failed = factories.make_build(environment, BuildState.FAILED, current=False)
    bob = pull_as("bob")
    tags = bob.get(f"{ML}/tags/list").json()
    locks = [f"lock-{one.lock.digest}" for one in (small, second)]
    assert tags == {"name": "research/ml", "tags": sorted(["1", "2", "latest", "prod", *locks])}
    digest = {
        tag: bob.get(f"{ML}/manifests/{tag}").headers["Docker-Content-Digest"]
        for tag in tags["tags"]
    }
    assert digest["1"] == digest["prod"] == digest[locks[0]]
    assert digest["2"] == digest["latest"] == digest[locks[1]] != digest["1"]
    missing = bob.get(f"{ML}/manifests/{failed.number}")
    assert (missing.status_code, errors(missing)) == (404, ["MANIFEST_UNKNOWN"])


def test_lists_come_in_pages(small: Build, pull_as: Pulling) -> None:
    bob = pull_as("bob")
    seen, path = [], f"{ML}/tags/list?n=1"
    while path:
        answer = bob.get(path)
        seen += answer.json()["tags"]
        path = answer.links.get("next", {}).get("url", "")
    assert seen == bob.get(f"{ML}/tags/list").json()["tags"]
    assert bob.get(f"{ML}/tags/list?n=0").json()["tags"] == []
    wrong = bob.get(f"{ML}/tags/list?n=many")
    assert wrong.status_code == 400
    assert bob.get("/v2/_catalog?n=1").json() == {"repositories": ["research/ml"]}
    assert bob.get("/v2/_catalog?last=research/ml").json() == {"repositories": []}


def test_what_one_may_not_see_is_answered_like_what_is_not_there(
    small: Build, pull_as: Pulling
) -> None:
    charlie, nobody = pull_as("charlie"), pull_as("")
    digest = pull_as("bob").get(f"{ML}/manifests/1").headers["Docker-Content-Digest"]
    locations = ["manifests/1", f"manifests/{digest}", f"blobs/{digest}", "tags/list"]
    locations.append(f"referrers/{digest}")
    for location in locations:
        for puller, status in ((charlie, 404), (nobody, 401)):
            hidden = puller.get(f"{ML}/{location}")
            absent = puller.get(f"/v2/research/no/{location}")
            assert hidden.status_code == absent.status_code == status
            assert hidden.text.replace("research/ml", "research/no") == absent.text
    assert charlie.get("/v2/_catalog").json() == nobody.get("/v2/_catalog").json()
    assert nobody.get("/v2/_catalog").json() == {"repositories": []}


def test_anybody_pulls_from_a_public_namespace(
    small: Build, research: Namespace, pull_as: Pulling
) -> None:
    Namespace.objects.filter(pk=research.pk).update(public=True)
    nobody = pull_as("")
    assert nobody.http.get(f"{ML}/manifests/1").status_code == 401  # so that tools ask for a token
    manifest = nobody.get(f"{ML}/manifests/1").json()
    assert nobody.get(f"{ML}/blobs/{manifest['config']['digest']}").status_code == 200
    assert nobody.get("/v2/_catalog").json() == {"repositories": ["research/ml"]}


def test_a_digest_is_served_only_where_an_image_refers_to_it(
    small: Build, submit: Callable[..., Build], research: Namespace, pull_as: Pulling
) -> None:
    other = factories.make_environment(research, "other")
    build_it(submit("dependencies: [libalpha ==2.0]", environment=other))
    bob = pull_as("bob")
    ours = bob.get(f"{ML}/manifests/1").json()
    theirs = bob.get("/v2/research/other/manifests/1").json()
    mine = {layer["digest"] for layer in ours["layers"]}
    alien = next(one["digest"] for one in theirs["layers"] if one["digest"] not in mine)
    assert bob.get(f"/v2/research/other/blobs/{alien}").status_code == 200
    refused = bob.get(f"{ML}/blobs/{alien}")
    assert (refused.status_code, errors(refused)) == (404, ["BLOB_UNKNOWN"])
    assert errors(bob.get(f"{ML}/blobs/sha256:../../etc/passwd")) == ["NAME_UNKNOWN"]
    assert errors(bob.get(f"{ML}/blobs/sha256:12")) == ["BLOB_UNKNOWN"]
    config = ours["config"]["digest"]
    assert errors(bob.get(f"{ML}/manifests/{config}")) == ["MANIFEST_UNKNOWN"]


def test_nothing_of_a_recalled_package_is_pulled(
    small: Build, root: Actor, pull_as: Pulling
) -> None:
    bob = pull_as("bob")
    manifest = bob.get(f"{ML}/manifests/1")
    recall(actor=root, spec="libbeta", reason="it leaks")
    layer = manifest.json()["layers"][1]["digest"]
    digest = manifest.headers["Docker-Content-Digest"]
    for location in ("manifests/1", f"manifests/{digest}", f"blobs/{layer}"):
        refused = bob.get(f"{ML}/{location}")
        assert (refused.status_code, errors(refused)) == (403, ["DENIED"])
        assert "it leaks" in refused.text


def test_a_token_ends_with_the_api_token_behind_it_and_is_for_one_repository(
    small: Build, pull_as: Pulling
) -> None:
    bob = pull_as("bob")
    assert bob.get(f"{ML}/tags/list").status_code == 200
    [token] = bob._tokens.values()
    bearer = {"Authorization": f"Bearer {token}"}
    other = bob.http.get("/v2/research/other/tags/list", headers=bearer)
    assert other.status_code == 401
    assert 'error="insufficient_scope"' in other.headers["WWW-Authenticate"]
    ApiToken.objects.filter(user__username="bob").update(revoked_at=timezone.now())
    assert bob.http.get(f"{ML}/tags/list", headers=bearer).status_code == 401
    wrong = bob.http.get("/v2/token", auth=("bob", "cs-wrong"))
    assert (wrong.status_code, errors(wrong)) == (401, ["UNAUTHORIZED"])


def test_an_old_or_changed_token_is_refused(
    small: Build, pull_as: Pulling, monkeypatch: pytest.MonkeyPatch
) -> None:
    from environments.registry import sign_in

    bob = pull_as("bob")
    assert bob.get(f"{ML}/tags/list").status_code == 200
    [token] = bob._tokens.values()
    changed = {"Authorization": f"Bearer {token[:-3]}abc"}
    assert bob.http.get(f"{ML}/tags/list", headers=changed).status_code == 401
    monkeypatch.setattr(sign_in, "LIFE", -1)
    old = {"Authorization": f"Bearer {token}"}
    assert bob.http.get(f"{ML}/tags/list", headers=old).status_code == 401


def test_an_api_token_itself_is_taken_too_within_its_namespaces(
    small: Build, server: str, bob: Actor, pull_as: Pulling
) -> None:
    secret = factories.make_token(bob.account, "narrow")
    http = pull_as("").http
    for header in ({"auth": ("x", secret)}, {"headers": {"Authorization": f"Bearer {secret}"}}):
        assert http.get(f"{ML}/tags/list", **header).status_code == 200
    ApiToken.objects.filter(name="narrow").update(namespaces=["elsewhere"])
    assert http.get(f"{ML}/tags/list", auth=("x", secret)).status_code == 404


@pytest.mark.parametrize("method", ["PUT", "POST", "PATCH", "DELETE"])
def test_nothing_is_pushed(small: Build, pull_as: Pulling, method: str) -> None:
    bob = pull_as("bob")
    for location in ("manifests/1", "blobs/uploads/", f"blobs/sha256:{'0' * 64}"):
        refused = bob.request(method, f"{ML}/{location}")
        assert (refused.status_code, errors(refused)) == (405, ["UNSUPPORTED"])


def test_a_pull_that_waited_long_enough_is_told_to_come_again(
    small: Build, pull_as: Pulling, settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    from environments import tasks

    monkeypatch.setattr(tasks.make_artifact, "send", lambda key: None)
    settings.REGISTRY_WAIT = timedelta(0)
    later = pull_as("bob").get(f"{ML}/manifests/1")
    assert (later.status_code, errors(later)) == (429, ["TOOMANYREQUESTS"])
    assert int(later.headers["Retry-After"]) > 0


def test_the_layers_of_a_zstd_tag_hold_the_same(small: Build, pull_as: Pulling) -> None:
    bob = pull_as("bob")
    plain, dense = (bob.get(f"{ML}/manifests/{tag}").json() for tag in ("1", "1-zstd"))
    requested = bob.get(f"{ML}/manifests/1", Accept=f"{MANIFEST}, {LAYER['zstd']}")
    assert requested.json() == dense
    assert "Accept" in requested.headers["Vary"]
    kinds = {layer["mediaType"].rpartition("+")[2] for layer in dense["layers"][1:]}
    assert kinds == {"zstd"}
    configs = [bob.get(f"{ML}/blobs/{one['config']['digest']}").json() for one in (plain, dense)]
    assert configs[0]["rootfs"] == configs[1]["rootfs"]


def test_a_part_that_was_lost_is_made_again(small: Build, pull_as: Pulling) -> None:
    from environments.models import Blob
    from environments.services import blobs

    bob = pull_as("bob")
    before = bob.get(f"{ML}/manifests/1")
    layer = before.json()["layers"][1]["digest"]
    path = blobs.local_path(Blob.objects.get(sha256=layer.removeprefix("sha256:")))
    path.unlink()
    lost = bob.get(f"{ML}/blobs/{layer}")
    assert (lost.status_code, errors(lost)) == (429, ["TOOMANYREQUESTS"])
    assert bob.get(f"{ML}/manifests/1").content == before.content
    assert bob.get(f"{ML}/blobs/{layer}").status_code == 200


def test_one_image_is_made_for_all_builds_with_its_lock(
    small: Build, submit: Callable[..., Build], pull_as: Pulling
) -> None:
    build_it(submit(SMALL))
    bob = pull_as("bob")
    assert bob.get(f"{ML}/manifests/1").content == bob.get(f"{ML}/manifests/2").content
    assert Artifact.objects.count() == 1


def test_the_sbom_of_an_image_is_among_its_referrers(small: Build, pull_as: Pulling) -> None:
    bob = pull_as("bob")
    digest, image = image_of(bob)
    answer = bob.get(f"{ML}/referrers/{digest}?artifactType={SBOM}")
    assert answer.headers["Content-Type"] == "application/vnd.oci.image.index.v1+json"
    assert answer.headers["OCI-Filters-Applied"] == "artifactType"
    [reported] = answer.json()["manifests"]
    assert reported["artifactType"] == SBOM
    manifest = bob.get(f"{ML}/manifests/{reported['digest']}").json()
    assert manifest["subject"]["digest"] == digest
    assert reported["annotations"] == manifest["annotations"]
    [layer] = manifest["layers"]
    sbom = bob.get(f"{ML}/blobs/{layer['digest']}").json()
    assert {"activating", "libbeta"} <= {one["name"] for one in sbom["components"]}
    assert image["annotations"]["io.condastore.sbom"] == layer["digest"]
    config = bob.get(f"{ML}/blobs/{image['config']['digest']}").json()["config"]
    assert config["Labels"]["io.condastore.sbom"] == layer["digest"]
    query = "?artifactType=application/other"
    assert bob.get(f"{ML}/referrers/{digest}{query}").json()["manifests"] == []
    everything = bob.get(f"{ML}/referrers/{digest}")
    assert "OCI-Filters-Applied" not in everything.headers
    assert len(everything.json()["manifests"]) == 2
    for other in (f"sha256:{'0' * 64}", image["layers"][0]["digest"], reported["digest"]):
        assert bob.get(f"{ML}/referrers/{other}").json()["manifests"] == []


def test_each_build_signs_where_its_image_comes_from_and_others_do_not_see_it(
    small: Build, submit: Callable[..., Build], research: Namespace, pull_as: Pulling,
    tmp_path: Path,
) -> None:  # fmt: skip
    other = factories.make_environment(research, "other")
    build_it(submit(SMALL, environment=other))
    bob = pull_as("bob")
    digest, _ = image_of(bob)
    location = f"referrers/{digest}?artifactType={STATEMENT}"
    [reported] = bob.get(f"{ML}/{location}").json()["manifests"]
    assert reported["annotations"]["io.condastore.build"] == "research/ml:1"
    manifest = bob.get(f"{ML}/manifests/{reported['digest']}")
    assert manifest.json()["artifactType"] == STATEMENT
    [layer] = manifest.json()["layers"]
    empty = manifest.json()["config"]["digest"]
    assert bob.get(f"{ML}/blobs/{empty}").content == b"{}"
    envelope = bob.get(f"{ML}/blobs/{layer['digest']}").json()
    payload = base64.b64decode(envelope["payload"])
    key = load_pem_public_key(bob.http.get("/api/signing-key").content)
    signature = base64.b64decode(envelope["signatures"][0]["sig"])
    assert isinstance(key, Ed25519PublicKey)
    key.verify(signature, authenticated(envelope["payloadType"], payload))
    for name, content in (
        ("statement", bob.get(f"{ML}/blobs/{layer['digest']}").content),
        ("image", bob.get(f"{ML}/manifests/1").content),
        ("key", bob.http.get("/api/signing-key").content),
    ):
        (tmp_path / name).write_bytes(content)
    files = [str(tmp_path / name) for name in ("statement", "image", "key")]
    checked = CliRunner().invoke(app, ["verify", *files[:2], "--key", files[2]])
    assert "is research/ml:1" in checked.output
    statement = json.loads(payload)
    said = {"name": "research/ml:1", "digest": {"sha256": digest.removeprefix("sha256:")}}
    assert statement["subject"] == [said]
    again = bob.get(f"{ML}/{location}").json()["manifests"]
    assert again == [reported]
    # The same image, of which the other environment says its own.
    [theirs] = bob.get(f"/v2/research/other/{location}").json()["manifests"]
    assert theirs["annotations"]["io.condastore.build"] == "research/other:1"
    assert bob.get(f"{ML}/manifests/{theirs['digest']}").status_code == 404
    assert bob.get(f"/v2/research/other/blobs/{layer['digest']}").status_code == 404
    recalling = factories.actor(factories.make_user("rita", superuser=True))
    recall(actor=recalling, spec="libbeta", reason="it leaks")
    assert bob.get(f"{ML}/{location}").json()["manifests"] == []
    assert bob.get(f"{ML}/blobs/{layer['digest']}").status_code == 403


def image_of(puller: Puller) -> tuple[str, dict[str, Any]]:
    answer = puller.get(f"{ML}/manifests/1")
    return answer.headers["Docker-Content-Digest"], answer.json()


def test_an_image_on_demand_is_built_by_the_pull_whatever_the_order_of_its_packages(
    at_once: None, base: BaseImage, engine: Engine, research: Namespace, environment: Environment,
    pull_as: Pulling, settings, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    from environments import tasks
    from environments.jobs import builds

    monkeypatch.setattr(tasks.run_next_build, "send", builds.run)
    settings.ON_DEMAND_NAMESPACE = "research"
    alice, bob, charlie, nobody = (pull_as(name) for name in ("alice", "bob", "charlie", ""))
    location = "/v2/dynamic/libbeta.1.2/activating"
    assert bob.get(f"{location}/manifests/latest").status_code == 403  # he may not build
    created = alice.get(f"{location}/manifests/latest")
    assert created.status_code == 200, created.text
    other = bob.get("/v2/dynamic/activating/libbeta.1.2/manifests/latest")
    assert other.content == created.content
    config = created.json()["config"]["digest"]
    assert bob.get(f"{location}/blobs/{config}").status_code == 200
    assert "latest" in bob.get(f"{location}/tags/list").json()["tags"]
    assert charlie.get(f"{location}/manifests/latest").status_code == 404
    assert nobody.get(f"{location}/manifests/latest").status_code == 401
    for _ in range(2):  # what could not be built is not built again at once
        wrong = alice.get("/v2/dynamic/package-that-nobody-has/manifests/latest")
        assert (wrong.status_code, errors(wrong)) == (404, ["MANIFEST_UNKNOWN"])
        assert "package-that-nobody-has" in wrong.text
    assert Build.objects.filter(state=BuildState.FAILED).count() == 1


@pytest.mark.parametrize("effect", ["enforce", "ask"])
def test_what_may_not_be_built_on_demand_is_denied_with_the_reason(
    at_once: None, base: BaseImage, engine: Engine, research: Namespace, dora: Actor,
    pull_as: Pulling, settings, monkeypatch: pytest.MonkeyPatch, effect: str,
) -> None:  # fmt: skip
    from environments import tasks
    from environments.jobs import builds

    monkeypatch.setattr(tasks.run_next_build, "send", builds.run)
    settings.ON_DEMAND_NAMESPACE = "research"
    add_rule(
        actor=dora, namespace=research, kind="packages-denied", effect=effect, name="no beta",
        settings={"packages": ["libbeta"]},
    )  # fmt: skip
    alice = pull_as("alice")
    for path in ("libbeta", "activating/libbeta"):
        denied = alice.get(f"/v2/dynamic/{path}/manifests/latest")
        assert (denied.status_code, errors(denied)) == (403, ["DENIED"])
        assert "libbeta" in denied.text
        assert "approval" in denied.text or effect == "enforce"
