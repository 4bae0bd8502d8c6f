"""Cost of a container image relative to compressing its new bytes.

`python -m tests.benchmarks.images CHANNEL` does the work, in a process and data folder of its own.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Container, Iterator, Sequence
from pathlib import Path
from typing import Any

import rattler

from tests.benchmarks.channels import PROJECT, demo
from tests.benchmarks.measure import MEGABYTE, Measure, median, scratch
from tests.benchmarks.running import STACK

HALF = ("python", "ipykernel")
#: What comes on top of the stack; a tenth of the packages.
MORE = ("requests",)
LOOKS = 9
ROUNDS = 3


def images() -> Iterator[Measure]:
    channel = demo()
    with scratch() as folder:
        answer = subprocess.run(
            [sys.executable, "-m", "tests.benchmarks.images", str(channel)],
            cwd=PROJECT,
            env={
                **os.environ,
                "CONDASTORE_DATA": str(folder),
                "CONDASTORE_FILE_CHANNELS": str(channel),
                "CONDASTORE_LOG_LEVEL": "ERROR",
            },
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
    reported: dict[str, Any] = json.loads(answer.stdout)
    yield Measure(
        name="image, half of its layers new / compressing and digesting the new bytes",
        value=reported["making"] / reported["compressing"],
        unit="x",
        ceiling=1.1,
        note=f"{reported['making']:.2f} s / {reported['compressing']:.2f} s; "
        f"one thread each, of a processor, means of {ROUNDS}; {reported['packages']} packages, "
        f"{reported['layers']} layers, {reported['bytes'] / MEGABYTE:.0f} MB",
    )
    yield Measure(
        name="new bytes of an image after one small package changed / the image",
        value=reported["changed"],
        unit="x",
        ceiling=0.05,
    )
    yield Measure(
        name="new bytes of an image that shares 90 % / its own packages aside, the image",
        value=reported["shared"],
        unit="x",
        ceiling=0.15,
    )
    yield Measure(
        name="manifest of an image that is there", value=reported["asked"], unit="s", ceiling=0.1
    )
    yield Measure(
        name="manifest of a new image whose layers are there",
        value=reported["composed"],
        unit="s",
        ceiling=0.1,
        note=f"of a processor, medians of {LOOKS}, without HTTP",
    )


def _work(channel: Path) -> dict[str, Any]:
    import django

    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "condastore.settings")
    django.setup()
    from django.conf import settings
    from django.core.management import call_command

    from environments.domain.artifacts import ArtifactKind, ArtifactState
    from environments.domain.images import PackageLayer
    from environments.domain.lock import Lock, PlatformLock, dependency_order
    from environments.engine.artifacts.parts import GZIP, PIECE
    from environments.engine.images.archives import LayerFile, unpacked
    from environments.engine.images.layers import make_layer
    from environments.jobs import artifacts
    from environments.models import Artifact, Blob, Build, ImageBlob, Layer
    from environments.operations import images as operations
    from environments.services import blobs, image_manifests
    from environments.services import image_builder as images
    from environments.services.engine_context import get_engine
    from tests import factories
    from tests.environments.engine.package_fixtures import packages_of

    settings.DISK_RESERVE = 0
    images.PARALLEL_LAYERS = 1  # as what it is compared with
    call_command("migrate", verbosity=0)
    root = factories.actor(factories.make_user("root", superuser=True))
    namespace = factories.make_namespace()
    known = {one.url.rpartition("/")[2]: one for one in packages_of(channel).values()}

    def build(specs: Sequence[str], *, without: Sequence[str] = ()) -> Build:
        records = asyncio.run(
            rattler.solve(
                [channel.as_uri()],
                list(specs),
                platforms=[rattler.Subdir("linux-64"), rattler.Subdir("noarch")],
                virtual_packages=rattler.VirtualPackage.detect(),
            )
        )
        chosen = [known[one.file_name] for one in records]
        chosen = [one for one in chosen if one.name not in without]
        part = PlatformLock(platform="linux-64", conda=dependency_order(chosen))
        get_engine().packages.ensure(part.conda)  # fetching is another's time
        lock = Lock(channels=(channel.as_uri(),), platforms=(part,))
        environment = factories.make_environment(namespace, f"e{Build.objects.count()}")
        return factories.make_build(environment, lock=lock)

    def made(one: Build) -> tuple[Artifact, float]:
        row = Artifact.wanted(one, ArtifactKind.IMAGE, "linux-64")
        begun = time.process_time()
        artifacts.make(row.pk)
        taken = time.process_time() - begun
        row.refresh_from_db()
        assert row.state == ArtifactState.READY, row.failure
        return row, taken

    def layers(row: Artifact) -> dict[str, Blob]:
        rows = ImageBlob.objects.filter(artifact=row, media_type__contains="layer")
        return {one.blob.sha256: one.blob for one in rows.select_related("blob")}

    def forget(row: Artifact, layers_before: set[str], blobs_before: Container[str]) -> None:
        """As if the image and its new layers had never been made."""
        gone = [blob for sha256, blob in layers(row).items() if sha256 not in blobs_before]
        row.delete()
        Layer.objects.exclude(key__in=layers_before).delete()
        for blob in gone:
            blobs.remove(blob)
            blob.delete()

    compressing = aside = 0.0

    def make_beside(layer: PackageLayer, to: Path, **options: Any) -> LayerFile:
        """And at once what is compared with it: the machine is not equally fast all the time."""
        nonlocal compressing, aside
        found = make_layer(layer, to, **options)
        begun = time.process_time()
        plain, packed = to.with_name("plain"), to.with_name("packed")
        plain.write_bytes(b"".join(unpacked(to, "gzip")))
        inner, outer = hashlib.sha256(), hashlib.sha256()  # an image names both
        space = memoryview(bytearray(PIECE))
        ready = time.process_time()
        with plain.open("rb", buffering=0) as source, packed.open("wb", buffering=0) as out:
            while taken := source.readinto(space):
                inner.update(space[:taken])
                out.write(data := GZIP.compress(space[:taken]))
                outer.update(data)
        compressing += time.process_time() - ready
        plain.unlink()
        packed.unlink()
        aside += time.process_time() - begun
        return found

    made(build(["libzlib"]))  # the base, and what is read once
    half, stack = build(HALF), build(STACK)
    before = layers(made(half)[0])
    had = set(Layer.objects.values_list("key", flat=True))
    whole, _ = made(stack)  # what it reads was read
    vars(images)["make_layer"] = make_beside
    making = 0.0
    for _ in range(ROUNDS):
        forget(whole, had, before)
        whole, taken = made(stack)
        making += taken
    making -= aside
    vars(images)["make_layer"] = make_layer
    after = layers(whole)
    size = sum(blob.size for blob in after.values())

    less = layers(made(build(STACK, without=["six"]))[0])
    changed = sum(blob.size for sha256, blob in less.items() if sha256 not in after) / size
    more_build = build((*STACK, *MORE))
    more = layers(made(more_build)[0])
    new_bytes = sum(blob.size for sha256, blob in more.items() if sha256 not in after)

    requested, composed = [], []
    for number in range(LOOKS):
        begun = time.process_time()
        found = operations.request_images(actor=root, build=stack)
        image_manifests.manifest_of(stack, found)
        requested.append(time.process_time() - begun)
        stack.specification = factories.make_specification(
            f"variables: {{NUMBER: '{number}'}}\ndependencies: [python]"
        )
        begun = time.process_time()
        [row] = operations.request_images(actor=root, build=stack)
        composed.append(time.process_time() - begun)
        assert row.state == ArtifactState.READY
    return {
        "making": making / ROUNDS,
        "compressing": compressing / ROUNDS,
        "packages": len(stack.lock.value().platforms[0].conda) if stack.lock else 0,
        "layers": len(after),
        "bytes": size,
        "changed": changed,
        "shared": new_bytes / sum(blob.size for blob in more.values()),
        "asked": median(requested),
        "composed": median(composed),
    }


if __name__ == "__main__":
    print(json.dumps(_work(Path(sys.argv[1]))))
