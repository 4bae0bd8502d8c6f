"""Errors of condastore: what is wrong, where, and what to do next. Imports no other module."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar


class StoreError(Exception):
    """What is wrong, `where` (`dependencies[3], line 7`), and a `hint` of what to do next.

    `details` is what a program may want to read: JSON values only.
    """

    code: ClassVar[str] = "error"  # stable: clients may rely on it
    hint: str = ""
    #: True for failures of the surroundings (network, disk, a killed worker), which are retried.
    transient: ClassVar[bool] = False

    def __init__(
        self,
        message: str,
        *,
        where: str = "",
        hint: str | None = None,
        details: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.message, self.where = message, where
        self.details: Mapping[str, Any] = details or {}
        if hint is not None:
            self.hint = hint

    def __str__(self) -> str:
        return f"{self.where}: {self.message}" if self.where else self.message


class RequestError(StoreError):
    """The request is invalid: another attempt would fail, too."""

    code = "bad-request"


class InvalidInputError(RequestError):
    """An invalid name or value."""

    code = "invalid-input"


class MethodNotAllowedError(InvalidInputError):
    """The URL does not support this method; `details` has the methods that it supports."""


class UnsupportedMediaTypeError(InvalidInputError):
    """The content type of the body is not supported."""


class SpecificationError(RequestError):
    """One or more faults of a specification, all reported at once."""

    code = "specification-invalid"
    hint = "Correct the specification and submit it again."

    def __init__(self, faults: Sequence[StoreError], *, hint: str | None = None) -> None:
        self.faults = tuple(faults)
        details = [
            {"message": fault.message, "where": fault.where, "code": fault.code, "hint": fault.hint}
            for fault in self.faults
        ]
        super().__init__(
            "; ".join(str(fault) for fault in self.faults), hint=hint, details={"faults": details}
        )


class FaultError(RequestError):
    """One fault of a specification; `where` names the key and the line."""

    code = "fault"


class RuleError(SpecificationError):
    """One or more faults of a policy's rule; `where` names the key of its settings."""

    code = "rule-invalid"
    hint = "Correct the rule and save it again."


class PackageInvalidError(SpecificationError):
    """One or more faults of an uploaded package; `where` names the file in it."""

    code = "package-invalid"
    hint = "Correct and rebuild the package, then upload it again."


class UnsatisfiableError(RequestError):
    """The requirements have no solution.

    `details`: {"conflicts": [{"requirements": [...], "reason": str, "chain": [...]}],
    "missing": [{"requirement", "channels", "similar": [...]}], and where rules leave none
    "policy": [{"package", "version", "rule", "reason", "chain", "nothing_left", "can_ask"}]}.
    """

    code = "unsatisfiable"
    hint = "Loosen or remove one of the requirements that exclude each other."


class ChannelNotFoundError(RequestError):
    code = "channel-not-found"
    hint = "Check the spelling of the channel, or ask an administrator."


class ChannelNotAllowedError(RequestError):
    code = "channel-not-allowed"
    hint = "Use one of the allowed channels, or ask an administrator to allow this one."


class AddressRefusedError(RequestError):
    """A host that has no allowed address; no request was sent to it."""

    code = "address-refused"
    hint = (
        "Check the spelling of the host. Servers in private networks are allowed only if an "
        "administrator allows it (CONDASTORE_ALLOWED_NETWORKS)."
    )


class FileRefusedError(RequestError):
    """A `file:` URL outside the allowed folders; nothing was read."""

    code = "file-refused"
    hint = (
        "Use a channel on a server. Local files are read only if an administrator "
        "allows it (CONDASTORE_FILE_CHANNELS)."
    )


class PolicyError(RequestError):
    """A package that the rules of the namespace do not allow."""

    code = "package-not-approved"
    hint = "Ask an approver of the namespace, or choose another package."


class RecalledError(PolicyError):
    """A build that contains a recalled package."""

    code = "recalled"
    hint = "Build the environment again, which selects another version of the package."


class RejectedError(PolicyError):
    """An approver rejected a package that the build needs."""

    code = "package-rejected"
    hint = "Choose another package or version, or contact the approver."


class LinkError(RequestError):
    """A package that cannot be linked: clobbering, invalid paths, a damaged archive."""

    code = "cannot-link"
    hint = "Report it to the packager, or choose another build of the package."


class ArtifactFailedError(RequestError):
    """An artifact of a build that could not be created; the message says why."""

    code = "artifact-failed"
    hint = "Request it again in a minute, or report it to the administrators."


class SmokeTestError(RequestError):
    code = "smoke-test-failed"
    hint = "See the end of the log for what the test printed."


class SmokeTestKilledError(SmokeTestError):
    """The test was killed twice by SIGKILL."""

    code = "smoke-test-killed"
    hint = (
        "The machine probably ran out of memory (`dmesg` says so). Test with less memory, or run "
        "workers on a machine that has more."
    )


class SandboxUnavailableError(RequestError):
    """Package code must run, but no sandbox is available."""

    code = "sandbox-unavailable"
    hint = (
        "Ask an administrator to make bubblewrap work where the workers run "
        "(docs/how-to/sandbox.md)."
    )


class PypiError(RequestError):
    """The PyPI part has no solution, or only one with a source distribution."""

    code = "pypi-unsatisfiable"


class TimeLimitError(RequestError):
    code = "time-limit"
    hint = "Request fewer packages, or ask an administrator for a longer limit."


class MemoryLimitError(RequestError):
    """A solve exceeded its memory limit."""

    code = "memory-limit"
    hint = "Give versions for more requirements, or request fewer packages or channels."


class TransitionError(StoreError):
    """Another process changed the row first: it is no longer in the expected state."""

    code = "state-changed"
    hint = "Check the current state, and try again if it still applies."


class LeaseLostError(StoreError):
    """This worker no longer holds the build: another has it, or it was cancelled."""

    code = "lease-lost"


class NotFoundError(StoreError):
    code = "not-found"


class AccessDeniedError(StoreError):
    code = "access-denied"
    hint = "Ask an administrator of the namespace for the role that allows it."


class NotSignedInError(AccessDeniedError):
    code = "not-signed-in"
    hint = "Sign in, or send an API token."


class ConflictError(StoreError):
    """The request conflicts with the current state (a taken name, a pinned build)."""

    code = "conflict"


class QuotaError(ConflictError):
    """A namespace has reached its quota."""

    code = "quota-exceeded"


class LimitError(StoreError):
    code = "too-large"


class UnavailableError(StoreError):
    """Failures of the surroundings, which are retried with backoff."""

    code = "unavailable"
    transient = True
    hint = "Nothing to do: it is retried automatically."


class ChannelUnavailableError(UnavailableError):
    code = "channel-unavailable"


class DownloadError(UnavailableError):
    """A package could not be fetched, or its bytes differ from those of the lock."""

    code = "download-failed"


class DiskSpaceError(UnavailableError):
    code = "disk-full"
    hint = "Ask an administrator to free disk space; the build is retried."


class DamagedError(UnavailableError):
    """A stored blob is missing or damaged."""

    code = "damaged"
    hint = "The fault was reported and the blob is created again: try again later."


class WorkerLostError(UnavailableError):
    code = "worker-lost"


class UnexpectedError(UnavailableError):
    """A bug: the log has the traceback, the user gets the id of the build."""

    code = "internal-error"
    hint = "Report the build's id to the administrators of this installation."


def is_temporary(error: StoreError) -> bool:
    """Return True if the request may succeed later as it is: 503 rather than 4xx or 500."""
    return isinstance(error, UnavailableError) and not isinstance(error, UnexpectedError)


def error_to_json(error: StoreError) -> dict[str, Any]:
    """Return `error` as JSON values, from which `error_from_json` makes an equal one."""
    content: dict[str, Any] = {
        "type": type(error).__name__,
        "message": error.message,
        "where": error.where,
        "hint": error.hint,
        "details": dict(error.details),
    }
    if isinstance(error, SpecificationError):
        content["faults"] = [error_to_json(fault) for fault in error.faults]
    return content


def error_from_json(content: Mapping[str, Any]) -> StoreError:
    """Parse the result of `error_to_json`, which may come from an untrusted process.

    Raises:
        ValueError: it is not an error.
    """
    kind = globals().get(str(content.get("type")))
    if not (isinstance(kind, type) and issubclass(kind, StoreError)):
        raise ValueError("It is not an error of condastore.")
    message, where, hint = (str(content.get(key) or "") for key in ("message", "where", "hint"))
    faults, details = content.get("faults"), content.get("details")
    if not isinstance(details, dict):
        raise ValueError("Its details are not an object.")
    if issubclass(kind, SpecificationError):
        if not isinstance(faults, list):
            raise ValueError("It has no list of faults.")
        return kind([error_from_json(fault) for fault in faults], hint=hint)
    return kind(message, where=where, hint=hint, details=details)
