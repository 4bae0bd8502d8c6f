"""What the tests of the registry share: a build with its image, and who pulls."""

from __future__ import annotations

import base64
import hashlib
import re
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from accounts.models import User
from environments import tasks
from environments.domain.images import CONFIG, LAYER, MANIFEST, canonical, oci_platform
from environments.engine.artifacts.tar import Entry
from environments.engine.images.archives import FIXED_TIME, write_layer
from environments.engine.images.loading import LoadedImage, LoadedLayer
from environments.jobs import artifacts, builds
from environments.models import BaseImage, Build
from environments.services import image_builder
from tests import factories
from tests.services.processes import Service, accepts, find_program, free_ports, running

SMALL = "dependencies: [activating, libbeta ==1.2]"
#: Of the closed registry; the hash is bcrypt's, which Python lacks.
LOGIN = "robot:sesame"
_HASH = "$2b$04$LW196F3PxQQeWU6WYacQV.yxlOVUI1CFcOSncEdU3K6RVM.39ln8C"
_TOLD = re.compile(r'(\w+)="([^"]*)"')


def build_it(build: Build) -> Build:
    builds.run(build.pk)
    build.refresh_from_db()
    assert build.failure is None, build.failure
    return build


def small_base(folder: Path, *, platform: str = "linux-64", says: str = "a base") -> LoadedImage:
    """A base with one file, where nothing has to run."""
    folder.mkdir(parents=True, exist_ok=True)
    entries = [Entry.file("etc/issue", says.encode(), FIXED_TIME)]
    made = write_layer(entries, folder / f"{platform}-{says}", compression="gzip")
    config = {
        **oci_platform(platform),
        "config": {"Env": ["PATH=/bin", "LANG=C.UTF-8"], "Labels": {"made.by": "a test"}},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{made.diff_id}"]},
    }
    layer = LoadedLayer(path=made.path, diff_id=made.diff_id, media_type=LAYER["gzip"])
    digest = hashlib.sha256(canonical(config)).hexdigest()
    return LoadedImage(platform=platform, digest=digest, config=config, layers=(layer,))


def write_layout(image: LoadedImage, to: Path) -> str:
    """An OCI layout with the image as `base`; the digest of its config."""
    blobs = to / "blobs" / "sha256"
    blobs.mkdir(parents=True)

    def put(content: bytes, media_type: str) -> dict[str, Any]:
        digest = hashlib.sha256(content).hexdigest()
        (blobs / digest).write_bytes(content)
        return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(content)}

    config = put(canonical(image.config), CONFIG)
    layers = [put(layer.path.read_bytes(), layer.media_type) for layer in image.layers]
    document = {"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": layers}
    manifest = put(canonical(document), MANIFEST)
    manifest["annotations"] = {"org.opencontainers.image.ref.name": "base"}
    (to / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    index = {"schemaVersion": 2, "manifests": [manifest]}
    (to / "index.json").write_bytes(canonical(index))
    return str(config["digest"]).removeprefix("sha256:")


@contextmanager
def registry_in(folder: Path, *, closed: bool = False) -> Iterator[str]:
    """Docker's own registry, empty: its address; `closed` to all but LOGIN."""
    program = find_program(
        "docker-registry", component="docker-registry", install="apt-get install docker-registry"
    )
    [port] = free_ports()
    config = folder / "registry.yml"
    auth = ""
    if closed:
        (folder / "passwords").write_text(f"robot:{_HASH}\n")
        auth = f"auth: {{htpasswd: {{realm: here, path: '{folder}/passwords'}}}}\n"
    config.write_text(
        f"version: 0.1\nhttp: {{addr: '127.0.0.1:{port}'}}\nlog: {{level: error}}\n"
        f"storage: {{filesystem: {{rootdirectory: '{folder}/registry'}}}}\n"
        f"{auth}"
    )
    service = Service(
        name="docker-registry",
        url=f"127.0.0.1:{port}",
        command=[str(program), "serve", str(config)],
        ready=accepts(port),
        folder=folder,
    )
    with running(service):
        yield service.url


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[str]:
    with registry_in(tmp_path) as address:
        yield address


@pytest.fixture
def base(transactional_db: None, data_folder: Path) -> BaseImage:
    """So that the machine's own libraries are not packed in every test."""
    return image_builder.store_base(BaseImage.OWN, small_base(data_folder / "base"))


@pytest.fixture
def at_once(unsent: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker without a queue: what is sent is made before `send` is back."""
    monkeypatch.setattr(tasks.make_artifact, "send", artifacts.make)


@pytest.fixture
def small(submit: Callable[..., Build], at_once: None, base: BaseImage) -> Build:
    """research/ml, build 1, of two packages without files to speak of."""
    return build_it(submit(SMALL))


class Puller:
    """A container tool: does what challenges tell it. Signs in with `secret`, or as nobody."""

    def __init__(self, address: str, secret: str = "") -> None:
        self.http = httpx.Client(base_url=address, timeout=60)
        self.secret = secret
        self._tokens: dict[str, str] = {}

    def get(self, path: str, **headers: str) -> httpx.Response:
        return self.request("GET", path, **headers)

    def request(self, method: str, path: str, **headers: str) -> httpx.Response:
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        answer = self.http.request(method, path, headers=sent)
        if answer.status_code != 401:
            return answer
        sent["Authorization"] = f"Bearer {self.token(answer)}"
        return self.http.request(method, path, headers=sent)

    def token(self, refused: httpx.Response) -> str:
        told = dict(_TOLD.findall(refused.headers["WWW-Authenticate"]))
        scope = told.get("scope", "")
        if scope not in self._tokens:
            headers = {}
            if self.secret:
                pair = base64.b64encode(f"anybody:{self.secret}".encode()).decode()
                headers["Authorization"] = f"Basic {pair}"
            query = {"service": told["service"], "scope": scope}
            answer = self.http.get(told["realm"], params=query, headers=headers)
            self._tokens[scope] = answer.json().get("token", "refused")
        return self._tokens[scope]


@pytest.fixture
def pull_as(server: str) -> Iterator[Callable[[str], Puller]]:
    made: list[Puller] = []

    def make(name: str) -> Puller:
        secret = ""
        if name:
            user = User.objects.get(username=name)
            secret = factories.make_token(user, f"pulls-{len(made)}")
        made.append(Puller(server, secret))
        return made[-1]

    yield make
    for one in made:
        one.http.close()


def tool(name: str, *arguments: str | Path) -> str:
    """Run an independent tool; its output."""
    program = find_program(name, component=name, install=f"apt-get install {name}")
    answer = subprocess.run(
        [program, *map(str, arguments)], capture_output=True, text=True, check=False
    )
    assert answer.returncode == 0, answer.stderr
    return answer.stdout
