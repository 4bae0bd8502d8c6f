"""Software bill of materials of a lock (CycloneDX 1.6). The same lock gives the same bytes.

Source: https://cyclonedx.org/docs/1.6/json/ and https://github.com/package-url/purl-spec.
"""

from __future__ import annotations

import json
import uuid
from typing import Any
from urllib.parse import quote

from condastore.errors import NotFoundError
from environments.domain.lock import Lock, required_name
from environments.domain.pip_requirements import DirectReference
from environments.domain.policy.licenses import expression
from environments.domain.records import CondaPackage, Package, PypiPackage
from environments.domain.timestamps import newest

#: Channels that are known by their name; others are identified by their URL.
_WELL_KNOWN = "https://conda.anaconda.org/"
#: Used if no package has a timestamp.


def cyclonedx(lock: Lock, platform: str) -> str:
    """Render one platform of the lock as JSON.

    Raises:
        NotFoundError: the lock is not for `platform`.
    """
    part = lock.on(platform)
    if part is None:
        known = ", ".join(sorted(each.platform for each in lock)) or "none"
        raise NotFoundError(
            f"The lock has no packages for {platform}.", hint=f"It is for: {known}."
        )
    packages: list[Package] = [p for p in part.conda if not p.name.startswith("__")]
    packages += part.pypi
    packages.sort(key=lambda package: package_url(package))
    digest = lock.digest
    root = f"condastore:lock:{digest}:{platform}"
    document = {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": uuid.uuid5(uuid.NAMESPACE_URL, root).urn,
        "version": 1,
        "metadata": {
            "timestamp": f"{newest(part):%Y-%m-%dT%H:%M:%SZ}",
            "tools": {"components": [{"type": "application", "name": "condastore"}]},
            "component": {
                "type": "application",
                "bom-ref": root,
                "name": "environment",
                "version": digest[:12],
                "properties": [
                    {"name": "condastore:lock", "value": digest},
                    {"name": "condastore:platform", "value": platform},
                    *({"name": "condastore:channel", "value": url} for url in lock.channels),
                ],
            },
        },
        "components": [_component(package) for package in packages],
        "dependencies": _dependencies(root, packages),
    }
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


def package_url(package: Package) -> str:
    """`pkg:conda/numpy@2.1?build=...&channel=...&subdir=...&type=conda`, `pkg:pypi/six@1.16`."""
    name, version = quote(package.name.lower(), safe=""), quote(package.version, safe=":")
    if isinstance(package, PypiPackage):
        return f"pkg:pypi/{name}@{version}{_source(package)}"
    kind = "conda" if package.file_name.endswith(".conda") else "tar.bz2"
    qualifiers = {
        "build": package.build,
        "channel": package.channel.removeprefix(_WELL_KNOWN),
        "subdir": package.subdir,
        "type": kind,
    }
    reported = "&".join(
        f"{key}={quote(value, safe=':/')}" for key, value in qualifiers.items() if value
    )
    return f"pkg:conda/{name}@{version}?{reported}"


def _origin(package: Package) -> dict[str, str]:
    built = isinstance(package, PypiPackage) and package.built
    return {"type": "vcs" if built else "distribution", "url": quote(package.url, safe=_URL)}


def _source(package: PypiPackage) -> str:
    """Return the qualifiers of a wheel that is not from an index."""
    if not package.direct:
        return ""
    if not package.built:
        return f"?download_url={quote(package.url, safe=':/')}"
    reference = DirectReference.of_location(package.url, sha256="")
    below = f"#{reference.subdirectory}" if reference.subdirectory else ""
    vcs = quote(f"git+{reference.url}@{reference.commit}", safe=":/")
    return f"?vcs_url={vcs}{below}"


def _component(package: Package) -> dict[str, Any]:
    url = package_url(package)
    hashes = [{"alg": "SHA-256", "content": package.sha256}] if package.sha256 else []
    if isinstance(package, CondaPackage) and package.md5:
        hashes.insert(0, {"alg": "MD5", "content": package.md5})
    component: dict[str, Any] = {
        "type": "library",
        "bom-ref": url,
        "name": package.name,
        "version": package.version,
        "hashes": hashes,
        "licenses": _licenses(package.license),
        "purl": url,
        "externalReferences": [_origin(package)],
    }
    return {key: value for key, value in component.items() if value}


#: Characters that a URL may contain unescaped (RFC 3986).
_URL = ":/?#[]@!$&'()*+,;=%~-._"


def _licenses(text: str) -> list[dict[str, Any]]:
    if not text:
        return []
    tree = expression(text)
    if tree is None:  # not an SPDX expression: as the channel wrote it
        return [{"license": {"name": text}}]
    return [{"expression": str(tree.render())}]


def _dependencies(root: str, packages: list[Package]) -> list[dict[str, Any]]:
    """Return the dependencies of each package; the root depends on packages that nothing needs."""
    conda = {p.name.lower(): package_url(p) for p in packages if isinstance(p, CondaPackage)}
    pypi = {p.name: package_url(p) for p in packages if isinstance(p, PypiPackage)}
    needs: dict[str, set[str]] = {}
    for package in packages:
        if isinstance(package, CondaPackage):
            names = {required_name(text) for text in package.depends}
            found = {conda[name] for name in names if name in conda}
        else:
            requested = {required_name(text) for text in package.requires}
            found = {pypi.get(name) or conda.get(name, "") for name in requested}
        own = package_url(package)
        needs[own] = found - {own, ""}
    needed = set().union(*needs.values())
    tops = sorted(needs.keys() - needed) or sorted(needs)  # all packages of a cycle
    graph = [{"ref": root, "dependsOn": tops}]
    return graph + [{"ref": url, "dependsOn": sorted(others)} for url, others in needs.items()]
