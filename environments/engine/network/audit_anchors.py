"""External storage of audit log checkpoints, outside the database: file, syslog or webhook."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass, field
from logging.handlers import SysLogHandler
from pathlib import Path
from typing import Protocol
from urllib.parse import unquote, urlsplit

from condastore.errors import InvalidInputError, UnavailableError

TIMEOUT = 10.0  # seconds, of a webhook
SYSLOG_SOCKET = "/dev/log"
_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})


class AuditAnchor(Protocol):
    """Interface of a storage for checkpoints."""

    def store(self, line: str) -> None:
        """Store one checkpoint.

        Raises:
            UnavailableError: it was not stored, or the result is unknown.
        """


@dataclass(frozen=True, slots=True)
class FileAnchor:
    """A file that lines are appended to; created readable by its owner only."""

    path: Path

    def store(self, line: str) -> None:
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
        try:
            number = os.open(self.path, flags, 0o600)
            try:
                os.write(number, f"{line}\n".encode())
                os.fsync(number)
            finally:
                os.close(number)
        except OSError as error:
            raise UnavailableError(f"{self.path} cannot be written: {error.strerror}.") from error


class _StrictSysLogHandler(SysLogHandler):
    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's own name
        raise


@dataclass(frozen=True, slots=True)
class SyslogAnchor:
    """The syslog daemon of this machine (facility authpriv), which forwards the messages."""

    socket: str = SYSLOG_SOCKET

    def store(self, line: str) -> None:
        try:
            handler = _StrictSysLogHandler(self.socket, SysLogHandler.LOG_AUTHPRIV)
            handler.append_nul = False
            try:
                handler.emit(
                    logging.makeLogRecord({"msg": f"condastore: {line}", "levelno": logging.INFO})
                )
            finally:
                handler.close()
        except OSError as error:
            raise UnavailableError(f"Syslog at {self.socket} does not respond: {error}.") from error


@dataclass(frozen=True, slots=True)
class WebhookAnchor:
    """A receiver that gets each checkpoint as a POST with a JSON body."""

    url: str = field(repr=False)  # may contain credentials

    def store(self, line: str) -> None:
        import httpx  # slow to import, and most processes send nothing

        host = urlsplit(self.url).hostname
        try:
            answer = httpx.post(
                self.url,
                content=line.encode(),
                headers={"Content-Type": "application/json"},
                timeout=TIMEOUT,
                follow_redirects=False,
                trust_env=False,
            )
        except httpx.HTTPError as error:
            raise UnavailableError(f"{host} does not respond: {type(error).__name__}.") from error
        if not answer.is_success:
            raise UnavailableError(f"{host} responded with status {answer.status_code}.")


def parse_audit_anchor(text: str) -> AuditAnchor:
    """Parse the setting CONDASTORE_AUDIT_ANCHOR.

    Raises:
        InvalidInputError: the value is not supported.
    """
    parts = urlsplit(text)
    match parts.scheme:
        case "file" if parts.path.startswith("/") and parts.netloc in ("", "localhost"):
            return FileAnchor(Path(unquote(parts.path)))
        case "syslog" if not parts.netloc and not parts.path:
            return SyslogAnchor()
        case "syslog" if not parts.netloc and parts.path.startswith("/"):
            return SyslogAnchor(unquote(parts.path))
        case "https" if parts.hostname:
            return WebhookAnchor(text)
        case "http" if parts.hostname in _LOOPBACK:
            return WebhookAnchor(text)
    raise InvalidInputError(
        "CONDASTORE_AUDIT_ANCHOR is not a supported location for checkpoints.",
        hint="Write file:/path, syslog: or an https:// URL.",
    )
