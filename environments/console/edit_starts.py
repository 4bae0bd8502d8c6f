"""Texts that a draft can start from: templates, uploaded files, builds of this server."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote, urlsplit

from django.conf import settings
from django.core.files.uploadedfile import UploadedFile

from accounts.access import Actor
from condastore.errors import InvalidInputError, NotFoundError
from environments.domain.yaml_text import checked_text
from environments.models import Build, Environment
from environments.operations.environments import find_build, find_environment

_PYTHON = """\
channels:
  - conda-forge
dependencies:
  - python 3.12.*
"""
_DATA = """\
channels:
  - conda-forge
dependencies:
  - python 3.12.*
  - pandas
  - matplotlib
  - jupyterlab
"""
_GPU = """\
channels:
  - conda-forge
dependencies:
  - python 3.12.*
  - pytorch
condastore:
  virtual-packages:
    - __cuda=12.4
  tests:
    imports:
      - torch
"""
_R = """\
channels:
  - conda-forge
dependencies:
  - r-base 4.*
  - r-tidyverse
"""
#: Templates by their key in URLs, each with its name and text.
TEMPLATES: Mapping[str, tuple[str, str]] = {
    "python": ("Python", _PYTHON),
    "data": ("Data analysis", _DATA),
    "gpu": ("Machine learning on a GPU", _GPU),
    "r": ("R", _R),
}
_PAGE = re.compile(r"/environments/([^/]+)/([^/]+)/(?:builds/([^/]+)/)?(?:edit/)?")
_REFERENCE = re.compile(r"([^/\s]+)/([^/\s:@]+)(?:[/:@]([^/\s]+))?")


def text_of_template(key: str) -> str:
    """Return the text of a template. Raises NotFoundError."""
    if key not in TEMPLATES:
        raise NotFoundError(f"There is no template {key!r}.")
    return TEMPLATES[key][1]


def text_of_upload(file: UploadedFile[Any]) -> str:
    """Return the text of an uploaded file.

    Raises:
        SpecificationError: it is too large or is not text.
    """
    limit = max(settings.MAX_SPECIFICATION_BYTES, settings.MAX_LOCK_BYTES)
    return checked_text(file.read(limit + 1), max_bytes=limit)


def text_of_reference(actor: Actor, reference: str, *, host: str) -> str:
    """Return the text of a build: of `research/churn`, `research/churn/12` or a page's URL.

    Raises:
        InvalidInputError: it is not a reference, or a URL of another server.
        NotFoundError: there is no such build that the actor may see.
    """
    text = reference.strip()
    try:
        parts = urlsplit(text)
    except ValueError as error:
        raise InvalidInputError(
            "This is not a valid URL.", where="from", hint="Copy the address of a page."
        ) from error
    if parts.netloc and parts.netloc != host:
        raise InvalidInputError(
            f"The URL is not one of {host}.",
            where="from",
            hint="Copy the address of an environment or a build of this server.",
        )
    pattern = _PAGE if text.startswith("/") or parts.netloc else _REFERENCE
    found = pattern.fullmatch(unquote(parts.path) if pattern is _PAGE else text)
    if found is None:
        raise InvalidInputError(
            "This names no environment.",
            where="from",
            hint="Write it like research/churn or research/churn/12, or copy a page's address.",
        )
    namespace, name, build = found.groups()
    return text_of_build(actor, find_environment(actor, namespace, name), build or "")


def text_of_build(actor: Actor, environment: Environment, reference: str = "") -> str:
    """Return the text of a build; without a reference of the current one, else the newest.

    Raises NotFoundError.
    """
    if reference:
        return find_build(actor, environment, reference).source
    based = base_of(actor, environment)
    return based.source if based else text_of_template("python")


def base_of(actor: Actor, environment: Environment) -> Build | None:
    """Return the build that an edit begins with: the current one, else the newest."""
    builds = Build.objects.visible_to(actor).filter(environment=environment)
    current = builds.filter(pk=environment.current_id or 0).first()
    return current or builds.order_by("-number").first()
