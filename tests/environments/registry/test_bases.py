"""What images lie on: for a namespace, of another registry, replaced by another; the commands."""

from __future__ import annotations

import io
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.utils import timezone

from accounts.access import Actor
from accounts.roles import Role
from condastore.errors import AccessDeniedError, InvalidInputError
from environments.jobs import blob_gc
from environments.models import AuditEvent, BaseImage, Blob, Build, Namespace
from environments.operations import pushes
from environments.operations.images import set_base_image
from environments.services import blobs, image_builder
from tests import factories
from tests.environments.registry.conftest import (
    LOGIN,
    SMALL,
    Puller,
    build_it,
    registry_in,
    small_base,
    tool,
    write_layout,
)

pytestmark = pytest.mark.django_db(transaction=True)
ML, LAB = "/v2/research/ml/manifests", "/v2/lab/ml/manifests"
Pulling = Callable[[str], Puller]


def told(command: str, *arguments: str | Path) -> str:
    out = io.StringIO()
    call_command(command, *map(str, arguments), stdout=out)
    return out.getvalue()


def base_under(answer: Any) -> str:
    layer: str = answer.json()["layers"][0]["digest"]
    return layer


def test_a_namespace_has_a_base_of_its_own_and_images_made_before_keep_theirs(
    small: Build, submit: Callable[..., Build], research: Namespace, dora: Actor, tmp_path: Path,
    pull_as: Pulling, settings: Any,
) -> None:  # fmt: skip
    lab = factories.make_namespace("lab", alice=Role.DEVELOPER, bob=Role.VIEWER)
    build_it(submit(SMALL, environment=factories.make_environment(lab)))
    bob = pull_as("bob")
    before = bob.get(f"{ML}/1")
    assert bob.get(f"{LAB}/1").content == before.content
    image_builder.store_base("slim", small_base(tmp_path / "slim", says="slim"))
    with pytest.raises(AccessDeniedError, match="not among the base images"):
        set_base_image(actor=dora, namespace=research, name="slim")
    settings.BASE_IMAGES_ALLOWED = ["sl*", "registry.example.org/*"]
    set_base_image(actor=dora, namespace=research, name="slim")
    after = bob.get(f"{ML}/1")
    assert base_under(after) != base_under(before)
    assert after.json()["layers"][1:] == before.json()["layers"][1:]
    assert bob.get(f"{LAB}/1").content == before.content
    digest = before.headers["Docker-Content-Digest"]
    assert bob.get(f"{ML}/{digest}").content == before.content
    set_base_image(actor=dora, namespace=research, name="")
    assert bob.get(f"{ML}/1").content == before.content
    changes = AuditEvent.objects.filter(action="namespace.base-image").order_by("pk")
    assert changes.first().changes == {"before": "", "after": "slim"}


def test_a_base_is_chosen_by_who_runs_the_namespace_of_what_is_allowed_and_there(
    research: Namespace, dora: Actor, alice: Actor, root: Actor, settings: Any
) -> None:
    settings.BASE_IMAGES_ALLOWED = ["*"]
    with pytest.raises(AccessDeniedError):
        set_base_image(actor=alice, namespace=research, name="")
    for name, why in (
        ("never-loaded", "No base image was loaded"),
        ("a//b", "is not the name of an image"),
    ):
        with pytest.raises(InvalidInputError, match=why):
            set_base_image(actor=dora, namespace=research, name=name)
    settings.BASE_IMAGES_ALLOWED = []
    set_base_image(actor=root, namespace=research, name="registry.example.org/base:1")
    research.refresh_from_db()
    assert research.base_image == "registry.example.org/base:1"


def test_a_replaced_base_is_collected_when_no_image_lies_on_it(
    small: Build, tmp_path: Path, pull_as: Pulling, settings: Any
) -> None:
    settings.COLLECTION_GRACE = timedelta(0)
    assert pull_as("bob").get(f"{ML}/1").status_code == 200
    for says in ("second", "third"):
        image_builder.store_base(BaseImage.OWN, small_base(tmp_path / says, says=says))
    unused = BaseImage.objects.order_by("pk")[1].layers.get().blob
    Blob.objects.update(used_at=timezone.now() - timedelta(days=2))
    for _ in range(3):
        blob_gc.collect(notice=timedelta(0), orphans=False)
    assert BaseImage.objects.count() == 2  # one with an image on it, and the newest
    assert not Blob.objects.filter(pk=unused.pk).exists()
    assert not blobs.storage().exists(blobs.name_of(unused.sha256))
    assert pull_as("bob").get(f"{ML}/1").status_code == 200


def test_a_base_is_pulled_with_the_login_of_its_registry_alone(
    db: None, tmp_path: Path, root: Actor, settings: Any
) -> None:
    requested = write_layout(small_base(tmp_path / "made", says="closed"), tmp_path / "layout")
    with registry_in(tmp_path, closed=True) as registry:
        tool("skopeo", "copy", "--dest-tls-verify=false", "--dest-creds", LOGIN,
             f"oci:{tmp_path}/layout:base", f"docker://{registry}/team/base:1")  # fmt: skip
        name = f"http://{registry}/team/base:1"
        settings.BASE_IMAGE_LOGIN = LOGIN
        settings.BASE_IMAGE = "registry.example.org/other:1"
        with pytest.raises(CommandError, match="requires a sign-in"):
            told("base_image", "pull", name)
        assert requested in told("base_image", "pull", name, "--login", LOGIN)
        settings.BASE_IMAGE = name
        assert requested in told("base_image", "pull", name)
        settings.BASE_IMAGE = ""
        pushes.set_registry_login(actor=root, namespace=None, registry=registry, login=LOGIN)
        assert requested in told("base_image", "pull", name)
        with pytest.raises(CommandError, match=r"is for linux-64"):
            told("base_image", "pull", name, "--platform", "linux-aarch64")
        with pytest.raises(CommandError, match="does not exist"):
            told("base_image", "pull", f"http://{registry}/team/nothing:1")


def test_the_commands_load_and_list_bases_and_push_images(
    small: Build, tmp_path: Path, registry: str
) -> None:
    write_layout(small_base(tmp_path / "made", says="loaded"), tmp_path / "layout")
    for number, form in enumerate(("oci-archive", "docker-archive")):
        location = tmp_path / form
        name = "" if form == "oci-archive" else ":a/base:1"
        tool("skopeo", "copy", f"oci:{tmp_path}/layout:base", f"{form}:{location}{name}")
        line = told("base_image", "load", location, "--name", f"loaded-{number}").strip()
        assert line.startswith(f"loaded-{number} linux-64 sha256:")
        assert line in told("base_image", "list").splitlines()
    (tmp_path / "no-image").write_text("nothing")
    with pytest.raises(CommandError, match="cannot be unpacked"):
        told("base_image", "load", tmp_path / "no-image", "--name", "x")
    with pytest.raises(CommandError, match="does not exist"):
        told("base_image", "load", tmp_path / "missing", "--name", "x")
    to = f"http://{registry}/team/ml:1"
    assert "6 blobs" in told("image", "push", "research/ml", to, "--as", "bob")
    again = told("image", "push", "research/ml:1", to, "--as", "bob")
    assert "sent 0 blobs (0 bytes); 6 were already present" in again
    for wrong, why in (("research/no", "no environment"), ("research/ml:9", "has no image")):
        with pytest.raises(CommandError, match=why):
            told("image", "push", wrong, to, "--as", "bob")
    with pytest.raises(CommandError, match="no user"):
        told("image", "push", "research/ml", to, "--as", "nobody-here")
