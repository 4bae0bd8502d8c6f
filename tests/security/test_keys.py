"""What somebody can do with one stolen key, or with a copy of the database."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from django.core import signing
from django.test import Client

from accounts.access import Actor
from accounts.sealing import seal, unseal
from environments.domain.audit_chain import COVERED, chain_key
from environments.domain.audit_chain import seal as seal_event
from environments.models import AuditEvent, AuditHead, Environment
from environments.models.audit import NEW_KEY, seal_former_key, unguarded, verify_chain
from environments.registry import sign_in
from tests import factories

PROJECT = Path(__file__).parents[2]
PURPOSE = "a-test"


# --- the registry -------------------------------------------------------------------------------


def tags_with(token: str) -> int:
    headers = {"Authorization": f"Bearer {token}"}
    return Client(headers=headers).get("/v2/research/ml/tags/list").status_code


def test_the_secret_key_makes_no_registry_token(environment: Environment, settings: Any) -> None:
    factories.make_build(environment)
    token = factories.make_token(factories.make_user("vera", superuser=True))
    said = {"token": 1, "for": ["repository:research/ml"]}
    from accounts.models import ApiToken

    said["token"] = ApiToken.objects.get().pk
    forged = signing.dumps(said, key=settings.SECRET_KEY, salt=sign_in.SALT)
    assert tags_with(forged) == 401
    answer = Client(headers={"Authorization": f"Bearer {token}"}).get(
        "/v2/token", {"scope": "repository:research/ml:pull"}
    )
    assert tags_with(answer.json()["token"]) == 200


def test_a_registry_token_of_a_former_key_is_taken_while_it_lives(
    environment: Environment, settings: Any
) -> None:
    factories.make_build(environment)
    token = factories.make_token(factories.make_user("vera", superuser=True))
    answer = Client(headers={"Authorization": f"Bearer {token}"}).get(
        "/v2/token", {"scope": "repository:research/ml:pull"}
    )
    settings.REGISTRY_KEY_FALLBACKS = [settings.REGISTRY_KEY]
    settings.REGISTRY_KEY = "r" * 60
    assert tags_with(answer.json()["token"]) == 200
    settings.REGISTRY_KEY_FALLBACKS = []
    assert tags_with(answer.json()["token"]) == 401


# --- the audit log ------------------------------------------------------------------------------


def record(times: int) -> None:
    for number in range(times):
        AuditEvent.record(None, "test.event", f"thing {number}", {"number": number})


def sign_again(key: bytes) -> None:
    """What somebody does who has `key` and writes to the database: change an event, sign anew."""
    digest = ""
    for event in unguarded().order_by("position"):
        event.target = event.target.replace("thing", "other")
        columns = list(
            unguarded().filter(pk=event.pk).values_list("position", "at", *COVERED[2:]).get()
        )
        columns[1] = event.at.isoformat(timespec="microseconds")
        columns[COVERED.index("target")] = event.target
        digest = seal_event(key, digest, columns)
        unguarded().filter(pk=event.pk).update(target=event.target, digest=digest)
    AuditHead.objects.update(digest=digest)


@pytest.mark.django_db
def test_the_secret_key_signs_no_audit_log(settings: Any) -> None:
    record(3)
    assert verify_chain().fault is None
    sign_again(chain_key(settings.SECRET_KEY))
    fault = verify_chain().fault
    assert fault is not None
    assert "former key" in fault.message


@pytest.mark.django_db
def test_the_secret_key_does_not_change_the_older_events_of_an_upgraded_log(settings: Any) -> None:
    audit_key, settings.AUDIT_KEY = settings.AUDIT_KEY, settings.SECRET_KEY
    record(3)
    settings.AUDIT_KEY = audit_key
    assert seal_former_key()
    record(1)
    assert verify_chain().fault is None
    first = unguarded().order_by("position")[0]
    columns = list(unguarded().values_list("position", "at", *COVERED[2:]).get(pk=first.pk))
    columns[1], columns[COVERED.index("target")] = first.at.isoformat(), "another"
    digest = seal_event(chain_key(settings.SECRET_KEY), "", columns)
    unguarded().filter(pk=first.pk).update(target="another", digest=digest)
    assert verify_chain().fault is not None


@pytest.mark.django_db
def test_a_log_that_the_secret_key_signed_verifies_after_the_upgrade(settings: Any) -> None:
    audit_key, settings.AUDIT_KEY = settings.AUDIT_KEY, settings.SECRET_KEY
    record(3)
    settings.AUDIT_KEY = audit_key
    fault = verify_chain().fault
    assert fault is not None, "nothing protects it until an event is signed with the new key"
    assert seal_former_key()
    assert not seal_former_key(), "once is enough"
    record(2)
    assert verify_chain().fault is None
    assert list(unguarded().filter(action=NEW_KEY).values_list("position", flat=True)) == [4]


@pytest.mark.django_db
def test_a_former_key_signs_no_event_after_the_new_one(settings: Any) -> None:
    record(2)
    settings.AUDIT_KEY_FALLBACKS = [settings.AUDIT_KEY]
    settings.AUDIT_KEY = "n" * 60
    assert seal_former_key()
    former = settings.AUDIT_KEY_FALLBACKS[0]
    settings.AUDIT_KEY, current = former, settings.AUDIT_KEY
    record(1)
    settings.AUDIT_KEY = current
    fault = verify_chain().fault
    assert fault is not None
    assert fault.position == 4


# --- what is stored encrypted -------------------------------------------------------------------


def test_the_secret_key_opens_no_stored_secret(settings: Any) -> None:
    sealed = seal("hunter2", purpose=PURPOSE)
    assert unseal(sealed, purpose=PURPOSE) == "hunter2"
    settings.ENCRYPTION_KEY = settings.SECRET_KEY
    assert unseal(sealed, purpose=PURPOSE) == ""


def test_what_the_secret_key_encrypted_is_still_read(settings: Any) -> None:
    encryption_key, settings.ENCRYPTION_KEY = settings.ENCRYPTION_KEY, settings.SECRET_KEY
    sealed = seal("hunter2", purpose=PURPOSE)
    settings.ENCRYPTION_KEY = encryption_key
    assert unseal(sealed, purpose=PURPOSE) == "hunter2"
    assert unseal(sealed, purpose="another") == ""


# --- the key files ------------------------------------------------------------------------------

READ = "from condastore import settings as s; print(s.SECRET_KEY, s.AUDIT_KEY, s.ENCRYPTION_KEY)"


def read_keys(data: Path, **environ: str) -> subprocess.Popen[str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith("CONDASTORE_")}
    return subprocess.Popen(
        [sys.executable, "-c", READ],
        env=kept | {"CONDASTORE_DATA": str(data)} | environ,
        cwd=PROJECT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        umask=0,
    )


def test_processes_that_start_at_once_use_one_set_of_keys_that_only_they_can_read(
    tmp_path: Path,
) -> None:
    started = [read_keys(tmp_path / "data") for _ in range(3)]
    answers = {process.communicate()[0] for process in started}
    assert [process.returncode for process in started] == [0, 0, 0]
    [keys] = answers
    assert len(set(keys.split())) == 3, "each key is its own"
    secrets = tmp_path / "data" / "secrets"
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in secrets.iterdir()}
    assert modes == dict.fromkeys(
        ("audit_key", "encryption_key", "registry_key", "secret_key"), 0o600
    )
    assert stat.S_IMODE(secrets.stat().st_mode) == 0o700


def test_a_key_file_with_several_lines_has_the_current_key_first(tmp_path: Path) -> None:
    secrets = tmp_path / "secrets"
    secrets.mkdir(mode=0o700)
    (secrets / "encryption_key").write_text("newer\nolder\n")
    (tmp_path / "audit").write_text("given\n")
    process = read_keys(tmp_path, CONDASTORE_AUDIT_KEY_FILE=str(tmp_path / "audit"))
    assert process.communicate()[0].split()[1:] == ["given", "newer"]
    assert not (secrets / "audit_key").exists()


def test_a_key_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    process = read_keys(tmp_path, CONDASTORE_AUDIT_KEY_FILE=str(tmp_path / "missing"))
    error = process.communicate()[1]
    assert process.returncode != 0
    assert "CONDASTORE_AUDIT_KEY" in error
    assert "missing cannot be read" in error


def test_the_administrator_reads_the_event_of_a_new_key(root: Actor, settings: Any) -> None:
    settings.AUDIT_KEY_FALLBACKS = [settings.AUDIT_KEY]
    record(1)
    settings.AUDIT_KEY = "n" * 60
    assert seal_former_key()
    assert AuditEvent.objects.visible_to(root).filter(action=NEW_KEY).exists()
