"""Channels of ours in a build: which URLs are theirs, who may read them, and what they hold.

A worker reads a hosted channel from the database and the blob store, not over HTTP. So its rights
are asked of rows when a build is submitted and again when it is solved, and no credential is made.
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

#: How long a file of packages stays after a newer one was written: solves may still read it.
STALE = timedelta(hours=1)


def base_url() -> str:
    """Below which URL the hosted channels lie, as locks name them."""
    return _hosted_below(settings.PUBLIC_URL or f"http://{settings.HOST}:{settings.PORT}")


@cache
def _hosted_below(public: str) -> str:
    return canonical_channel(f"{public.rstrip('/')}/channel/hosted", alias="").url


def url_of(channel: HostedChannel) -> str:
    return f"{base_url()}/{channel.name}"


def is_hosted(url: str) -> bool:
    return url.startswith(f"{base_url()}/")


# --- rights -------------------------------------------------------------------------------------


def channels_of(specification: Specification) -> set[str]:
    """Every channel that something is taken from, also by the packages of a brought lock."""
    urls = set(specification.channels)
    for part in specification.lock or ():
        urls |= {package.channel for package in part.conda}
        # A lock may say one thing of a package's channel and another of its address.
        urls |= {folder_url(package.url) for package in part.conda}
    return urls


def require_readable(actor: Actor, namespace: Namespace, specification: Specification) -> None:
    """Refuse hosted channels that `actor` may not read, all of them; a namespace reads its own.

    Raises:
        ChannelNotFoundError: also for those that are not there at all.
    """
    hidden = [
        url
        for url in sorted(channels_of(specification))
        if is_hosted(url) and not _readable(actor, namespace, url)
    ]
    if hidden:
        raise ChannelNotFoundError(
            " ".join(f"There is no channel at {url}." for url in hidden),
            hint="See the hosted channels that you may read with `condastore channel list`.",
        )


def require_own_channel(packages: Iterable[CondaPackage]) -> None:
    """Refuse packages that another channel lists at the URL of a hosted channel (`base_url`).

    Raises:
        ChannelNotAllowedError: names all of them, whether or not there is such a hosted channel.
    """
    foreign = [
        f"{package.channel} lists {package.file_name} at {package.url}."
        for package in packages
        if is_hosted(package.url) and package.is_foreign
    ]
    if foreign:
        more = f" And {len(foreign) - 10} more." if len(foreign) > 10 else ""
        raise ChannelNotAllowedError(
            "Packages of a channel that is hosted here are taken through that channel only. "
            f"{' '.join(foreign[:10])}{more}",
            hint="Name the hosted channel itself, or remove the channel that lists them.",
        )


def _readable(actor: Actor, namespace: Namespace, url: str) -> bool:
    channel = find(url)
    if channel is None:
        return False
    return channel.namespace_id == namespace.pk or may(actor, Perm.DOWNLOAD, channel)


def submitter(user: User | None) -> Actor:
    """Who asked for a build, as far as a worker knows: somebody who is gone is nobody."""
    return Actor(user if user is not None and user.is_active else AnonymousUser())


# --- what they hold -----------------------------------------------------------------------------


def find(url: str) -> HostedChannel | None:
    """The hosted channel of a URL, whoever asks."""
    base = f"{base_url()}/"
    if not url.startswith(base):
        return None
    rows = HostedChannel.objects.present().filter(name=url[len(base) :])
    return rows.select_related("namespace").first()


def files_of(url: str) -> HostedFiles | None:
    """What solves of this machine read of a hosted channel, written where it changed.

    Raises:
        ChannelNotFoundError: it was one, and is no more.
    """
    if not is_hosted(url):
        return None
    channel = find(url)
    if channel is None:
        raise ChannelNotFoundError(f"There is no channel at {url}.")
    # The states first: what comes in between is in the files, and they are written anew.
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
            _drop_older(folder.glob(f"{subdir}-*"), path)
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


def _drop_older(paths: Iterable[Path], newest: Path) -> None:
    oldest = time.time() - STALE.total_seconds()
    for path in paths:
        with contextlib.suppress(FileNotFoundError):
            if path != newest and path.stat().st_mtime < oldest:
                path.unlink()


class Recalls:
    """Those in force, as they were when this was made."""

    def __init__(self) -> None:
        self._rule = recalls_in_force()
        #: Changes when others are in force.
        self.state = hashlib.sha256(repr(self._rule).encode()).hexdigest()[:16]

    def reason(self, package: CondaPackage) -> str:
        """Why nobody may have it any more; "" where it was not called back."""
        if self._rule is None:
            return ""
        look = self._rule.check("conda", package.name, Known(now=time.time()))
        return look(LockedPackage(package)) if look else ""
