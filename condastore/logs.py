"""Structured logs: one line an event, with the build's and the request's id where there is one."""

from __future__ import annotations

import logging.config
import time
from collections import Counter
from collections.abc import Mapping
from typing import Any

import structlog

_SHARED: list[Any] = [
    structlog.contextvars.merge_contextvars,
    structlog.stdlib.add_logger_name,
    structlog.stdlib.add_log_level,
    structlog.stdlib.PositionalArgumentsFormatter(),
    structlog.processors.TimeStamper(fmt="iso", utc=True),
]


class NotProbes(logging.Filter):
    """A system that is not ready yet is asked often, and answers 503 each time."""

    def filter(self, record: logging.LogRecord) -> bool:
        return "/readyz" not in record.getMessage()


class OnceAMinute(logging.Filter):
    """Of an outage that every thread meets at each try: one line a minute, with how many more."""

    EVENTS = frozenset({"database unreachable"})
    PAUSE = 60.0

    def __init__(self) -> None:
        super().__init__()
        self._last: dict[str, float] = {}
        self._unsaid: Counter[str] = Counter()

    def filter(self, record: logging.LogRecord) -> bool:
        said: Any = record.msg  # of structlog a dictionary
        event = said.get("event") if isinstance(said, dict) else None
        if event not in self.EVENTS:
            return True
        now = time.monotonic()
        if now - self._last.get(event, -self.PAUSE) < self.PAUSE:
            self._unsaid[event] += 1
            return False
        self._last[event] = now
        if unsaid := self._unsaid.pop(event, 0):
            record.msg = said | {"unsaid": unsaid}
        return True


def configure(options: Mapping[str, Any]) -> None:
    """`options`: {"level": "INFO", "format": "console" | "json"}; Django calls this at start."""
    renderer: Any = (
        structlog.processors.JSONRenderer()
        if options.get("format") == "json"
        # Plain tracebacks: the rich ones show the values of variables, secrets among them.
        else structlog.dev.ConsoleRenderer(
            colors=False, exception_formatter=structlog.dev.plain_traceback
        )
    )
    logging.config.dictConfig(
        {
            "version": 1,
            "disable_existing_loggers": False,
            "formatters": {
                "structured": {
                    "()": structlog.stdlib.ProcessorFormatter,
                    "foreign_pre_chain": _SHARED,
                    "processors": [
                        structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                        *(
                            [structlog.processors.format_exc_info]
                            if options.get("format") == "json"
                            else []
                        ),
                        renderer,
                    ],
                }
            },
            "filters": {
                "not_probes": {"()": NotProbes},
                "once_a_minute": {"()": OnceAMinute},
            },
            "handlers": {
                "stderr": {
                    "class": "logging.StreamHandler",
                    "formatter": "structured",
                    "filters": ["not_probes", "once_a_minute"],
                },
            },
            "root": {"handlers": ["stderr"], "level": options.get("level", "INFO")},
            "loggers": {
                "httpx": {"level": "WARNING"},
                "dramatiq": {"level": "WARNING"},
                "uvicorn.access": {"level": "WARNING"},
                "django.request": {"level": "ERROR"},
            },
        }
    )
    structlog.configure(
        processors=[*_SHARED, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
