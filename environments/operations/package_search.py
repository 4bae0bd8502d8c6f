"""Search in the package names of indexed channels."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from django.conf import settings
from django.db.models import Q, QuerySet

from accounts.access import Actor
from condastore.errors import StoreError
from environments.domain.default_channels import CONDA_DEFAULTS, channels_of
from environments.domain.names import canonical_channel
from environments.domain.policy import Effect, Licenses, Policy
from environments.models import Build, Channel, IndexedPackage, LockRow, Namespace, Preview
from environments.services import hosted_channels
from environments.services.policies import policy_of

#: Channels of a specification that a suggestion searches at most.
MAX_CHANNELS = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Suggestion:
    """Package of the first channel that has it; `refusal` says why the policy does not allow it."""

    name: str
    version: str  # the latest
    versions: int
    channel: str
    license: str
    summary: str
    platforms: tuple[str, ...]
    refusal: str = ""


def visible_locks(actor: Actor) -> QuerySet[LockRow]:
    """Locks of the builds and previews that the actor may see."""
    builds = Build.objects.visible_to(actor).order_by()
    previews = Preview.objects.visible_to(actor).order_by()
    return LockRow.objects.filter(
        Q(pk__in=builds.exclude(lock=None).values("lock"))
        | Q(pk__in=previews.exclude(lock=None).values("lock"))
    )


def visible_channels(actor: Actor) -> QuerySet[Channel]:
    """Channels of locks that the actor may see; with a sign-in, also the default channels."""
    if actor.is_superuser:
        return Channel.objects.all()
    listed = visible_locks(actor).order_by().values_list("channels", flat=True).distinct()
    urls = {url for channels in listed for url in channels}
    if actor.signed_in:
        urls |= set(_urls(settings.DEFAULT_CHANNELS))
    return Channel.objects.filter(url__in=urls)


def suggest_packages(
    *,
    actor: Actor,
    namespace: Namespace | None,
    channels: Sequence[str],
    text: str,
    platforms: Sequence[str] = (),
    limit: int = 12,
) -> list[Suggestion]:
    """Return packages whose names begin with `text`, else such that contain it.

    Args:
        namespace: whose rules apply; None means only those of the installation.
        channels: as written in a specification, by priority; empty means the default channels.
        platforms: a package without a build for one of them is left out; empty means any.
    """
    urls = _urls(channels or settings.DEFAULT_CHANNELS)[:MAX_CHANNELS]
    text = text.strip().lower()
    if not text:
        return []
    rank = {url: index for index, url in enumerate(urls)}
    visible = visible_channels(actor).filter(url__in=urls).values("pk")
    rows = IndexedPackage.objects.filter(channel__in=visible).select_related("channel")
    policy = policy_of(namespace)
    found: dict[str, Suggestion] = {}
    for matches in (rows.filter(name__startswith=text), rows.filter(name__icontains=text)):
        if len(found) >= limit:
            break
        candidates = list(matches.order_by("name")[: limit * 4])
        candidates.sort(key=lambda row: (row.name != text, row.name, rank[row.channel.url]))
        for row in candidates:
            if row.name in found or not _offered(row.subdirs, platforms) or len(found) >= limit:
                continue
            found[row.name] = Suggestion(
                name=row.name,
                version=row.latest_version,
                versions=row.versions,
                channel=row.channel.url.rpartition("/")[2],
                license=row.license,
                summary=row.summary,
                platforms=tuple(row.subdirs),
                refusal=_refusal(policy, row.name, row.license),
            )
    return list(found.values())


def _urls(channels: Iterable[str]) -> list[str]:
    """Return the URLs of channels as written, without duplicates; invalid ones are left out."""
    urls: dict[str, None] = {}
    for entry in channels:
        for name in channels_of(entry, CONDA_DEFAULTS):
            try:
                found = canonical_channel(
                    name, alias=settings.CHANNEL_ALIAS, hosted=hosted_channels.base_url()
                )
            except StoreError:
                continue
            urls[found.url] = None
    return list(urls)


def _offered(subdirs: Sequence[str], platforms: Sequence[str]) -> bool:
    return not platforms or "noarch" in subdirs or any(name in subdirs for name in platforms)


def _refusal(policy: Policy, name: str, license_text: str) -> str:
    """Return the first rule that refuses every build of the package, as far as is known."""
    for rule in policy.rules:
        if rule.effect is not Effect.ENFORCE:
            continue
        objection = rule.check_name("conda", name)
        if not objection and isinstance(rule, Licenses) and license_text:
            exempt = any(spec.concerns("conda", name) for spec in rule.exempt)
            objection = "" if exempt else rule.objection_to(license_text)
        if objection:
            return f"not allowed: {objection}"
    return ""
