"""Load, pull, build or list base images."""

from __future__ import annotations

import secrets
import shutil
from argparse import ArgumentParser
from pathlib import Path
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError

from condastore.errors import StoreError
from environments.domain.names import parse_platform
from environments.engine.images.base import make_base
from environments.engine.images.loading import LoadedImage, load
from environments.engine.images.remote import Login, Reference
from environments.engine.network.addresses import guard
from environments.management.commands.image import secret_of, told
from environments.models import BaseImage
from environments.services import blobs, image_builder, platforms


class Command(BaseCommand):
    help = "Load, pull, build or list base images of container images."

    def add_arguments(self, parser: ArgumentParser) -> None:
        commands = parser.add_subparsers(dest="what", required=True)
        loading = commands.add_parser("load", help="load an OCI layout or a docker archive")
        loading.add_argument("file", type=Path)
        loading.add_argument("--name", required=True, help="name for CONDASTORE_BASE_IMAGE")
        pulling = commands.add_parser("pull", help="pull from a registry, replacing a stored image")
        pulling.add_argument("reference")
        pulling.add_argument("--platform", default=platforms.own_platform())
        pulling.add_argument("--login", default="", help="user:password; - reads it from stdin")
        commands.add_parser("make", help="build from this machine's libc and shell")
        commands.add_parser("list", help="list stored base images")

    def handle(self, *, what: str, **options: Any) -> None:
        if what == "list":
            for base in BaseImage.objects.all():
                self.stdout.write(f"{base.name} {base.platform} sha256:{base.digest}")
            return
        work = blobs.blobs_folder() / f"base-{secrets.token_hex(4)}"
        work.mkdir(parents=True)
        try:
            name, found = self._found(what, options, work)
            for image in found:
                base = image_builder.store_base(name, image)
                self.stdout.write(f"{base.name} {base.platform} sha256:{base.digest}")
        except StoreError as error:
            raise CommandError(told(error)) from error
        finally:
            shutil.rmtree(work, ignore_errors=True)

    def _found(
        self, what: str, options: dict[str, Any], work: Path
    ) -> tuple[str, list[LoadedImage]]:
        match what:
            case "load":
                return options["name"], load(
                    options["file"], folder=work / "loaded", limits=settings.UNPACKING
                )
            case "pull":
                reference = options["reference"]
                platform = parse_platform(options["platform"])
                login = Login.parse(text) if (text := secret_of(options["login"])) else None
                # The caller of this command administers the machine.
                within = guard().allowing(urls=[Reference.parse(reference).address])
                image = image_builder.pull_base(
                    reference, platform, work=work, login=login, within=within
                )
                return reference, [image]
            case _:
                created = make_base(work / "base", platform=platforms.own_platform())
                return BaseImage.OWN, [created]
