"""Rate limit of repeated log records, so that an outage does not fill the disk with its log.

Every thread meets an outage at each of its tries. Of records that say the same, the first few of a
minute are written; the others are counted, and the count is written when the minute is over.
Tracebacks of services that are away are one line: where in a client library a connection broke
helps nobody.
"""

from __future__ import annotations

import logging
import re
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

#: Records of one kind that are written in one period, with a traceback of a fault of ours; and
#: those whose traceback is left away, so that no error's number is missing from the log.
BURST, MAX_FAULTS = 5, 100
#: Seconds.
PERIOD = 60.0
#: Kinds that are remembered; more than there are log statements.
KINDS = 1000
#: What says that a service is away: exceptions of clients, by the package that defines them.
_CLIENTS = frozenset({"dramatiq", "pika", "psycopg", "redis"})
#: Loggers of dramatiq name their queue, such as `dramatiq.worker.ConsumerThread(builds)`.
_INSTANCE = re.compile(r"\(.*\)$")


def is_outage(error: BaseException) -> bool:
    """Return True for what a client library raises where its server is away."""
    if type(error).__module__.startswith("django.db"):
        from condastore import outages  # it needs Django, and settings import this module

        return outages.unavailable(error) is not None
    kinds = [kind for kind in type(error).__mro__ if kind not in (Exception, BaseException)]
    return isinstance(error, ConnectionError) or any(
        kind.__module__.partition(".")[0] in _CLIENTS for kind in kinds
    )


@dataclass(slots=True)
class _Kind:
    began: float
    written: int = 0
    left_out: int = 0


class FoldingHandler(logging.StreamHandler[Any]):
    """Writes records to stderr, of those that repeat a few a minute and their number."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._kinds: dict[tuple[str, ...], _Kind] = {}

    def emit(self, record: logging.LogRecord) -> None:
        """Write the record, shorten it, or count it; called with the handler's lock held."""
        for summary in self._summaries(self._clock()):
            super().emit(summary)
        if record.levelno < logging.WARNING:
            super().emit(record)
            return
        error = _error_of(record)
        away = error is not None and is_outage(error)
        name = type(error).__name__ if error else ""
        key = (_INSTANCE.sub("", record.name), record.levelname, _event_of(record), name)
        if key not in self._kinds and len(self._kinds) >= KINDS:
            self._kinds.clear()
        kind = self._kinds.setdefault(key, _Kind(began=self._clock()))
        # A record with a traceback has an id that somebody may search for.
        most = MAX_FAULTS if error is not None and not away else BURST
        if kind.written >= most:
            kind.left_out += 1
            return
        kind.written += 1
        if error is not None and (away or kind.written > BURST):
            _shorten(record, error)
        super().emit(record)

    def _summaries(self, now: float) -> Iterator[logging.LogRecord]:
        over = [key for key, kind in self._kinds.items() if now - kind.began >= PERIOD]
        for key in over:
            left_out = self._kinds.pop(key).left_out
            if left_out:
                name, level, event, error = key
                yield logging.LogRecord(
                    name,
                    logging.getLevelNamesMapping()[level],
                    "",
                    0,
                    "%d more like this were left out: %s",
                    (left_out, f"{event} ({error})" if error else event),
                    None,
                )

    def close(self) -> None:
        """Write what was counted so far."""
        for summary in self._summaries(float("inf")):
            super().emit(summary)
        super().close()


def _event_of(record: logging.LogRecord) -> str:
    """Return what the record says, without the values that differ from one to the next."""
    said: Any = record.msg  # of structlog a dictionary
    return str(said.get("event", "") if isinstance(said, dict) else said)


def _error_of(record: logging.LogRecord) -> BaseException | None:
    info: Any = record.exc_info
    if isinstance(record.msg, dict):
        info = record.msg.get("exc_info") or info
    if info is True or info == 1:
        info = sys.exc_info()
    if isinstance(info, BaseException):
        return info
    return info[1] if isinstance(info, tuple) else None


def _shorten(record: logging.LogRecord, error: BaseException) -> None:
    """Put the error's own words in the place of its traceback."""
    words = f"{type(error).__name__}: {' '.join(str(error).split())}"[:500]
    record.exc_info = record.exc_text = None
    if isinstance(record.msg, dict):
        said = {name: value for name, value in record.msg.items() if name != "exc_info"}
        record.msg = said if "error" in said else said | {"error": words}
    else:
        record.msg, record.args = "%s (%s)", (record.getMessage(), words)
