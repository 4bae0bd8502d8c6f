"""The namespace setting that adds pip beside Python: solves, reuse of solves, audit."""

from __future__ import annotations

import pytest

from environments.jobs import builds
from environments.models import AuditEvent, Build, Environment
from environments.operations.namespaces import set_add_pip

pytestmark = pytest.mark.django_db(transaction=True)
HELLO = "dependencies: [python, hello-noarch]"


def run(build: Build) -> Build:
    builds.run(build.pk)
    return Build.objects.get(pk=build.pk)


def names(build: Build) -> set[str]:
    assert build.lock is not None, build.failure
    return {package.name for part in build.lock.value() for package in part.conda}


def switch(environment: Environment, actor, *, on: bool) -> None:
    set_add_pip(actor=actor, namespace=environment.namespace, on=on)


def test_a_change_of_the_setting_makes_a_new_solve(submit, environment, dora):
    with_pip = run(submit(HELLO))
    assert names(with_pip) == {"python", "hello-noarch", "pip"}
    switch(environment, dora, on=False)
    without = run(submit(HELLO))
    assert names(without) == {"python", "hello-noarch"}
    switch(environment, dora, on=True)
    again = run(submit(HELLO))
    assert again.lock == with_pip.lock
    assert any("channels unchanged" in line for line in again.log_from())


def test_a_pip_part_brings_pip_with_the_setting_off(submit, environment, dora):
    switch(environment, dora, on=False)
    assert "pip" in names(run(submit("dependencies: [python, pip: ['tinyname ~=1.0']]")))


def test_the_change_is_recorded(environment, dora):
    switch(environment, dora, on=False)
    event = AuditEvent.objects.get(action="namespace.add-pip")
    assert event.changes == {"before": True, "after": False}
    environment.namespace.refresh_from_db()
    assert not environment.namespace.add_pip_as_python_dependency
