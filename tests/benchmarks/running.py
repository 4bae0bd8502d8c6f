"""A running condastore with the settings it ships with, and builds timed from outside its doors."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.benchmarks.measure import Clock
from tests.system import FINISHED, System

#: The stack of the budgets: python with what a data scientist begins with.
STACK = ("python=3.11", "numpy", "pandas", "scikit-learn", "ipykernel")
#: `tests.system` hurries what these say; here they are as they ship.
AS_SHIPPED = {
    "CONDASTORE_LEASE": "30",
    "CONDASTORE_SWEEP_INTERVAL": "5",
    "CONDASTORE_BACKOFF": "5",
    "CONDASTORE_CHANNEL_STATE_TTL": "5",
    "CONDASTORE_DEFAULT_PLATFORMS": "linux-64",
}
NAMESPACE = "research"
#: A state is looked at after this part of the time so far, and so many seconds at least: a look
#: takes the system 5 ms.
_LOOK_SHARE, _SHORTEST_LOOK = 0.04, 0.01

STATE = "query($id: ID!) { build(id: $id) { state } }"
CREATE = """
mutation($name: String!) {
  createNamespace(name: $name) { __typename ... on OperationError { code message } }
}
"""


class Running(System):
    """Starts with a namespace for its builds."""

    def __init__(self, folder: Path, *, channel: str, workers: int = 1) -> None:
        super().__init__(folder / "data", channel=channel, workers=workers, environ=AS_SHIPPED)
        (folder / "data").mkdir()

    def start(self) -> Running:
        super().start()
        self.graphql(CREATE, name=NAMESPACE)
        return self

    def timed_build(self, name: str, text: str, *, force: bool = False) -> float:
        """Seconds from the request to the answer that the build is READY."""
        clock = Clock()
        self.finish(self.submit(f"{NAMESPACE}/{name}", text, force=force))
        return clock.seconds

    def finish(self, build: str) -> None:
        """Wait until it is READY; anything else is an error."""
        clock = Clock()
        while (state := self.state(build)) != "READY":
            assert state not in FINISHED, self.show(build)
            time.sleep(max(_SHORTEST_LOOK, _LOOK_SHARE * clock.seconds))

    def state(self, build: str) -> str:
        return str(self.graphql(STATE, id=build)["build"]["state"])

    def current_prefix(self, name: str) -> Path:
        return (self.data / "envs" / NAMESPACE / name).resolve()


def environment_file(
    specs: Sequence[str], *, channel: str, variables: dict[str, Any] | None = None
) -> str:
    """The text of an `environment.yml`; `variables` make requests differ that are else equal."""
    lines = ["channels:", f"  - {channel}", "dependencies:", *(f"  - {spec}" for spec in specs)]
    if variables:
        lines += ["variables:", *(f"  {name}: '{value}'" for name, value in variables.items())]
    return "\n".join(lines) + "\n"
