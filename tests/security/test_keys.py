"""What somebody can do with one stolen key, or with a copy of the database."""

from __future__ import annotations

import base64
import hashlib
import os
import stat
import subprocess
import sys
from importlib import import_module
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from allauth.mfa.models import Authenticator
from asgiref.sync import async_to_sync
from django.apps import apps
from django.conf import settings as django_settings
from django.contrib.sessions.backends.db import SessionStore as DjangoStore
from django.contrib.sessions.models import Session
from django.core import signing
from django.core.management import CommandError, call_command
from django.db import connection
from django.test import Client

from accounts.access import Actor
from accounts.adapters import SecondFactorAdapter
from accounts.models import ApiToken, Identity, InstallationKey, User
from accounts.sealing import seal, unseal
from accounts.sessions import SessionStore, key_digest
from condastore.cli.errors import CommandError as RefusedCommand
from condastore.supervisor.startup import require_keys
from environments.domain.audit_chain import COVERED, chain_key
from environments.domain.audit_chain import seal as seal_event
from environments.models import AuditEvent, AuditHead, ChannelCredential, Environment, Webhook
from environments.models.audit import NEW_KEY, seal_former_key, unguarded, verify_chain
from environments.registry import sign_in
from environments.services import key_rotation
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
    said = {"token": ApiToken.objects.get().pk, "for": ["repository:research/ml"]}
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


def without_guard() -> None:
    """The owner of the tables removes the guard of PostgreSQL first."""
    if connection.vendor == "postgresql":
        with connection.cursor() as cursor:
            cursor.execute("ALTER TABLE environments_auditevent DISABLE TRIGGER USER")


def sign_again(key: bytes) -> None:
    """What somebody does who has `key` and writes to the database: change an event, sign anew."""
    without_guard()
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
    without_guard()
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


@pytest.mark.django_db
def test_an_upgrade_encrypts_again_what_the_secret_key_opens(settings: Any) -> None:
    vera = factories.make_user("vera")
    encryption_key, settings.ENCRYPTION_KEY = settings.ENCRYPTION_KEY, settings.SECRET_KEY
    identity = Identity(user=vera, issuer="https://idp.example.org", subject="v")
    identity.refresh_token = "r1"
    identity.save()
    credential = ChannelCredential(url_prefix="https://channel.example.org", kind="token")
    credential.seal("hunter2")
    credential.save()
    hook = Webhook(url="https://hook.example.org")
    hook.seal("hook-secret")
    hook.save()
    one_time = SecondFactorAdapter().encrypt("JBSWY3DPEHPK3PXP")
    Authenticator.objects.create(user=vera, type="totp", data={"secret": one_time})
    seed = SecondFactorAdapter().encrypt("a seed")
    codes = {"seed": seed, "used_mask": 5}
    Authenticator.objects.create(user=vera, type="recovery_codes", data=codes)

    settings.ENCRYPTION_KEY = encryption_key
    assert key_rotation.renew().reencrypted == 5
    assert key_rotation.renew().reencrypted == 0
    settings.SECRET_KEY, settings.SECRET_KEY_FALLBACKS = "stolen" * 10, []
    assert Identity.objects.get().refresh_token == "r1"
    assert ChannelCredential.objects.get().secret == "hunter2"
    assert Webhook.objects.get().secret == "hook-secret"
    totp, recovery = Authenticator.objects.order_by("pk")
    assert SecondFactorAdapter().decrypt(totp.data["secret"]) == "JBSWY3DPEHPK3PXP"
    assert SecondFactorAdapter().decrypt(recovery.data["seed"]) == "a seed"
    assert recovery.data["used_mask"] == 5


def test_every_column_of_encrypted_text_is_encrypted_again() -> None:
    sealed = {
        (model, field.name)
        for model in apps.get_models()
        for field in model._meta.get_fields()
        if field.name.startswith("sealed")
    }
    assert sealed == {(model, column) for model, column, _ in key_rotation.COLUMNS}


# --- sessions -----------------------------------------------------------------------------------


def signed_in() -> Client:
    factories.make_user("vera", superuser=True, password="correct horse battery")
    browser = Client()
    assert browser.login(username="vera", password="correct horse battery")
    return browser


def name_of(browser: Client) -> str | None:
    answer: str | None = browser.get("/api/whoami").json().get("username")
    return answer


def with_cookie(value: str) -> Client:
    browser = Client()
    browser.cookies[django_settings.SESSION_COOKIE_NAME] = value
    return browser


@pytest.mark.django_db
def test_a_copy_of_the_sessions_table_signs_nobody_in() -> None:
    browser = signed_in()
    key = browser.cookies[django_settings.SESSION_COOKIE_NAME].value
    assert name_of(with_cookie(key)) == "vera"
    [row] = Session.objects.all()
    assert key not in row.session_key
    assert name_of(with_cookie(row.session_key)) is None


@pytest.mark.django_db
def test_session_data_is_not_readable_in_the_table() -> None:
    browser = signed_in()
    session = browser.session
    session["mfa.totp.secret"] = "JBSWY3DPEHPK3PXP"
    session.save()
    assert browser.session["mfa.totp.secret"] == "JBSWY3DPEHPK3PXP"
    [row] = Session.objects.all()
    assert DjangoStore().decode(row.session_data) == {}
    for part in row.session_data.split(":"):
        assert b"JBSWY3DPEHPK3PXP" not in base64.urlsafe_b64decode(part + "=" * (-len(part) % 4))


@pytest.mark.django_db
def test_the_secret_key_makes_no_session(settings: Any) -> None:
    browser = signed_in()
    user = browser.session["_auth_user_id"]
    forged = {
        "_auth_user_id": user,
        "_auth_user_backend": settings.AUTHENTICATION_BACKENDS[0],
        "_auth_user_hash": User.objects.get().get_session_auth_hash(),
    }
    Session.objects.update(session_data=DjangoStore().encode(forged))  # signed by the secret key
    assert name_of(browser) is None
    Session.objects.update(session_data=SessionStore().encode(forged))
    assert name_of(browser) == "vera", "the honest twin: encrypted as we do"


@pytest.mark.django_db
def test_an_upgrade_ends_the_sessions_whose_keys_could_be_read() -> None:
    browser = signed_in()
    migration = import_module("accounts.migrations.0003_hashed_sessions_and_keys")
    migration.remove_sessions(apps, None)
    assert name_of(browser) is None


@pytest.mark.django_db
def test_a_session_ends_with_the_sign_out_and_gets_another_key_with_the_sign_in() -> None:
    browser = signed_in()
    key = browser.cookies[django_settings.SESSION_COOKIE_NAME].value
    browser.force_login(User.objects.get())
    session = browser.session
    session.cycle_key()
    session.save()
    assert name_of(with_cookie(session.session_key)) == "vera"
    assert name_of(with_cookie(key)) is None
    browser.cookies[django_settings.SESSION_COOKIE_NAME] = session.session_key
    browser.logout()
    assert not Session.objects.exists()


@pytest.mark.django_db(transaction=True)
def test_sessions_are_the_same_for_asynchronous_code() -> None:
    async def story() -> None:
        store = SessionStore()
        await store.aset("who", "vera")
        await store.asave()
        key = store.session_key
        assert key is not None
        assert await store.aexists(key)
        assert await SessionStore(key).aget("who") == "vera"
        assert await SessionStore(key_digest(key)).aget("who") is None
        await SessionStore(key).adelete()
        assert await SessionStore(key).aget("who") is None

    async_to_sync(story)()


# --- the same keys on every machine --------------------------------------------------------------


@pytest.mark.django_db
def test_a_machine_with_another_key_is_not_ready(settings: Any, client: Client) -> None:
    assert key_rotation.fault() == ""
    settings.AUDIT_KEY = "another" * 10
    wrong = client.get("/readyz").json()["checks"]["keys"]["wrong"]
    assert "CONDASTORE_AUDIT_KEY" in wrong
    assert "ENCRYPTION" not in wrong
    with pytest.raises(RefusedCommand):
        require_keys()
    with pytest.raises(CommandError, match="CONDASTORE_AUDIT_KEY"):
        call_command("keys")
    call_command("keys", "--accept", stdout=StringIO())
    assert client.get("/readyz").json()["checks"]["keys"]["ok"]


@pytest.mark.django_db
def test_a_key_is_replaced_by_a_line_above_it(settings: Any) -> None:
    assert key_rotation.fault() == ""
    credential = ChannelCredential(url_prefix="https://channel.example.org", kind="token")
    credential.seal("hunter2")
    credential.save()
    record(1)
    old = settings.AUDIT_KEY, settings.ENCRYPTION_KEY
    settings.AUDIT_KEY_FALLBACKS, settings.AUDIT_KEY = [old[0]], "a" * 60
    settings.ENCRYPTION_KEY_FALLBACKS, settings.ENCRYPTION_KEY = [old[1]], "e" * 60
    answer = StringIO()
    call_command("keys", stdout=answer)
    assert "1 secrets" in answer.getvalue()
    settings.ENCRYPTION_KEY_FALLBACKS = []
    assert ChannelCredential.objects.get().secret == "hunter2"
    assert verify_chain().fault is None
    # A machine that was not restarted yet has the old key only.
    settings.AUDIT_KEY_FALLBACKS, settings.AUDIT_KEY = [], old[0]
    assert "CONDASTORE_AUDIT_KEY" in key_rotation.fault()


@pytest.mark.django_db
def test_no_key_can_be_read_from_its_fingerprint(settings: Any) -> None:
    key_rotation.fault()
    stored = " ".join(InstallationKey.objects.values_list("fingerprint", flat=True))
    for key in (settings.SECRET_KEY, settings.AUDIT_KEY, settings.ENCRYPTION_KEY):
        assert key not in stored
        assert hashlib.sha256(key.encode()).hexdigest() not in stored


# --- the key files ------------------------------------------------------------------------------

READ = "from condastore import settings as s; print(s.SECRET_KEY, s.AUDIT_KEY, s.ENCRYPTION_KEY)"


def read_keys(data: Path, **environ: str) -> subprocess.Popen[str]:
    retained = {k: v for k, v in os.environ.items() if not k.startswith("CONDASTORE_")}
    return subprocess.Popen(
        [sys.executable, "-c", READ],
        env=retained | {"CONDASTORE_DATA": str(data)} | environ,
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
