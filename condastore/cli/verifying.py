"""`condastore verify`: check the signature of a provenance statement, and files against it.

Works offline with the statement, the public key and the files.
"""

from __future__ import annotations

import base64
import hashlib
import json
from pathlib import Path
from typing import Annotated, Any

import typer

from condastore.cli import render
from condastore.cli.errors import CommandError, Status
from condastore.cli.options import AsJson

PAYLOAD_TYPE = "application/vnd.in-toto+json"


def add_to(root: typer.Typer) -> None:
    root.command()(verify)


def verify(
    statement: Annotated[
        Path, typer.Argument(help="provenance.intoto.json of a build.", show_default=False)
    ],
    files: Annotated[
        list[Path] | None,
        typer.Argument(help="Files that it must be about: each by its sha256.", show_default=False),
    ] = None,
    key: Annotated[
        Path,
        typer.Option(help="Public key (PEM) of the server: its /api/signing-key."),
    ] = Path("key.pem"),
    as_json: AsJson = False,
) -> None:
    """Check the signature of a build's provenance, and files against it. Works offline."""
    payload = _signed(_read(statement), _read(key), statement)
    said = _statement(payload, statement)
    subjects = {one["digest"]["sha256"]: one["name"] for one in said["subject"]}
    unknown = [path for path in files or () if _sha256(path) not in subjects]
    if unknown:
        raise _invalid(
            f"{', '.join(map(str, unknown))}: not among the files of this statement.",
            hint="The file was changed, the statement is of another build, or the file was made "
            "later than the statement was exported: then export the statement again.",
        )
    definition = said["predicate"]["buildDefinition"]
    run = said["predicate"]["runDetails"]
    rows = [
        ("build", run["metadata"]["invocationId"]),
        ("builder", run["builder"]["id"]),
        ("lock", definition["internalParameters"]["lock"]),
        ("specification", definition["externalParameters"]["specificationDigest"]),
        ("packages", len(definition["resolvedDependencies"])),
    ]

    def tell() -> None:
        render.say("The signature is right.")
        render.pairs(rows)
        for path in files or ():
            render.say(f"{path} is {subjects[_sha256(path)]}")

    render.answer(said, as_json, tell)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        hint = ""
        if path.name == "key.pem":
            hint = (
                "Get it once: curl -o key.pem https://SERVER/api/signing-key, then name it: --key"
            )
        raise _invalid(f"{path} cannot be read: {error.strerror}.", hint=hint) from error


def _signed(content: bytes, pem: bytes, path: Path) -> bytes:
    """The payload, if the key's owner signed it."""
    try:
        from cryptography.exceptions import InvalidSignature
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
        from cryptography.hazmat.primitives.serialization import load_pem_public_key
    except ImportError as error:
        raise CommandError(
            "Checking signatures needs the Python package `cryptography`.",
            status=Status.INVALID,
            code="invalid-input",
            hint="pip install 'condastore[verify]'; see docs/how-to/build-files.md for openssl.",
        ) from error
    try:
        public = load_pem_public_key(pem)
    except ValueError as error:
        raise _invalid("The key is no public key in PEM.") from error
    if not isinstance(public, Ed25519PublicKey):
        raise _invalid("The key is not an Ed25519 key.")
    try:
        envelope = json.loads(content)
        kind = envelope["payloadType"]
        payload = base64.b64decode(envelope["payload"], validate=True)
        signatures = [base64.b64decode(one["sig"], validate=True) for one in envelope["signatures"]]
        message = b"DSSEv1 %d %b %d %b" % (len(kind), kind.encode(), len(payload), payload)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _invalid(f"{path} is not a signed statement (DSSE).") from error
    if kind != PAYLOAD_TYPE:
        raise _invalid(f"{path} holds {kind!r}, not an in-toto statement.")
    for signature in signatures:
        try:
            public.verify(signature, message)
        except InvalidSignature:
            continue
        return payload
    raise _invalid(
        f"{path} was not signed with this key, or was changed since.",
        hint="Compare the key with /api/signing-key of the server that it is from.",
    )


def _statement(payload: bytes, path: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(payload)
        if found["predicateType"] != "https://slsa.dev/provenance/v1":
            raise KeyError("predicateType")
    except (ValueError, KeyError, TypeError) as error:
        raise _invalid(f"{path} holds no provenance.") from error
    return found


def _sha256(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise _invalid(f"{path} cannot be read: {error.strerror}.") from error


def _invalid(message: str, *, hint: str = "") -> CommandError:
    return CommandError(message, status=Status.INVALID, code="invalid-input", hint=hint)
