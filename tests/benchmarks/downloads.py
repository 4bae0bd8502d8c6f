"""Statements and processor time of downloads and pulls, beside a plain authenticated view.

`python -m tests.benchmarks.downloads` does the requests, in a process and data folder of its own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any

from tests.benchmarks.channels import PROJECT
from tests.benchmarks.measure import Measure, median, scratch

ROUNDS, AT_ONCE = 15, 20
#: Statements of one request, with the record of the audit log.
MAX_STATEMENTS, MAX_SECONDS = 3, 0.005
PLAIN = "a plain authenticated view"


def downloads() -> Iterator[Measure]:
    with scratch() as folder:
        environ = {**os.environ, "CONDASTORE_DATA": str(folder), "CONDASTORE_LOG_LEVEL": "ERROR"}
        answer = subprocess.run(
            [sys.executable, "-m", "tests.benchmarks.downloads"],
            cwd=PROJECT,
            env=environ | {"CONDASTORE_ALLOWED_HOSTS": "testserver"},
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
    measured: dict[str, dict[str, float]] = json.loads(answer.stdout)
    plain = measured.pop(PLAIN)
    for name, cost in measured.items():
        yield Measure(
            name=f"statements of: {name}",
            value=cost["statements"],
            unit="",
            ceiling=MAX_STATEMENTS,
            note="the record of the audit log is one of them",
        )
        yield Measure(
            name=f"{name} / {PLAIN}",
            value=cost["seconds"] / plain["seconds"],
            unit="x",
            note=f"{cost['seconds'] * 1000:.2f} / {plain['seconds'] * 1000:.2f} ms of a processor, "
            f"in turns; at most {MAX_SECONDS * 1000:.0f} ms are wanted",
        )


def _measured() -> Mapping[str, Mapping[str, float]]:
    import django

    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "condastore.settings")
    django.setup()
    from django.conf import settings
    from django.core.management import call_command
    from django.db import connection
    from django.test import Client
    from django.test.utils import CaptureQueriesContext

    from accounts.roles import Role
    from tests import factories

    call_command("migrate", verbosity=0)
    namespace = factories.make_namespace("research")
    member = factories.make_user("bob")
    namespace.grant(Role.VIEWER, member)
    secret = factories.make_token(member)
    manifest, layer = _image(factories.make_build(factories.make_environment(namespace, "ml")))
    client = Client()
    answer = client.get(
        "/v2/token?scope=repository:research/ml:pull", headers={"Authorization": f"Bearer {secret}"}
    )
    signed = answer.json()["token"]
    location = "/v2/research/ml"
    requests = {
        PLAIN: (secret, "/api/whoami"),
        "lock as YAML": (secret, "/api/envs/research/ml/current/conda-lock.yml"),
        "blob of an image": (signed, f"{location}/blobs/sha256:{layer}"),
        "manifest by digest": (signed, f"{location}/manifests/sha256:{manifest}"),
        "manifest by tag": (signed, f"{location}/manifests/1"),
    }

    def get(name: str) -> None:
        token, url = requests[name]
        response = client.get(url, headers={"Authorization": f"Bearer {token}"})
        assert response.status_code == 200, (url, response.status_code)

    def statements(name: str) -> int:
        get(name)
        with CaptureQueriesContext(connection) as sent:
            get(name)
        return len(sent)

    found: dict[str, dict[str, Any]] = {name: {"seconds": []} for name in requests}
    assert settings.AUDIT_DOWNLOADS == 1
    for name, cost in found.items():
        cost["statements"] = statements(name)
    for _ in range(ROUNDS):
        for name, cost in found.items():
            begun = time.process_time()
            for _ in range(AT_ONCE):
                get(name)
            cost["seconds"].append((time.process_time() - begun) / AT_ONCE)
    return {name: cost | {"seconds": median(cost["seconds"])} for name, cost in found.items()}


def _image(build: Any) -> tuple[str, str]:
    """Digests of the manifest and a layer of an image, as if it had been built."""
    from environments.domain.artifacts import ArtifactKind, ArtifactState
    from environments.domain.images import MANIFEST
    from environments.models import Artifact, BaseImage, ImageBlob
    from environments.services import blobs
    from tests import factories

    BaseImage.objects.create(name=BaseImage.OWN, platform=factories.PLATFORM, digest="0" * 64)
    artifact = Artifact.wanted(build, ArtifactKind.IMAGE, factories.PLATFORM)
    folder = blobs.blobs_folder()
    manifest, layer = (blobs.add_bytes(one, folder=folder) for one in (b"{}", b"a layer"))
    for blob, kind in ((manifest, MANIFEST), (layer, "a/layer")):
        ImageBlob.objects.create(artifact=artifact, blob=blob, media_type=kind)
    Artifact.objects.filter(pk=artifact.pk).update(state=ArtifactState.READY, blob=manifest)
    return manifest.sha256, layer.sha256


if __name__ == "__main__":
    print(json.dumps(_measured()))
