"""What went wrong, in words for the person at the terminal, and the exit status that says it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any


class Status(IntEnum):
    """Exit statuses; scripts may rely on them (`docs/reference/cli.md`)."""

    OK = 0
    FAILED = 1  # the build failed or was cancelled; or our own fault
    USAGE = 2
    REFUSED = 3  # not signed in, or not allowed
    NOT_FOUND = 4
    UNREACHABLE = 5
    INVALID = 6  # invalid input, or a conflict with the current state


_BY_CODE: Mapping[str, Status] = {
    "access-denied": Status.REFUSED,
    "not-signed-in": Status.REFUSED,
    "token-invalid": Status.REFUSED,
    "not-found": Status.NOT_FOUND,
    "internal-error": Status.FAILED,
}


def status_of(code: str) -> Status:
    """The exit status for a stable error code of the server."""
    return _BY_CODE.get(code, Status.INVALID)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One of several things that are wrong with one request."""

    message: str
    where: str = ""
    hint: str = ""


class CommandError(Exception):
    """Ends the command: printed to stderr without a traceback, then `status`."""

    def __init__(
        self,
        message: str,
        *,
        status: Status,
        code: str = "error",
        where: str = "",
        hint: str = "",
        faults: Sequence[Fault] = (),
        details: Any = None,
    ) -> None:
        super().__init__(message)
        self.message, self.status, self.code = message, status, code
        self.where, self.hint, self.faults, self.details = where, hint, tuple(faults), details

    def lines(self) -> list[str]:
        """Return the message, then each fault with its place, then the next step."""
        if len(self.faults) > 1:
            text = [f"error: {len(self.faults)} things are wrong"]
            for fault in self.faults:
                text.append(
                    f"  {fault.where}: {fault.message}" if fault.where else f"  {fault.message}"
                )
                if fault.hint and fault.hint != self.hint:
                    text.append(f"      {fault.hint}")
        else:
            fault = self.faults[0] if self.faults else Fault(message=self.message, where=self.where)
            text = [f"error: {fault.message}"]
            if fault.where:
                text.append(f"  where: {fault.where}")
            # The hint of the fault is about it, the one of the error about all of its kind.
            if hint := fault.hint or self.hint:
                text.append(f"  hint: {hint}")
            return text
        if self.hint:
            text.append(f"  hint: {self.hint}")
        return text

    def document(self) -> dict[str, Any]:
        return {
            "error": {
                "code": self.code,
                "message": self.message,
                "where": self.where,
                "hint": self.hint,
                "details": self.details,
                "faults": [
                    {"message": fault.message, "where": fault.where, "hint": fault.hint}
                    for fault in self.faults
                ],
            }
        }


def operation_error(payload: Mapping[str, Any]) -> CommandError:
    """From the API's `OperationError`."""
    code = str(payload.get("code") or "error")
    return CommandError(
        str(payload.get("message") or "The server refused the request."),
        status=status_of(code),
        code=code,
        where=str(payload.get("where") or ""),
        hint=str(payload.get("hint") or ""),
        faults=[
            Fault(
                message=str(fault.get("message") or ""),
                where=str(fault.get("where") or ""),
                hint=str(fault.get("hint") or ""),
            )
            for fault in payload.get("faults") or ()
        ],
        details=payload.get("details"),
    )
