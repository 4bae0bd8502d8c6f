"""Specifications, locks and package records as rows; records are shared by all locks."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Sequence
from collections.abc import Set as AbstractSet
from datetime import UTC, datetime
from typing import Any, Self

from django.db import IntegrityError, models, transaction
from django.utils import timezone

from environments.domain.linking import PathConflict
from environments.domain.lock import Lock, PlatformLock
from environments.domain.policy.subjects import in_seconds
from environments.domain.records import CondaPackage, PypiPackage
from environments.domain.specification import Specification
from environments.models._private import has_prefetched

#: SQLite limits the number of variables in one statement.
BATCH = 500


class SpecificationRow(models.Model):
    """A normalized specification; equal specifications share one row."""

    digest = models.CharField(max_length=64, unique=True)
    content = models.JSONField()
    created_at = models.DateTimeField(default=timezone.now, editable=False)

    class Meta:
        verbose_name, verbose_name_plural = "specification", "specifications"
        default_permissions = ()

    def __str__(self) -> str:
        return self.digest[:12]

    @staticmethod
    def store(specification: Specification) -> SpecificationRow:
        digest = specification.digest
        row = SpecificationRow(digest=digest, content=specification.to_json())
        # Nearly every specification is new. One stored concurrently is waited for.
        SpecificationRow.objects.bulk_create([row], ignore_conflicts=True)
        # The stored row may have another name and description than this one.
        return SpecificationRow.objects.defer("content").get(digest=digest)

    def value(self) -> Specification:
        return Specification.from_json(self.content)


class CondaRecord(models.Model):
    """One description of a package: the channel's record at the time of the lock, or the package's.

    Each distinct description of a file is a row, so one lock's description never labels another
    lock.
    """

    url = models.CharField("URL", max_length=1000)
    sha256 = models.CharField("SHA-256", max_length=64)
    claim = models.CharField(
        max_length=64, db_default="", help_text="sha256 of the description; empty in old rows."
    )
    listed = models.BooleanField(
        null=True, help_text="Whether the channel lists it; null in rows of older releases."
    )
    name = models.CharField(max_length=200)
    version = models.CharField(max_length=100)
    build = models.CharField(max_length=200)
    build_number = models.BigIntegerField()
    subdir = models.CharField(max_length=32)
    channel = models.CharField(max_length=500)
    file_name = models.CharField(max_length=400)
    md5 = models.CharField("MD5", max_length=32, blank=True)
    size = models.BigIntegerField()
    license = models.CharField(max_length=500, blank=True)
    timestamp = models.BigIntegerField(null=True)
    noarch = models.CharField(max_length=16, blank=True)
    record = models.TextField(help_text="JSON object of the channel.")
    #: Known after the package was fetched once; null before.
    link_scripts = models.JSONField(null=True, help_text="Install scripts of the package.")
    #: Read from the fetched package; rules evaluate this license too.
    own_license = models.TextField(
        null=True,
        help_text="License that the package itself names, if it is not that of its record.",
    )
    first_seen_at = models.DateTimeField(default=timezone.now, editable=False)

    class Meta:
        default_permissions = ()
        ordering = ["name", "version", "pk"]
        constraints = [models.UniqueConstraint("sha256", "url", "claim", name="record_once")]
        indexes = [
            models.Index(fields=["name", "version"]),
            models.Index(fields=["name"], name="record_named", opclasses=["varchar_pattern_ops"]),
            models.Index(
                fields=["sha256"],
                name="record_own_license",
                condition=models.Q(own_license__isnull=False),
            ),
        ]

    def __str__(self) -> str:
        return f"{self.name}-{self.version}-{self.build}"

    @classmethod
    def from_value(cls, package: CondaPackage) -> CondaRecord:
        return cls(
            url=package.url,
            sha256=package.sha256,
            claim=package.claim,
            listed=package.listed,
            name=package.name,
            version=package.version,
            build=package.build,
            build_number=package.build_number,
            subdir=package.subdir,
            channel=package.channel,
            file_name=package.file_name,
            md5=package.md5,
            size=package.size,
            license=package.license,
            timestamp=package.timestamp,
            noarch=package.noarch,
            record=package.record_json(),
        )

    @property
    def published_at(self) -> datetime | None:
        """Publisher's timestamp; None if it is not valid."""
        if self.timestamp is None:
            return None
        try:
            return datetime.fromtimestamp(in_seconds(self.timestamp), UTC)
        except (ValueError, OverflowError, OSError):
            return None

    def value(self) -> CondaPackage:
        return CondaPackage.from_record(
            json.loads(self.record),
            url=self.url,
            channel=self.channel,
            file_name=self.file_name,
            listed=self.listed is not False,
        )


class PypiRecord(models.Model):
    """One description of a wheel of a Python index, like `CondaRecord`."""

    url = models.CharField("URL", max_length=1000)
    sha256 = models.CharField("SHA-256", max_length=64)
    claim = models.CharField(
        max_length=64, db_default="", help_text="sha256 of the description; empty in old rows."
    )
    listed = models.BooleanField(
        null=True, help_text="Whether an index links to it; null in rows of older releases."
    )
    direct = models.BooleanField(
        default=False,
        db_default=False,
        help_text="Whether it was requested by its own URL, or by a Git commit it is built from.",
    )
    name = models.CharField(max_length=200)
    version = models.CharField(max_length=100)
    file_name = models.CharField(max_length=400)
    size = models.BigIntegerField()
    requires = models.JSONField(default=list)
    requires_python = models.CharField(max_length=200, blank=True)
    license = models.CharField(max_length=500, blank=True)
    uploaded = models.BigIntegerField(
        null=True, help_text="Upload time by the index's clock, in milliseconds."
    )
    own_license = models.TextField(
        null=True,
        help_text="License that the wheel itself names, if it is not that of its record.",
    )
    first_seen_at = models.DateTimeField(default=timezone.now, editable=False)

    class Meta:
        verbose_name, verbose_name_plural = "PyPI record", "PyPI records"
        default_permissions = ()
        ordering = ["name", "version", "pk"]
        constraints = [models.UniqueConstraint("sha256", "url", "claim", name="wheel_once")]
        indexes = [
            models.Index(fields=["name", "version"]),
            models.Index(fields=["name"], name="wheel_named", opclasses=["varchar_pattern_ops"]),
            models.Index(
                fields=["sha256"],
                name="wheel_own_license",
                condition=models.Q(own_license__isnull=False),
            ),
        ]

    def __str__(self) -> str:
        return self.file_name

    @classmethod
    def from_value(cls, package: PypiPackage) -> PypiRecord:
        return cls(
            url=package.url,
            sha256=package.sha256,
            claim=package.claim,
            listed=package.listed,
            name=package.name,
            version=package.version,
            file_name=package.file_name,
            size=package.size,
            requires=list(package.requires),
            requires_python=package.requires_python,
            license=package.license,
            uploaded=package.uploaded,
            direct=package.direct,
        )

    def value(self) -> PypiPackage:
        return PypiPackage(
            name=self.name,
            version=self.version,
            file_name=self.file_name,
            url=self.url,
            sha256=self.sha256,
            size=self.size,
            requires=tuple(self.requires),
            requires_python=self.requires_python,
            license=self.license,
            uploaded=self.uploaded,
            listed=self.listed is not False,
            direct=self.direct,
        )


#: Key of a row: URL, sha256 and claim.
_Key = tuple[str, str, str]


def _key(package: CondaPackage | PypiPackage) -> _Key:
    return package.url, package.sha256, package.claim


def _stored(
    model: type[CondaRecord] | type[PypiRecord], packages: Iterable[CondaPackage | PypiPackage]
) -> dict[_Key, int]:
    """Store new records, and return the primary key of each package's row."""
    requested = {_key(package): package for package in packages}
    digests = sorted({sha256 for _, sha256, _ in requested})
    found = _found(model, digests)
    _adopt(model, digests, requested.keys() - found.keys(), found)
    # Sorted, so that two transactions with the same packages cannot deadlock.
    new = [model.from_value(requested[key]) for key in sorted(requested.keys() - found.keys())]  # type: ignore[arg-type]
    if new:
        model.objects.bulk_create(new, batch_size=BATCH // 4, ignore_conflicts=True)  # type: ignore[arg-type]
        found = _found(model, digests)
    return {key: found[key] for key in requested}


def _found(model: Any, digests: Sequence[str]) -> dict[_Key, int]:
    found: dict[_Key, int] = {}
    for start in range(0, len(digests), BATCH):
        rows = model.objects.filter(sha256__in=digests[start : start + BATCH]).order_by()
        for url, sha256, claim, pk in rows.values_list("url", "sha256", "claim", "pk"):
            found[url, sha256, claim] = pk
    return found


def _adopt(
    model: Any, digests: Sequence[str], missing: AbstractSet[_Key], found: dict[_Key, int]
) -> None:
    """Set the claim of rows from older releases, if it is one of `missing`."""
    old = {pk for (url, sha256, claim), pk in found.items() if not claim}
    if not missing or not old:
        return
    for row in model.objects.filter(pk__in=old).iterator():
        key = _key(row.value())
        if key in missing and key not in found:
            rows = model.objects.filter(pk=row.pk, claim="")
            with contextlib.suppress(IntegrityError), transaction.atomic():
                if rows.update(claim=key[2], listed=row.value().listed):
                    found[key] = row.pk


class LockQuerySet(models.QuerySet["LockRow"]):
    def with_packages(self) -> Self:
        return self.prefetch_related("conda__package", "pypi__package")


class LockRow(models.Model):
    """The lock of a solve, named by its digest; packages are rows shared by locks.

    Locks with equal bytes but different descriptions of their packages are separate rows.
    """

    digest = models.CharField(max_length=64, db_index=True)
    claims = models.CharField(
        max_length=64, db_default="", help_text="sha256 of the descriptions; empty in old rows."
    )
    channels = models.JSONField()
    platforms = models.JSONField()
    package_count = models.PositiveIntegerField()
    size = models.BigIntegerField(help_text="Download size of all platforms, in bytes.")
    created_at = models.DateTimeField(default=timezone.now, editable=False)

    objects = LockQuerySet.as_manager()

    class Meta:
        verbose_name, verbose_name_plural = "lock", "locks"
        default_permissions = ()
        constraints = [models.UniqueConstraint("digest", "claims", name="lock_once")]

    def __str__(self) -> str:
        return self.digest[:12]

    @classmethod
    def store(cls, lock: Lock) -> LockRow:
        """Store a lock; equal locks share one row, also if stored concurrently."""
        digest, claims = lock.digest, lock.claims
        for row in cls.objects.filter(digest=digest, claims__in=[claims, ""]).order_by("-claims"):
            if row.claims == claims or row._adopted(claims):
                return row
        conda = [package for part in lock for package in part.conda]
        pypi = [package for part in lock for package in part.pypi]
        with transaction.atomic():
            conda_keys, pypi_keys = _stored(CondaRecord, conda), _stored(PypiRecord, pypi)
            row, created = cls.objects.get_or_create(
                digest=digest,
                claims=claims,
                defaults={
                    "channels": list(lock.channels),
                    "platforms": [part.platform for part in lock],
                    "package_count": len(conda) + len(pypi),
                    "size": sum(p.size for p in conda) + sum(p.size for p in pypi),
                },
            )
            if created:
                LockedConda.objects.bulk_create(
                    [
                        LockedConda(
                            lock=row,
                            package_id=conda_keys[_key(package)],
                            platform=part.platform,
                            position=position,
                        )
                        for part in lock
                        for position, package in enumerate(part.conda)
                    ],
                    batch_size=BATCH // 4,
                )
                LockedPypi.objects.bulk_create(
                    [
                        LockedPypi(
                            lock=row,
                            package_id=pypi_keys[_key(package)],
                            platform=part.platform,
                            position=position,
                        )
                        for part in lock
                        for position, package in enumerate(part.pypi)
                    ],
                    batch_size=BATCH // 4,
                )
        return row

    def _adopted(self, claims: str) -> bool:
        """Set the claims of a row from an older release if they are equal; True if they were."""
        if self.value().claims != claims:
            return False
        with contextlib.suppress(IntegrityError), transaction.atomic():
            LockRow.objects.filter(pk=self.pk, claims="").update(claims=claims)
            self.claims = claims
            lock = self.value()
            _stored(CondaRecord, [package for part in lock for package in part.conda])
            _stored(PypiRecord, [package for part in lock for package in part.pypi])
            return True
        return False

    def value(self) -> Lock:
        """Return the lock; three queries, or none after `with_packages()`."""
        conda, pypi = self.conda.all(), self.pypi.all()
        if not has_prefetched(self):
            conda = conda.select_related("package")
            pypi = pypi.select_related("package")
        return Lock(
            channels=tuple(self.channels),
            platforms=tuple(
                PlatformLock(
                    platform=platform,
                    conda=tuple(e.package.value() for e in conda if e.platform == platform),
                    pypi=tuple(e.package.value() for e in pypi if e.platform == platform),
                )
                for platform in self.platforms
            ),
        )


class LockedConda(models.Model):
    lock = models.ForeignKey(LockRow, models.CASCADE, related_name="conda")
    package = models.ForeignKey(CondaRecord, models.PROTECT, related_name="locked")
    platform = models.CharField(max_length=32)
    position = models.PositiveIntegerField(help_text="Order of linking, dependencies first.")

    class Meta:
        verbose_name, verbose_name_plural = "locked conda package", "locked conda packages"
        default_permissions = ()
        ordering = ["lock", "platform", "position"]
        constraints = [
            models.UniqueConstraint(fields=["lock", "platform", "package"], name="locked_once")
        ]

    def __str__(self) -> str:
        return f"{self.lock} {self.platform} {self.package_id}"


class LockedPypi(models.Model):
    lock = models.ForeignKey(LockRow, models.CASCADE, related_name="pypi")
    package = models.ForeignKey(PypiRecord, models.PROTECT, related_name="locked")
    platform = models.CharField(max_length=32)
    position = models.PositiveIntegerField()

    class Meta:
        verbose_name, verbose_name_plural = "locked PyPI package", "locked PyPI packages"
        default_permissions = ()
        ordering = ["lock", "platform", "position"]
        constraints = [
            models.UniqueConstraint(
                fields=["lock", "platform", "package"], name="wheel_locked_once"
            )
        ]

    def __str__(self) -> str:
        return f"{self.lock} {self.platform} {self.package_id}"


class LockConflicts(models.Model):
    """Path conflicts among a lock's packages on one platform: files that one replaces of another.

    Determined by the lock, and known once its packages were fetched; no row without conflicts.
    """

    lock = models.ForeignKey(LockRow, models.CASCADE, related_name="conflicts")
    platform = models.CharField(max_length=32)
    conflicts = models.JSONField(
        help_text="Path, package whose file is used, and packages whose files are replaced."
    )

    class Meta:
        verbose_name, verbose_name_plural = "conflicts of a lock", "conflicts of locks"
        default_permissions = ()
        constraints = [
            models.UniqueConstraint(fields=["lock", "platform"], name="lock_conflicts_once")
        ]

    def __str__(self) -> str:
        return f"{self.lock} {self.platform}"

    @classmethod
    def note(cls, lock: LockRow, platform: str, conflicts: Sequence[PathConflict]) -> None:
        if conflicts:
            content = [conflict.to_json() for conflict in conflicts]
            cls.objects.get_or_create(lock=lock, platform=platform, defaults={"conflicts": content})

    @classmethod
    def of(cls, lock: LockRow | int, platform: str) -> tuple[PathConflict, ...]:
        """Return conflicts ordered by path; empty if there are none or none are known yet."""
        row = cls.objects.filter(lock=lock, platform=platform).first()
        return tuple(map(PathConflict.from_json, row.conflicts)) if row else ()
