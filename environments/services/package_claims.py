"""Metadata inside fetched packages: store what rules need, and judge what was not known before.

A channel's record is judged before anything is fetched. Once a package is present, its own metadata
counts too if it is stricter: install scripts, and the license it names.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from condastore.errors import LinkError
from environments.domain.lock import required_name
from environments.domain.names import printable
from environments.domain.policy import InstallScripts, Licenses, Policy
from environments.engine.packages.cache import CachedPackage
from environments.engine.pypi.install import CachedWheel
from environments.models import CondaRecord, PypiRecord


def store_claims(
    packages: Sequence[CachedPackage],
    wheels: Sequence[CachedWheel],
    *,
    policy: Policy,
    log: Callable[[str], None],
) -> bool:
    """Store what packages say about themselves.

    Args:
        policy: the policy that judged their lock.
        log: receives messages that do not fail the build.

    Returns:
        True if `policy` judged the lock without this metadata, so that it must be judged again.

    Raises:
        LinkError: a package without a sha256 contains something that rules must judge.
    """
    kinds = {rule.kind for rule in policy.rules}
    scripts = {
        one.package.sha256: list(one.contents.link_scripts)
        for one in packages
        if _is_named(one, kinds)
    }
    _store_scripts(scripts)
    conda = {
        one.package.sha256: own
        for one in packages
        if one.package.sha256 and (own := _own_license(one)) != one.package.license and own
    }
    pypi = {
        one.package.sha256: one.license
        for one in wheels
        if one.license and one.license != one.package.license
    }
    _store_licenses(CondaRecord, conda)
    _store_licenses(PypiRecord, pypi)
    for one in packages:
        if more := _unlisted_dependencies(one):
            names = ", ".join(more)
            log(
                f"{one.contents.label} itself also depends on {names}, which the channel's record "
                "does not list"
            )
    unknown_scripts = any(
        found and policy.scripts.get(sha256) != tuple(found) for sha256, found in scripts.items()
    )
    rules = [rule for rule in policy.rules if isinstance(rule, Licenses)]
    unknown_licenses = any(
        policy.own_licenses.get(sha256) != own
        for sha256, own in (conda | pypi).items()
        if any(rule.objection_to(own) for rule in rules)
    )
    return unknown_licenses or (unknown_scripts and InstallScripts.kind in kinds)


def _own_license(package: CachedPackage) -> str:
    own = package.contents.index.get("license")
    return own if isinstance(own, str) else ""


def _is_named(package: CachedPackage, kinds: Iterable[str]) -> bool:
    """Return whether the package has a digest, by which rules find its metadata."""
    if package.package.sha256:
        return True
    own = _own_license(package)
    judged = (package.contents.link_scripts and InstallScripts.kind in kinds) or (
        own and own != package.package.license and Licenses.kind in kinds
    )
    if judged:
        raise LinkError(
            f"{package.package.file_name} has no sha256, but contains what rules must judge.",
            where=package.package.url,
            hint="Use a package whose channel lists its sha256.",
        )
    return False


def _unlisted_dependencies(package: CachedPackage) -> list[str]:
    """Return requirements in the package's own metadata on names that its record lacks."""
    own = package.contents.index.get("depends")
    if not isinstance(own, list):
        return []
    known = {required_name(text) for text in package.package.depends}
    texts = [text for text in own if isinstance(text, str)]
    return [printable(text) for text in texts if required_name(text) not in known][:10]


def _store_scripts(opened: dict[str, list[str]]) -> None:
    unknown = CondaRecord.objects.filter(sha256__in=list(opened), link_scripts__isnull=True)
    new = {sha256: opened[sha256] for sha256 in unknown.values_list("sha256", flat=True)}
    none = [sha256 for sha256, scripts in new.items() if not scripts]
    CondaRecord.objects.filter(sha256__in=none).update(link_scripts=[])
    for sha256, scripts in new.items():
        if scripts:
            CondaRecord.objects.filter(sha256=sha256).update(link_scripts=scripts)


def _store_licenses(model: type[CondaRecord] | type[PypiRecord], licenses: dict[str, str]) -> None:
    if not licenses:
        return
    unknown = model.objects.filter(sha256__in=list(licenses), own_license__isnull=True)
    for sha256 in set(unknown.values_list("sha256", flat=True)):
        model.objects.filter(sha256=sha256).update(own_license=licenses[sha256])
