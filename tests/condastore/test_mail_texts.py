"""Texts of mails: plain text as it was written, and subjects of one line."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from django.conf import settings
from django.core.mail import EmailMessage
from django.template import TemplateDoesNotExist
from django.template.loader import get_template

from condastore import mail_texts
from condastore.mail_texts import compose

HOSTILE = '<b>"O\'Neil" & {{ settings.SECRET_KEY }}</b>'
REQUEST = SimpleNamespace(name="numpy", version="2.0", reason="not on the list", chain=["numpy"])
#: Every mail with values for all that its templates read.
MAILS: dict[str, dict[str, Any]] = {
    "build_finished": {"build": "research/main #3", "state": "ready", "message": "In time."},
    "invitation": {"user": {"username": "bob"}, "inviter": "Alice", "link": "/key", "minutes": 5},
    "owner_left": {"owner": "bob", "account": "ci", "namespace": "research", "suspended": True},
    "password_link": {"user": {"username": "bob"}, "link": "/key", "minutes": 5},
    "password_reset": {"address": "::1", "accounts": [("bob", "/key")], "minutes": 5},
    "quota_warning": {"namespace": "research", "quota": "disk", "use": "9 GB", "hint": "Delete"},
    "recall": {"package": "xz", "undone": False, "reason": "backdoor", "environments": ["r/m"]},
    "request_decided": {
        "by": "alice",
        "approved": True,
        "packages": "numpy 2.0",
        "namespace": "research",
        "reason": "reviewed",
        "expires_at": datetime(2030, 1, 2, 3, 4, tzinfo=timezone(timedelta(hours=1))),
        "builds": ["research/main #3"],
    },
    "request_opened": {
        "by": "bob",
        "environment": "research/main",
        "packages": "numpy 2.0",
        "requests": [REQUEST],
        "purpose": "a talk",
        "page": "https://store.example/admin",
    },
}


def test_each_template_of_mails_belongs_to_one_of_the_mails_tested_here() -> None:
    folder = Path(settings.TEMPLATES[1]["DIRS"][0])
    files = {path.name for path in folder.iterdir()}
    assert files == {f"{name}{end}.txt" for name in MAILS for end in ("", "_subject")}


@pytest.mark.parametrize("name", MAILS)
def test_values_of_mails_are_neither_escaped_nor_rendered(name: str) -> None:
    for key, value in MAILS[name].items():
        if isinstance(value, str):
            mail = compose(name, **(MAILS[name] | {key: HOSTILE}))
            assert HOSTILE in mail.subject + mail.text
            assert "&lt;" not in mail.subject + mail.text


@pytest.mark.parametrize("name", MAILS)
@pytest.mark.parametrize("end", ["\r\n", "\n", "\r", "\x0b", "\x00", "\x85", "\u2028"])
def test_no_value_adds_a_header(name: str, end: str) -> None:
    hostile = f"x{end}Bcc: eve@example.org"
    values = {
        key: hostile if isinstance(value, str) else value for key, value in MAILS[name].items()
    }
    subject = compose(name, **values).subject
    message = EmailMessage(subject, "text", "from@example.org", ["to@example.org"]).message()
    assert "Bcc" not in message
    assert len(message.as_bytes().partition(b"\n\n")[0].split(b"\nBcc:")) == 1


def test_a_long_subject_is_shortened_to_what_is_stored() -> None:
    assert mail_texts.one_line("x" * 900) == "x" * 200


def test_the_text_of_a_request_names_packages_reasons_and_chains() -> None:
    chained = SimpleNamespace(
        name="blas", version="1", reason="its license", chain=["numpy", "blas"]
    )
    mail = compose("request_opened", **(MAILS["request_opened"] | {"requests": [REQUEST, chained]}))
    assert mail.subject == "research/main waits for approval of numpy 2.0"
    assert mail.text == (
        "bob requested a build of research/main, which needs decisions:\n"
        "\n"
        "- numpy 2.0: not on the list\n"
        "- blas 1: its license\n"
        "  required through numpy -> blas\n"
        "\n"
        "Purpose: a talk\n"
        "\n"
        "https://store.example/admin\n"
    )


def test_a_request_without_purpose_and_address_ends_with_its_packages() -> None:
    mail = compose("request_opened", **(MAILS["request_opened"] | {"purpose": "", "page": ""}))
    assert mail.text.endswith("decisions:\n\n- numpy 2.0: not on the list\n")


def test_the_text_of_a_decision_has_its_end_in_utc_and_the_builds() -> None:
    mail = compose("request_decided", **MAILS["request_decided"])
    assert mail.subject == "alice approved numpy 2.0 in research"
    assert mail.text == (
        "alice approved numpy 2.0 in research.\n"
        "\n"
        "Reason: reviewed\n"
        "Valid until 2030-01-02 02:04 UTC.\n"
        "\n"
        "- research/main #3\n"
    )


def test_a_rejection_without_end_and_builds_ends_with_its_reason() -> None:
    values = {"approved": False, "expires_at": None, "builds": []}
    mail = compose("request_decided", **(MAILS["request_decided"] | values))
    assert mail.text == "alice rejected numpy 2.0 in research.\n\nReason: reviewed\n"


@pytest.mark.parametrize(
    ("suspended", "said"),
    [
        (True, "Its tokens stop working until it has another owner."),
        (False, "Its tokens keep working; revoke those that the owner knew."),
    ],
)
def test_the_text_about_an_orphaned_account_says_whether_its_tokens_work(
    suspended: bool, said: str
) -> None:
    mail = compose("owner_left", **(MAILS["owner_left"] | {"suspended": suspended}))
    assert mail.subject == "The owner of the service account ci has left"
    assert mail.text == (
        f"bob owned the service account ci and has left. It has a role in research. {said}\n"
        "\n"
        "An administrator of the installation can assign another owner.\n"
    )


def test_the_text_of_a_recall_lists_all_environments_and_its_subject_three() -> None:
    values = {"environments": ["a", "b", "c", "d"]}
    mail = compose("recall", **(MAILS["recall"] | values))
    assert mail.subject == "xz was recalled: a, b, c"
    assert mail.text == "xz was recalled: backdoor\n\n- a\n- b\n- c\n- d\n"
    undone = compose("recall", **(MAILS["recall"] | {"undone": True, "environments": []}))
    assert undone.subject == "xz is no longer recalled"


def test_the_text_of_a_quota_says_what_is_used_and_what_helps() -> None:
    mail = compose("quota_warning", **MAILS["quota_warning"])
    assert mail.subject == "research is near its quota: disk"
    assert mail.text == "research uses 9 GB.\n\nDelete.\n"


def test_the_text_of_a_build_has_its_message_if_there_is_one() -> None:
    values = MAILS["build_finished"]
    assert compose("build_finished", **values).text == "research/main #3 is ready. In time.\n"
    silent = compose("build_finished", **(values | {"message": ""}))
    assert silent.text == "research/main #3 is ready.\n"


def test_no_page_is_rendered_by_the_engine_that_escapes_nothing() -> None:
    with pytest.raises(TemplateDoesNotExist):
        get_template("base.html", using=mail_texts.ENGINE)
