"""Structured logs: one line an event, with the build's and the request's id where there is one."""

from __future__ import annotations

import logging.config
from collections.abc import Mapping
from typing import Any

import structlog

from condastore import terminal

_SHARED: list[Any] = [
    structlog.contextvars.merge_contextvars,
    structlog.stdlib.add_logger_name,
    structlog.stdlib.add_log_level,
    structlog.stdlib.PositionalArgumentsFormatter(),
    structlog.processors.TimeStamper(fmt="iso", utc=True),
]


def _escape_values(logger: Any, method: str, event: dict[str, Any]) -> dict[str, Any]:
    """Escape control characters, so that no value can begin a line or steer a terminal."""
    return {
        terminal.escaped(key): terminal.escaped(value)
        if isinstance(value, str) and key not in _MANY_LINES
        else value
        for key, value in event.items()
    }


#: Texts of several lines, which `_indent_continuation` keeps apart from the lines of the log.
_MANY_LINES = frozenset({"exception", "stack"})


def _indent_continuation(logger: Any, method: str, line: str) -> str:
    """Indent the lines of a traceback: whatever starts a line is a line of the log itself."""
    return terminal.neutralise(line).replace("\n", "\n    ")


class NotProbes(logging.Filter):
    """A system that is not ready yet is asked often, and answers 503 each time."""

    def filter(self, record: logging.LogRecord) -> bool:
        return "/readyz" not in record.getMessage()


def configure(options: Mapping[str, Any]) -> None:
    """`options`: {"level": "INFO", "format": "console" | "json"}; Django calls this at start."""
    rendering: list[Any] = (
        [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
        if options.get("format") == "json"
        else [
            _escape_values,
            # Plain tracebacks: the rich ones show the values of variables, secrets among them.
            structlog.dev.ConsoleRenderer(
                colors=False, exception_formatter=structlog.dev.plain_traceback
            ),
            _indent_continuation,
        ]
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
                        *rendering,
                    ],
                }
            },
            "filters": {
                "not_probes": {"()": NotProbes},
            },
            "handlers": {
                "stderr": {
                    "class": "condastore.log_folding.FoldingHandler",
                    "formatter": "structured",
                    "filters": ["not_probes"],
                },
            },
            "root": {"handlers": ["stderr"], "level": options.get("level", "INFO")},
            "loggers": {
                "httpx": {"level": "WARNING"},
                "dramatiq": {"level": "WARNING"},
                # It raises what it logs, and logs each connection seven times.
                "pika": {"level": "CRITICAL"},
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
