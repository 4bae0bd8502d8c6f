"""Mutation tests of central modules: `python -m tests.mutation [--mutants N] [MODULE...]`

Each mutant is one small change to one function. Its tests run in a forked process until the first
failure; a mutant that fails none survives and is printed. Tests are collected once.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable

import pytest

from tests.mutation.mutants import Mutant, mutants_of

#: Module -> the tests that must notice a change of it, the quickest first.
MODULES = {
    "environments.domain.policy.judging": (
        "tests/environments/domain/test_policy.py",
        "tests/environments/operations/test_policies.py",
        "tests/environments/operations/test_approvals.py",
    ),
    "environments.domain.policy.rules.packages": (
        "tests/environments/domain/test_policy.py",
        "tests/environments/operations/test_policies.py",
    ),
    "environments.domain.linking": (
        "tests/environments/domain/test_linking.py",
        "tests/environments/engine/prefix/test_linking.py",
    ),
    "environments.models.builds": (
        "tests/environments/operations/test_builds.py",
        "tests/environments/models/test_clock_bounds.py",
    ),
    "environments.models.leased_work": ("tests/environments/models/test_leased_work.py",),
    "accounts.access": (
        "tests/environments/models/test_rights.py",
        "tests/accounts/test_role_backend.py",
        "tests/accounts/test_service_accounts.py",
        "tests/accounts/test_no_escalation.py",
    ),
}
TIME_LIMIT = 300  # seconds for the tests of one mutant


class Mutation:
    """Pytest plugin: runs the collected tests once per mutant."""

    def __init__(self, mutants: list[Mutant]) -> None:
        self.mutants = mutants
        self.survivors: list[Mutant] = []

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        if _in_a_child(lambda: _fails(session)):
            raise pytest.UsageError("The tests fail without any change.")
        for mutant in self.mutants:
            if not _in_a_child(lambda mutant=mutant: _fails(session, mutant)):  # type: ignore[misc]
                self.survivors.append(mutant)
        return True


def _fails(session: pytest.Session, mutant: Mutant | None = None) -> bool:
    """Whether a test fails, with the change of the mutant."""
    if mutant is not None:
        mutant.apply()
    items = session.items
    for item, following in zip(items, [*items[1:], None], strict=True):
        item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
        if session.testsfailed:
            return True
    return False


def _in_a_child(work: Callable[[], bool]) -> bool:
    """What `work` returns in a forked process; true as well if it crashes or takes too long."""
    child = os.fork()
    if not child:
        os.setpgid(0, 0)
        failed = True
        try:
            failed = work()
        finally:
            os._exit(failed)
    end = time.monotonic() + TIME_LIMIT
    while time.monotonic() < end:
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            return status != 0
        time.sleep(0.02)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return True


def main() -> int:
    parser = argparse.ArgumentParser(prog="tests.mutation", description=__doc__)
    parser.add_argument("modules", nargs="*", default=list(MODULES))
    parser.add_argument("--mutants", type=int, default=30, help="per module, at most")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    if len(options.modules) > 1:  # pytest and Django start once per process
        rest = ["--mutants", str(options.mutants), "--seed", str(options.seed)]
        command = [sys.executable, "-m", "tests.mutation", *rest]
        return max(
            subprocess.run([*command, module], check=False).returncode for module in options.modules
        )
    [module] = options.modules
    import django

    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.settings")
    django.setup()
    plugin = Mutation(mutants_of(module, number=options.mutants, seed=options.seed))
    quick = ["-q", "-p", "no:cacheprovider", "--no-header", "--lane", "fast"]
    return _run(plugin, [*quick, *MODULES[module]])


def _run(plugin: Mutation, arguments: list[str]) -> int:
    started = time.monotonic()
    # What the tests of mutants print is of no use; what remains is printed below.
    ours, silent = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    os.dup2(silent, 1)
    status = pytest.main(arguments, plugins=[plugin])
    os.dup2(ours, 1)
    if status not in {pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED}:
        return int(status)
    number = len(plugin.mutants)
    killed = number - len(plugin.survivors)
    print(f"\n{plugin.mutants[0].module}: {killed} of {number} mutants noticed", end="")
    print(f", {time.monotonic() - started:.0f} s")
    for mutant in plugin.survivors:
        print(f"  survived: {mutant}")
    sys.stdout.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
