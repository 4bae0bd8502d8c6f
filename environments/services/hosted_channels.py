"""Resolve hosted channels for solves: URLs, access and contents.

A worker reads a hosted channel from the database and the blob store, not over HTTP. So permissions
are checked against rows when a build is submitted and again when it is solved; no credential is
created.
"""

from __future__ import annotations

import contextlib
import hashlib
import secrets
import time
from collections.abc import Iterable, Iterator
from datetime import timedelta
from functools import cache
from pathlib import Path

from django.conf import settings
from django.contrib.auth.models import AnonymousUser

from accounts.access import Actor, may
from accounts.models import User
from accounts.roles import Perm
from condastore.errors import ChannelNotAllowedError, ChannelNotFoundError
from environments.domain.names import canonical_channel
from environments.domain.policy import Known
from environments.domain.policy.subjects import LockedPackage
from environments.domain.records import CondaPackage, folder_url
from environments.domain.specification import Specification
from environments.engine.channels import hosted
from environments.engine.channels.hosted import HostedFiles
from environments.models import HostedChannel, Namespace
from environments.services import folders
from environments.services.policies import recalls_in_force

#: How long an older package file stays readable for solves in progress.
STALE = timedelta(hours=1)


def base_url() -> str:
    """Return the URL prefix of hosted channels, as locks name it."""
    return _hosted_below(settings.PUBLIC_URL or f"http://{settings.HOST}:{settings.PORT}")


@cache
def _hosted_below(public: str) -> str:
    return canonical_channel(f"{public.rstrip('/')}/channel/hosted", alias="").url


def url_of(channel: HostedChannel) -> str:
    return f"{base_url()}/{channel.name}"


def is_hosted(url: str) -> bool:
    return url.startswith(f"{base_url()}/")


# --- access ---------------------------------------------------------------------------------------


def channels_of(specification: Specification) -> set[str]:
    """Return every channel that the specification uses, including packages of an imported lock."""
    urls = set(specification.channels)
    for part in specification.lock or ():
        urls |= {package.channel for package in part.conda}
        # The channel of a package in a lock may differ from the channel in its URL.
        urls |= {folder_url(package.url) for package in part.conda}
    return urls


def require_readable(actor: Actor, namespace: Namespace, specification: Specification) -> None:
    """Refuse hosted channels that `actor` may not read, naming all; a namespace may read its own.

    Raises:
        ChannelNotFoundError: also for channels that do not exist.
    """
    hidden = [
        url
        for url in sorted(channels_of(specification))
        if is_hosted(url) and not _readable(actor, namespace, url)
    ]
    if hidden:
        raise ChannelNotFoundError(
            " ".join(f"There is no channel at {url}." for url in hidden),
            hint="List the hosted channels that you may read with `condastore channel list`.",
        )


def require_own_channel(packages: Iterable[CondaPackage]) -> None:
    """Refuse packages that another channel lists at the URL of a hosted channel (`base_url`).

    Raises:
        ChannelNotAllowedError: names all of them, whether or not the hosted channel exists.
    """
    foreign = [
        f"{package.channel} lists {package.file_name} at {package.url}."
        for package in packages
        if is_hosted(package.url) and package.is_foreign
    ]
    if foreign:
        more = f" And {len(foreign) - 10} more." if len(foreign) > 10 else ""
        raise ChannelNotAllowedError(
            "Packages of a hosted channel are available through that channel only. "
            f"{' '.join(foreign[:10])}{more}",
            hint="Name the hosted channel itself, or remove the channel that lists them.",
        )


def _readable(actor: Actor, namespace: Namespace, url: str) -> bool:
    channel = find(url)
    if channel is None:
        return False
    return channel.namespace_id == namespace.pk or may(actor, Perm.DOWNLOAD, channel)


def actor_of_submitter(user: User | None) -> Actor:
    """Return the submitter of a build, as known to a worker; a deleted user is anonymous."""
    return Actor(user if user is not None and user.is_active else AnonymousUser())


# --- contents -------------------------------------------------------------------------------------


def find(url: str) -> HostedChannel | None:
    """Return the hosted channel of a URL, without an access check."""
    base = f"{base_url()}/"
    if not url.startswith(base):
        return None
    rows = HostedChannel.objects.present().filter(name=url[len(base) :])
    return rows.select_related("namespace").first()


def files_of(url: str) -> HostedFiles | None:
    """Return the files that solves read for a hosted channel; rewrites those that have changed.

    Raises:
        ChannelNotFoundError: the hosted channel was deleted.
    """
    if not is_hosted(url):
        return None
    channel = find(url)
    if channel is None:
        raise ChannelNotFoundError(f"There is no channel at {url}.")
    # Read the states first: a change made meanwhile is in the files, which are then rewritten
    # again.
    states = channel.states()
    folder = folders.data() / "cache" / "hosted" / channel.identity
    folder.mkdir(parents=True, exist_ok=True)
    files = {}
    for subdir, revision in states.items():
        path = folder / f"{subdir}-{revision}"
        if not path.exists():
            temporary = folder / f".{subdir}-{secrets.token_hex(8)}"
            hosted.write(temporary, _packages(channel, subdir, url))
            temporary.rename(path)
            _delete_older(folder.glob(f"{subdir}-*"), path)
        files[subdir] = path
    return HostedFiles(
        url=url,
        states={subdir: f"hosted {channel.identity} {state}" for subdir, state in states.items()},
        files=files,
    )


def _packages(channel: HostedChannel, subdir: str, url: str) -> Iterator[tuple[CondaPackage, bool]]:
    rows = channel.packages.filter(subdir=subdir).order_by("name", "pk")
    for row in rows.iterator():
        yield row.value(base=url), row.yanked_at is not None


def _delete_older(paths: Iterable[Path], newest: Path) -> None:
    oldest = time.time() - STALE.total_seconds()
    for path in paths:
        with contextlib.suppress(FileNotFoundError):
            if path != newest and path.stat().st_mtime < oldest:
                path.unlink()


class Recalls:
    """Recalls in force when the object was created."""

    def __init__(self) -> None:
        self._rule = recalls_in_force()
        #: Changes whenever other recalls are in force.
        self.state = hashlib.sha256(repr(self._rule).encode()).hexdigest()[:16]

    def reason(self, package: CondaPackage) -> str:
        """Return why the package was recalled; "" if it was not."""
        if self._rule is None:
            return ""
        poll = self._rule.check("conda", package.name, Known(now=time.time()))
        return poll(LockedPackage(package)) if poll else ""
