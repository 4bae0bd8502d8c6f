"""What isolates code of packages, and processes that parse untrusted bytes, on this machine."""

from __future__ import annotations

import functools

from django.conf import settings

from environments.engine.system.confinement import can_confine
from environments.engine.system.processes import sandbox_problem

INSTALL = "Make bubblewrap work where the workers run (docs/how-to/sandbox.md)."


def sandboxed() -> bool:
    """Return whether code of packages runs in a sandbox or not at all."""
    return bool(settings.SANDBOX == "required")


@functools.cache
def problems() -> dict[str, str]:
    """Return what this machine cannot isolate, as sentences: of "sandbox", of "confinement"."""
    found: dict[str, str] = {}
    if not sandboxed():
        found["sandbox"] = (
            "CONDASTORE_SANDBOX is off: code of packages runs with all rights of the workers."
        )
    elif problem := sandbox_problem():
        found["sandbox"] = (
            "No code of packages runs: Python files are not compiled, and builds with smoke tests "
            f"fail. {problem}"
        )
    if not can_confine():
        found["confinement"] = (
            "Processes that read channels and packages can read all files of the service: this "
            "kernel has no Landlock of ABI 2 (Linux 5.19), or it is disabled."
        )
    return found
