"""Subjects and texts of mails, from the templates in `templates/mail`.

The template engine of mails escapes nothing, because their text is plain. A subject is one line
without control characters, so that no value can add a header.
"""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from typing import Any

from django.template import engines

#: Name of the engine in `settings.TEMPLATES`.
ENGINE = "mail"
MAX_SUBJECT_LENGTH = 200


@dataclass(frozen=True, slots=True)
class MailText:
    """Subject, of one line, and text of a mail."""

    subject: str
    text: str


def compose(name: str, **context: Any) -> MailText:
    """Render `<name>_subject.txt` and `<name>.txt` of `templates/mail`."""
    return MailText(subject_of(name, **context), text_of(name, **context))


def subject_of(name: str, **context: Any) -> str:
    return one_line(_render(f"{name}_subject.txt", context))


def text_of(name: str, **context: Any) -> str:
    return _render(f"{name}.txt", context).strip() + "\n"


def one_line(subject: str) -> str:
    """Return a subject without line ends and control characters, shortened to what is stored."""
    printable = "".join(
        " " if character.isspace() or unicodedata.category(character) == "Cc" else character
        for character in subject
    )
    return " ".join(printable.split())[:MAX_SUBJECT_LENGTH]


def _render(file: str, context: dict[str, Any]) -> str:
    return engines[ENGINE].get_template(file).render(context)
