"""Names of images on demand, such as `python.3.12/numpy.2/pandas`."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass

from condastore.errors import InvalidInputError

MAX_PACKAGES = 30  # packages
LONGEST = 100  # characters of one: in a long text the pattern below takes quadratic time
#: A name, and a version after the first dot that a digit follows: `ruamel.yaml.0.18`.
_PART = re.compile(
    r"(?P<name>[a-z0-9_](?:[a-z0-9_.-]*?[a-z0-9_])?)(?:\.(?P<version>\d[a-z0-9._]*))?"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class OnDemand:
    """Packages sorted by name, each with a version prefix or none."""

    packages: tuple[tuple[str, str], ...]

    @classmethod
    def parse(cls, path: str) -> OnDemand:
        """Parse a name.

        Raises:
            InvalidInputError: with every fault at once.
        """
        faults: list[str] = []
        found: dict[str, str] = {}
        parts = path.split("/")
        for part in parts[: MAX_PACKAGES + 1]:
            match = _PART.fullmatch(part) if len(part) <= LONGEST else None
            if match is None:
                faults.append(f"{part!r:.60} is not a package")
            elif match["name"] in found:
                faults.append(f"{match['name']} is listed twice")
            else:
                found[match["name"]] = match["version"] or ""
        if len(parts) > MAX_PACKAGES:
            faults.append(f"{len(parts)} packages are more than {MAX_PACKAGES}")
        if faults:
            raise InvalidInputError(
                "; ".join(faults) + ".", hint="Write dynamic/python.3.12/numpy.2/pandas."
            )
        return cls(packages=tuple(sorted(found.items())))

    @property
    def specification(self) -> str:
        """Return the text of an environment.yml."""
        requested = [f"{name} ={version}" if version else name for name, version in self.packages]
        return json.dumps({"dependencies": requested})  # JSON is YAML

    @property
    def name(self) -> str:
        """Return the name of the environment, which does not depend on the order of packages."""
        text = json.dumps(self.packages)
        return f"on-demand-{hashlib.sha256(text.encode()).hexdigest()[:24]}"
