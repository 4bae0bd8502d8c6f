"""Provenance of the files of a build: an in-toto statement in a DSSE envelope.

Source: https://in-toto.io/Statement/v1, https://slsa.dev/spec/v1.0/provenance and
https://github.com/secure-systems-lab/dsse/blob/master/protocol.md.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from environments.domain.linking import PathConflict
from environments.domain.lock import Lock
from environments.domain.pip_requirements import DirectReference
from environments.domain.records import CondaPackage, Package, PypiPackage
from environments.domain.sbom import package_url

PAYLOAD_TYPE = "application/vnd.in-toto+json"
STATEMENT = "https://in-toto.io/Statement/v1"
PREDICATE = "https://slsa.dev/provenance/v1"
#: Defines `externalParameters` and `internalParameters`: docs/how-to/build-files.md.
BUILD_TYPE = "urn:condastore:build:v1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """A file of the build."""

    name: str
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Inputs of a build, and who submitted it."""

    build: str  # research/ml:12
    builder: str  # a URI that names this installation
    version: str  # of condastore
    specification: str  # as it was written
    specification_digest: str
    platform: str
    #: Digest of the channel state of the solve; None for a submitted lock.
    channel_state: str
    #: Version of the policy, by its owner (installation, namespace).
    policy: Mapping[str, int]
    #: Files that packages replaced: digests of the replaced packages do not describe them.
    conflicts: Sequence[PathConflict] = ()
    started: datetime
    finished: datetime | None


def statement(origin: Origin, lock: Lock, subjects: Sequence[Subject]) -> bytes:
    """Return the statement; the same build with the same files gives the same bytes."""
    packages: dict[tuple[str, str], Package] = {}
    for part in lock:
        packages |= {(package.url, package.sha256): package for package in part.conda}
        packages |= {(package.url, package.sha256): package for package in part.pypi}
    internal: dict[str, Any] = {
        "channels": list(lock.channels),
        "lock": lock.digest,
        "policy": dict(sorted(origin.policy.items())),
    }
    if origin.channel_state:
        internal["channelState"] = origin.channel_state
    if origin.conflicts:
        internal["pathConflicts"] = [conflict.to_json() for conflict in origin.conflicts]
    document = {
        "_type": STATEMENT,
        "subject": [
            {"name": subject.name, "digest": {"sha256": subject.sha256}}
            for subject in sorted(subjects, key=lambda subject: subject.name)
        ],
        "predicateType": PREDICATE,
        "predicate": {
            "buildDefinition": {
                "buildType": BUILD_TYPE,
                "externalParameters": {
                    "specification": origin.specification,
                    "specificationDigest": origin.specification_digest,
                    "platform": origin.platform,
                },
                "internalParameters": internal,
                "resolvedDependencies": [
                    {
                        "uri": package_url(package),
                        "downloadLocation": url,
                        "digest": _digest(package),
                    }
                    for (url, _), package in sorted(packages.items(), key=lambda item: item[0])
                ],
            },
            "runDetails": {
                "builder": {"id": origin.builder, "version": {"condastore": origin.version}},
                "metadata": {
                    "invocationId": origin.build,
                    "startedOn": _moment(origin.started),
                    **({"finishedOn": _moment(origin.finished)} if origin.finished else {}),
                },
            },
        },
    }
    return json.dumps(document, sort_keys=True, separators=(",", ":")).encode()


def _digest(package: Package) -> dict[str, str]:
    if isinstance(package, CondaPackage) and not package.sha256:
        return {"md5": package.md5}
    if isinstance(package, PypiPackage) and package.built:
        reference = DirectReference.of_location(package.url, sha256="")
        return {"sha256": package.sha256, "gitCommit": reference.commit}
    return {"sha256": package.sha256}


def _moment(moment: datetime) -> str:
    return f"{moment.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}"


def authenticated(payload_type: str, payload: bytes) -> bytes:
    """Return the signed bytes: DSSE's pre-authentication encoding."""
    kind = payload_type.encode()
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)


def envelope(payload: bytes, *, key_id: str, sign: Callable[[bytes], bytes]) -> str:
    """Return the signed statement as a file."""
    signature = sign(authenticated(PAYLOAD_TYPE, payload))
    document = {
        "payloadType": PAYLOAD_TYPE,
        "payload": base64.b64encode(payload).decode(),
        "signatures": [{"keyid": key_id, "sig": base64.b64encode(signature).decode()}],
    }
    return json.dumps(document, indent=2) + "\n"
