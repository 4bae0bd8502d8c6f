"""Independent container tools pull, unpack and run an image; others give us the base beneath it."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from accounts.access import Actor
from accounts.models import User
from condastore.errors import InvalidInputError, NotFoundError
from environments.domain.images import STATEMENT
from environments.engine.images import loading
from environments.engine.images.remote import Reference, pull
from environments.models import BaseImage, Build, Environment
from environments.operations.images import push_image
from environments.services import image_builder
from tests import factories
from tests.environments.registry.conftest import build_it, small_base, tool, write_layout
from tests.services.processes import find_program

pytestmark = pytest.mark.django_db(transaction=True)
RUNS = """\
name: runs
dependencies: [python, hello-noarch, activating]
variables: {GREETING: hello}
"""


def run_in(bundle: Path, *command: str) -> str:
    """What the image's entry point gives when it is run by an image's own settings."""
    config = json.loads((bundle / "config.json").read_text())["process"]
    program = find_program("bwrap", component="bubblewrap", install="apt-get install bubblewrap")
    options = ["--bind", bundle / "rootfs", "/", "--proc", "/proc", "--dev", "/dev"]
    options += ["--unshare-pid", "--die-with-parent", "--clearenv", "--chdir", config["cwd"]]
    for text in config["env"]:
        name, _, value = text.partition("=")
        options += ["--setenv", name, value]
    entry = config["args"][0]
    answer = subprocess.run(
        [program, *map(str, options), entry, *command], capture_output=True, text=True, check=False
    )
    assert answer.returncode == 0, answer.stderr
    return answer.stdout


def test_what_skopeo_pulls_runs_in_a_sandbox(
    submit: Callable[..., Build], at_once: None, server: str, tmp_path: Path
) -> None:
    build = build_it(submit(RUNS))
    secret = factories.make_token(User.objects.get(username="bob"))
    source = f"docker://{server.removeprefix('http://')}/research/ml:1"
    login = f"bob:{secret}"
    reported = json.loads(tool("skopeo", "inspect", "--tls-verify=false", "--creds", login, source))
    assert reported["Labels"]["io.condastore.lock"] == f"sha256:{build.lock.digest}"
    assert set(reported["RepoTags"]) >= {"1", "latest"}
    for tag in ("1", "1-zstd"):
        tool(
            "skopeo", "copy", "--src-tls-verify=false", "--src-creds", login,
            f"{source.removesuffix(':1')}:{tag}", f"oci:{tmp_path}/layout:{tag}",
        )  # fmt: skip
    tool("umoci", "unpack", *([] if os.geteuid() == 0 else ["--rootless"]), "--image",
         f"{tmp_path}/layout:1", tmp_path / "bundle")  # fmt: skip
    code = "import hello_noarch, os, sys; print(sys.prefix, os.environ['GREETING'])"
    assert run_in(tmp_path / "bundle", "python", "-c", code).split() == ["/opt/env", "hello"]
    said = run_in(tmp_path / "bundle", "sh", "-c", "echo $ACTIVATING_SCRIPT $ACTIVATING_VARIABLE")
    assert said.split() == ["active", "set"]
    assert run_in(tmp_path / "bundle", "hello-noarch").strip()


def test_a_base_is_pulled_once_from_another_registry(
    registry: str, tmp_path: Path, db: None
) -> None:
    requested = write_layout(
        small_base(tmp_path / "made", says="from elsewhere"), tmp_path / "layout"
    )
    target = f"{registry}/team/base:1"
    tool("skopeo", "copy", "--dest-tls-verify=false", f"oci:{tmp_path}/layout:base",
         f"docker://{target}")  # fmt: skip
    name = f"http://{target}"
    found = image_builder.find_base(name, "linux-64", work=tmp_path / "work")
    assert found.digest == requested
    assert found.layers.count() == 1
    again = image_builder.find_base(
        name, "linux-64", work=tmp_path / "nowhere"
    )  # is not asked again
    assert again == found
    with pytest.raises(NotFoundError, match="linux-aarch64"):
        pull(Reference.parse(name), platform="linux-aarch64", folder=tmp_path / "other")


@pytest.mark.parametrize("form", ["oci", "oci-archive", "docker-archive"])
def test_a_base_is_loaded_from_what_other_tools_write(form: str, tmp_path: Path, db: None) -> None:
    write_layout(small_base(tmp_path / "made"), tmp_path / "layout")
    location = tmp_path / form
    named = {"oci": ":base", "oci-archive": "", "docker-archive": ":a/base:1"}[form]
    tool("skopeo", "copy", f"oci:{tmp_path}/layout:base", f"{form}:{location}{named}")
    [image] = loading.load(location, folder=tmp_path / "work")
    base = image_builder.store_base("loaded", image)
    assert BaseImage.objects.current("loaded", "linux-64") == base
    assert base.config["config"]["Env"] == ["PATH=/bin", "LANG=C.UTF-8"]
    assert location.exists()


def test_only_what_is_missing_is_pushed(
    small: Build, submit: Callable[..., Build], environment: Environment, bob: Actor,
    registry: str, tmp_path: Path,
) -> None:  # fmt: skip
    target = f"http://{registry}/team/ml"
    first = push_image(actor=bob, environment=environment, tag="1", to=f"{target}:1")
    assert (first.sent, first.already_present) == (6, 0)  # config, base, three packages, activation
    again = push_image(actor=bob, environment=environment, tag="1", to=f"{target}:again")
    assert (again.sent, again.already_present) == (0, 6)
    build_it(submit("dependencies: [activating]"))
    second = push_image(actor=bob, environment=environment, tag="2", to=f"{target}:2")
    assert (second.sent, second.already_present) == (2, 2)  # config and activation are its own
    found = pull(Reference.parse(f"{target}:1"), platform="linux-64", folder=tmp_path / "back")
    assert len(found.layers) == 5
    with pytest.raises(InvalidInputError, match="is not the name of an image"):
        push_image(actor=bob, environment=environment, tag="1", to="ml:1")


def test_a_lock_for_several_platforms_gives_an_index(
    submit: Callable[..., Build], at_once: None, base: BaseImage, server: str, tmp_path: Path
) -> None:
    image_builder.store_base(BaseImage.OWN, small_base(tmp_path / "arm", platform="linux-aarch64"))
    text = "dependencies: [libalpha ==2.0]\nplatforms: [linux-64, linux-aarch64]\n"
    build_it(submit(text))
    login = f"bob:{factories.make_token(User.objects.get(username='bob'))}"
    source = f"docker://{server.removeprefix('http://')}/research/ml:1"
    options = ["--tls-verify=false", "--creds", login]
    raw = tool("skopeo", "inspect", "--raw", *options, source)
    index = json.loads(raw)
    digest = f"sha256:{hashlib.sha256(raw.encode()).hexdigest()}"
    location = f"{server}/v2/research/ml/referrers/{digest}"
    answer = httpx.get(location, headers={"Authorization": f"Bearer {login.removeprefix('bob:')}"})
    [reported] = answer.json()[
        "manifests"
    ]  # what the build says of the index; SBOMs are of each image
    assert reported["artifactType"] == STATEMENT
    found = {one["platform"]["architecture"] for one in index["manifests"]}
    assert found == {"amd64", "arm64"}
    for architecture in found:
        reported = tool("skopeo", "--override-arch", architecture, "inspect", *options, source)
        assert json.loads(reported)["Architecture"] == architecture
    tool("skopeo", "copy", "--all", "--src-tls-verify=false", "--src-creds", login, source,
         f"oci:{tmp_path}/both:1")  # fmt: skip
