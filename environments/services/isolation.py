"""Isolation of package code, and of processes that parse untrusted data, on this machine."""

from __future__ import annotations

from django.conf import settings

from environments.engine.system.confinement import can_confine
from environments.engine.system.sandbox import sandbox_problem

INSTALL = "Make bubblewrap work where the workers run (docs/how-to/sandbox.md)."


def sandboxed() -> bool:
    """Return whether package code runs in a sandbox; without one it does not run at all."""
    return bool(settings.SANDBOX == "required")


def problems() -> dict[str, str]:
    """Return sentences about missing isolation on this machine, by "sandbox" and "confinement"."""
    found: dict[str, str] = {}
    if not sandboxed():
        found["sandbox"] = (
            "CONDASTORE_SANDBOX is off: package code runs with all permissions of the workers."
        )
    elif problem := sandbox_problem():
        found["sandbox"] = (
            "Package code does not run: Python files are not compiled, and builds with smoke tests "
            f"fail. {problem}"
        )
    if not can_confine():
        found["confinement"] = (
            "Processes that read channels and packages can read all files of the service: this "
            "kernel does not have Landlock ABI 2 (Linux 5.19), or Landlock is disabled."
        )
    return found
