"""Downloads and pulls ask the database little, and see each change of rights at once."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from django.core import signing
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from accounts.access import Actor
from accounts.models import ApiToken
from accounts.roles import Role
from environments.domain.artifacts import ArtifactKind, ArtifactState
from environments.domain.images import MANIFEST
from environments.models import (
    Artifact,
    AuditEvent,
    BaseImage,
    Build,
    BuildTag,
    Environment,
    ImageBlob,
    Namespace,
)
from environments.operations.recalls import recall, undo_recall
from environments.registry.sign_in import SALT
from environments.services import blobs
from tests import factories

pytestmark = pytest.mark.django_db
FILE = "/api/envs/research/ml/{}/{}"
#: Statements of an answer, with the record of the audit log.
MAX_STATEMENTS = 3


@pytest.fixture
def namespace() -> Namespace:
    return factories.make_namespace("research")


@pytest.fixture
def build(namespace: Namespace) -> Build:
    return factories.make_build(factories.make_environment(namespace, "ml"))


@pytest.fixture
def token(namespace: Namespace) -> ApiToken:
    bob = factories.make_user("bob")
    namespace.grant(Role.VIEWER, bob)
    secret = factories.make_token(bob)
    ApiToken.objects.update(last_used_at=timezone.now(), last_used_address="127.0.0.1")
    found = ApiToken.objects.select_related("user").get()
    found.secret = secret  # type: ignore[attr-defined]
    return found


@pytest.fixture
def bob(token: ApiToken) -> Client:
    return Client(headers={"Authorization": f"Bearer {token.secret}"})  # type: ignore[attr-defined]


@pytest.fixture
def puller(token: ApiToken) -> Client:
    """With the signed token of a registry's client."""
    return puller_with(token.secret)  # type: ignore[attr-defined]


def puller_with(secret: str) -> Client:
    answer = Client().get(
        "/v2/token?scope=repository:research/ml:pull", headers={"Authorization": f"Bearer {secret}"}
    )
    return Client(headers={"Authorization": f"Bearer {answer.json()['token']}"})


def image_of(build: Build, *contents: bytes) -> list[ImageBlob]:
    """Parts of a made image: the first is its manifest."""
    BaseImage.objects.create(name=BaseImage.OWN, platform=factories.PLATFORM, digest="0" * 64)
    artifact = Artifact.wanted(build, ArtifactKind.IMAGE, factories.PLATFORM)
    retained = [blobs.add_bytes(content, folder=blobs.blobs_folder()) for content in contents]
    Artifact.objects.filter(pk=artifact.pk).update(state=ArtifactState.READY, blob=retained[0])
    return [
        ImageBlob.objects.create(
            artifact=artifact, blob=blob, media_type="a/layer" if number else MANIFEST
        )
        for number, blob in enumerate(retained)
    ]


def asked(client: Client, url: str, expected: int = 200, **headers: str) -> int:
    """How many statements a request sends, once an equal one was recorded on its connection."""
    for _ in range(2):  # the first event of a log locks its head
        client.get(url, headers=headers)
    with CaptureQueriesContext(connection) as sent:
        answer = client.get(url, headers=headers)
    assert answer.status_code == expected, answer.content
    return len(sent)


@pytest.mark.parametrize("name", ["conda-lock.yml", "environment.yml", "explicit.txt"])
@pytest.mark.parametrize("reference", ["current", "1", "stable"])
def test_a_file_of_a_lock_takes_few_statements(
    bob: Client, build: Build, name: str, reference: str
) -> None:
    BuildTag.objects.create(environment=build.environment, name="stable", build=build)
    url = FILE.format(reference, name)
    assert asked(bob, url) <= MAX_STATEMENTS
    assert asked(bob, url, 304, **{"If-None-Match": bob.get(url)["ETag"]}) <= MAX_STATEMENTS
    assert bob.get(url).content == bob.get(FILE.format("latest", name)).content


def test_parts_of_an_image_take_few_statements(
    puller: Client, build: Build, data_folder: object
) -> None:
    manifest, layer = image_of(build, b"{}", b"a layer")
    location = "/v2/research/ml"
    assert asked(puller, f"{location}/blobs/sha256:{layer.blob.sha256}") == 1
    assert asked(puller, f"{location}/manifests/sha256:{manifest.blob.sha256}") <= MAX_STATEMENTS
    assert puller.get(f"{location}/manifests/sha256:{layer.blob.sha256}").status_code == 404


@pytest.mark.parametrize("tag", ["1", "stable", "latest", "lock"])
def test_a_manifest_by_tag_takes_few_statements(
    puller: Client, build: Build, data_folder: object, tag: str
) -> None:
    assert build.lock is not None
    manifest, _ = image_of(build, b"{}", b"a layer")
    BuildTag.objects.create(environment=build.environment, name="stable", build=build)
    Environment.objects.update(current=build)
    url = f"/v2/research/ml/manifests/{f'lock-{build.lock.digest}' if tag == 'lock' else tag}"
    assert asked(puller, url) <= MAX_STATEMENTS
    assert puller.get(url)["Docker-Content-Digest"] == f"sha256:{manifest.blob.sha256}"


def test_a_tag_named_latest_comes_before_the_current_build(
    puller: Client, build: Build, data_folder: object
) -> None:
    image_of(build, b"{}")
    Environment.objects.update(current=build)
    other = factories.make_build(
        build.environment, lock=factories.make_lock(factories.make_package("numpy")), current=False
    )
    artifact = Artifact.wanted(other, ArtifactKind.IMAGE, factories.PLATFORM)
    blob = blobs.add_bytes(b"[]", folder=blobs.blobs_folder())
    Artifact.objects.filter(pk=artifact.pk).update(state=ArtifactState.READY, blob=blob)
    BuildTag.objects.create(environment=build.environment, name="latest", build=other)
    answer = puller.get("/v2/research/ml/manifests/latest")
    assert answer["Docker-Content-Digest"] == f"sha256:{blob.sha256}"


def test_an_image_on_a_replaced_base_is_not_the_one_of_the_tag(
    puller: Client, build: Build, data_folder: object, settings: Any
) -> None:
    image_of(build, b"{}")
    url = "/v2/research/ml/manifests/1"
    assert puller.get(url).status_code == 200
    BaseImage.objects.create(name=BaseImage.OWN, platform=factories.PLATFORM, digest="1" * 64)
    settings.REGISTRY_WAIT = timedelta(0)
    assert puller.get(url).status_code == 429


def test_a_pull_is_recorded_as_what_the_token_says(
    puller: Client, build: Build, token: ApiToken, data_folder: object
) -> None:
    manifest, _ = image_of(build, b"{}", b"a layer")
    for reference in ("1", f"sha256:{manifest.blob.sha256}"):
        assert puller.get(f"/v2/research/ml/manifests/{reference}").status_code == 200
    for event in AuditEvent.objects.filter(action="build.download"):
        assert (event.user_id, event.username) == (token.user_id, "bob")
        assert (event.token_id, event.address) == (token.pk, "127.0.0.1")
        assert event.changes == {"file": "image"}
    assert AuditEvent.objects.filter(action="build.download").count() == 2
    token.user.username = "robert"
    token.user.save()
    assert puller.get("/v2/research/ml/manifests/1").status_code == 200
    assert AuditEvent.objects.latest("pk").username == "robert"


def test_an_administrator_who_is_none_any_more_pulls_nothing_more(
    build: Build, data_folder: object
) -> None:
    _, layer = image_of(build, b"{}", b"a layer")
    root = factories.make_user("root", superuser=True)
    puller = puller_with(factories.make_token(root))
    urls = [f"/v2/research/ml/blobs/sha256:{layer.blob.sha256}", "/v2/research/ml/manifests/1"]
    assert [puller.get(url).status_code for url in urls] == [200, 200]
    root.is_superuser = False
    root.save()
    assert [puller.get(url).status_code for url in urls] == [404, 404]


def test_a_token_that_was_limited_meanwhile_pulls_no_more_than_that(
    build: Build, data_folder: object, token: ApiToken, puller: Client
) -> None:
    _, layer = image_of(build, b"{}", b"a layer")
    url = f"/v2/research/ml/blobs/sha256:{layer.blob.sha256}"
    for changed, status in (({"namespaces": ["another"]}, 404), ({"namespaces": []}, 200)):
        ApiToken.objects.update(**changed)
        assert puller.get(url).status_code == status
    ApiToken.objects.update(user=factories.make_user("somebody-else"))
    assert puller.get(url).status_code == 404


def test_a_token_of_an_older_version_is_taken_too(
    build: Build, data_folder: object, token: ApiToken, settings: Any
) -> None:
    _, layer = image_of(build, b"{}", b"a layer")
    said = {"token": token.pk, "for": ["repository:research/ml"]}
    signed = signing.dumps(said, key=settings.REGISTRY_KEY, salt=SALT)
    header = {"Authorization": f"Bearer {signed}"}
    url = f"/v2/research/ml/blobs/sha256:{layer.blob.sha256}"
    assert Client().get(url, headers=header).status_code == 200


def test_what_changes_acts_on_the_next_request(
    bob: Client, puller: Client, token: ApiToken, namespace: Namespace, build: Build,
    data_folder: object,
) -> None:  # fmt: skip
    _, layer = image_of(build, b"{}", b"a layer")
    root = Actor(factories.make_user("root", superuser=True))
    urls = {
        FILE.format("current", "explicit.txt"): bob,
        f"/v2/research/ml/blobs/sha256:{layer.blob.sha256}": puller,
        "/v2/research/ml/manifests/1": puller,
    }

    def statuses() -> list[int]:
        return [client.get(url).status_code for url, client in urls.items()]

    assert set(statuses()) == {200}
    hit = recall(actor=root, spec="python", reason="a test")
    assert set(statuses()) == {403}
    undo_recall(actor=root, recall=hit, reason="a test")
    assert set(statuses()) == {200}
    namespace.revoke(token.user)
    assert set(statuses()) == {404}
    namespace.grant(Role.VIEWER, token.user)
    Environment.objects.update(deleted_at=timezone.now())
    assert set(statuses()) == {404}
    Environment.objects.update(deleted_at=None)
    Build.objects.update(deleted_at=timezone.now())
    assert set(statuses()) == {404}
    Build.objects.update(deleted_at=None)
    ApiToken.objects.update(namespaces=["another"])
    assert set(statuses()) == {404}
    ApiToken.objects.update(namespaces=["research"])
    assert set(statuses()) == {200}
    ApiToken.objects.update(expires_at=timezone.now() - timedelta(seconds=1))
    assert set(statuses()) == {401}
    ApiToken.objects.update(expires_at=timezone.now() + timedelta(days=1))
    assert set(statuses()) == {200}
    token.user.is_active = False
    token.user.save()
    assert set(statuses()) == {401}
