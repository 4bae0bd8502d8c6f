"""Rows for tests: a person, a namespace with its people, an environment, a finished build."""

from __future__ import annotations

from datetime import timedelta
from itertools import count

from django.contrib.auth.models import Permission
from django.contrib.contenttypes.models import ContentType
from django.utils import timezone

from accounts.access import Actor
from accounts.models import ApiToken, User, new_token_secret, token_digest
from accounts.roles import Role
from environments.domain.lifecycle import FINISHED, RUNNING, BuildState
from environments.domain.lock import Lock, PlatformLock
from environments.domain.records import CondaPackage
from environments.domain.specification import Defaults
from environments.domain.specification_forms import parse_specification
from environments.models import (
    Build,
    Environment,
    LockRow,
    Namespace,
    Prefix,
    SpecificationRow,
)
from environments.models.namespaces import NamespaceUserObjectPermission

PLATFORM = "linux-64"
CHANNEL = "https://channel.example.org/main"
DEFAULTS = Defaults(
    channels=(CHANNEL,), channel_alias="https://channel.example.org", platforms=(PLATFORM,)
)
_numbers = count(1)


def make_user(name: str, *, superuser: bool = False, password: str | None = None) -> User:
    """An account; grants that waited for its name are not applied, as no signal is sent."""
    user = _user(name, superuser=superuser, password=password)
    User.objects.bulk_create([user])
    return user


def _user(name: str, *, superuser: bool = False, password: str | None = None) -> User:
    user = User(username=name, email=f"{name}@example.org", is_superuser=superuser)
    user.is_staff = superuser
    if password is None:
        user.set_unusable_password()
    else:
        user.set_password(password)
    return user


def actor(user: User) -> Actor:
    return Actor(user, address="127.0.0.1")


def make_token(user: User, name: str = "made") -> str:
    """The secret of a new token of all that its user may do."""
    secret = new_token_secret()
    expires_at = timezone.now() + timedelta(days=1)
    ApiToken.objects.create(
        user=user, name=name, digest=token_digest(secret), hint=secret[:8], expires_at=expires_at
    )
    return secret


def make_namespace(name: str = "research", *, public: bool = False, **people: Role) -> Namespace:
    """`people`: user name -> role; the users are made where they are missing.

    All of them at once, as most tests start here: `Namespace.grant` has tests of its own.
    """
    namespace = Namespace.objects.create(name=name, public=public)
    if not people:
        return namespace
    users = {user.username: user for user in User.objects.filter(username__in=people)}
    missing = [_user(username) for username in people if username not in users]
    users |= {user.username: user for user in User.objects.bulk_create(missing)}
    permissions = Permission.objects.filter(
        content_type=ContentType.objects.get_for_model(Namespace),
        codename__in=[role.codename for role in people.values()],
    )
    by_codename = {permission.codename: permission for permission in permissions}
    namespace.user_grants.bulk_create(
        NamespaceUserObjectPermission(
            content_object=namespace, user=users[username], permission=by_codename[role.codename]
        )
        for username, role in people.items()
    )
    return namespace


def make_environment(namespace: Namespace, name: str = "ml") -> Environment:
    return Environment.objects.create(namespace=namespace, name=name)


def make_package(name: str, version: str = "1.0", **changes: object) -> CondaPackage:
    build = str(changes.pop("build", "h0_0"))
    file_name = f"{name}-{version}-{build}.conda"
    url = f"{CHANNEL}/{PLATFORM}/{file_name}"
    record: dict[str, object] = {
        "name": name,
        "version": version,
        "build": build,
        "build_number": 0,
        "subdir": PLATFORM,
        "depends": [],
        "sha256": f"{abs(hash(url)):064x}"[-64:],
        "md5": f"{abs(hash(url)):032x}"[-32:],
        "size": 1000,
        "license": "MIT",
        **changes,
    }
    return CondaPackage.from_record(record, url=url, channel=CHANNEL, file_name=file_name)


def make_lock(*packages: CondaPackage, platform: str = PLATFORM) -> Lock:
    return Lock(
        channels=(CHANNEL,),
        platforms=(PlatformLock(platform=platform, conda=packages or (make_package("python"),)),),
    )


def make_specification(text: str = "dependencies: [python]") -> SpecificationRow:
    return SpecificationRow.store(parse_specification(text, defaults=DEFAULTS).specification)


def make_build(
    environment: Environment,
    state: BuildState = BuildState.READY,
    *,
    lock: Lock | None = None,
    text: str = "dependencies: [python]",
    current: bool = True,
) -> Build:
    """A build as it is left in `state`; there are no files behind it."""
    number = environment.take_number()
    row = LockRow.store(lock or make_lock()) if state not in {BuildState.QUEUED} else None
    prefix = None
    if state == BuildState.READY and row is not None:
        path = f"prefixes/{environment.namespace.name}/{number}-{row.digest[:12]}-{next(_numbers)}"
        prefix = Prefix.objects.create(
            path=path, lock=row, platform=PLATFORM, apparent_size=1000, unique_size=100
        )
    now = timezone.now()
    build = Build.objects.create(
        environment=environment,
        number=number,
        state=state,
        specification=make_specification(text),
        source=text,
        lock=row,
        prefix=prefix,
        platform=PLATFORM,
        finished_at=now if state in FINISHED else None,
        lease_expires_at=now if state in RUNNING else None,
        attempt=0 if state == BuildState.QUEUED else 1,
    )
    if current and state == BuildState.READY:
        Environment.objects.filter(pk=environment.pk).update(current=build)
        environment.refresh_from_db()
    return build
