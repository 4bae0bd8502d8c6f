"""A tour of governance with a real directory, real packages and a real browser.

    python -m docs.governance_tour

A scientist of an LDAP directory requests an environment. One of its dependencies needs an approval
of the organization: the build is held, and says which package it waits for and why. An approver
signs in to the console in a browser and approves it for a limited time; the build continues. When
the waiver has ended, the next build is held again. Then a package is recalled, and builds that
contain it are no longer served.

Needs OpenLDAP and Chromium (apt-get install slapd ldap-utils chromium) and the development
requirements (make test installs them). Everything else is created in a temporary folder.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
from playwright.sync_api import Page, sync_playwright

from tests.channels.building import build_small
from tests.channels.server import serving
from tests.services.browser import chromium
from tests.services.ldap import (
    ADMIN,
    ADMIN_PASSWORD,
    BASE,
    LdapService,
    openldap,
    person_entry,
)
from tests.system import PASSWORD, System

#: It depends on libalpha, which the specification does not name.
SPECIFICATION = "name: ml\ndependencies:\n  - apptool 2.*\n"
GROUPS = {"scientists": "dana", "packagers": "kim"}
#: Duration of the approval in this tour. In real life: months.
WAIVER = timedelta(seconds=45)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--screenshots", type=Path, help="folder for screenshots of the console")
    screenshots = parser.parse_args(arguments).screenshots
    with tempfile.TemporaryDirectory(prefix="condastore-tour-") as name, openldap() as directory:
        folder = Path(name)
        fill(directory)
        channel = folder / "channel"
        build_small(channel)
        with serving(channel) as server:
            system = System(folder / "data", channel=server.url, environ=settings_of(directory))
            with system:
                tour(system, directory, folder, screenshots)
    return 0


def fill(directory: LdapService) -> None:
    """Add two people to the directory, each in one group."""
    for number, (group, person) in enumerate(GROUPS.items(), start=50):
        directory.add(person_entry(person, number))
        directory.add(
            f"dn: cn={group},ou=groups,{BASE}\nobjectClass: groupOfNames\ncn: {group}\n"
            f"member: uid={person},ou=people,{BASE}\n"
        )


def settings_of(directory: LdapService) -> dict[str, str]:
    """Return the settings with which people of the directory can sign in."""
    return {
        "CONDASTORE_LDAP_URL": directory.secure_url,
        "CONDASTORE_LDAP_CA_FILE": str(directory.certificate),
        "CONDASTORE_LDAP_BIND_DN": ADMIN,
        "CONDASTORE_LDAP_BIND_PASSWORD": ADMIN_PASSWORD,
        "CONDASTORE_LDAP_USER_BASE": f"ou=people,{BASE}",
        "CONDASTORE_LDAP_GROUP_BASE": f"ou=groups,{BASE}",
    }


def tour(system: System, directory: LdapService, folder: Path, screenshots: Path | None) -> None:
    administrator = Person(system, "admin", PASSWORD, folder)

    step(1, "An administrator creates a namespace and maps groups of the directory to roles.")
    administrator.condastore("namespace", "create", "research")
    for group, role in (("ldap:scientists", "DEVELOPER"), ("ldap:packagers", "APPROVER")):
        administrator.mutates(
            "mutation($group: String!, $role: Role!) { addRoleMapping("
            'group: $group, namespace: "research", role: $role) { __typename } }',
            {"group": group, "role": role},
            expect="RoleMapping",
        )
        print(f"  members of {group} are {role.lower()}s of research")

    step(2, "A rule is simulated first: libalpha 2.0 and newer needs an approval.")
    (folder / "base.yml").write_text("dependencies:\n  - libbeta 2.*\n")
    administrator.condastore("env", "build", "research/base", "-f", str(folder / "base.yml"))
    rule = ("--kind", "packages-denied", "--effect", "ask", "--set", "packages=libalpha >=2")
    concerned = administrator.condastore("policy", "simulate", *rule)
    print(indented(concerned))
    assert "research/base" in concerned
    assert "libalpha" in concerned

    step(3, "Then it is added and takes effect at once: a preview of a new build shows it.")
    administrator.condastore(
        "policy", "add", *rule, "--name", "new maintainers", "--set", "reason=who are they?"
    )
    preview = administrator.condastore(
        "env", "preview", "research/base", "-f", str(folder / "base.yml")
    )
    print(indented(preview))
    assert "new maintainers" in preview

    step(4, "Dana, a scientist, signs in with her directory password and builds.")
    dana = Person(system, "dana", "dana-password", folder)
    (folder / "environment.yml").write_text(SPECIFICATION)
    print(SPECIFICATION)
    first = dana.builds(folder / "environment.yml")
    held = dana.sees(first, until={"HELD"})
    [request] = held["approvals"]
    chain = " -> ".join(request["chain"])
    print(f"  {held['ref']} is {held['state']}: {request['name']} {request['version']}")
    print(f"  because {request['reason']}\n  needed through {chain}")
    assert request["name"] == "libalpha"
    assert [part.split()[0] for part in request["chain"]] == ["apptool", "libalpha"]

    step(5, "Kim, an approver, opens the console in a browser and approves it for a limited time.")
    with sync_playwright() as playwright, chromium(playwright) as browser:
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.set_default_timeout(30_000)
        until = datetime.now(tz=UTC) + WAIVER
        approve(page, system.url, until, screenshots)
    print(f"  approved until {until:%H:%M:%S} UTC, in the browser")

    step(6, "The build continues by itself.")
    ready = dana.sees(first, until={"READY"})
    print(f"  {ready['ref']} is {ready['state']}")
    assert system.folder("research/ml").exists()

    step(7, "The approval ends. The next build is held; the existing one stays.")
    time.sleep(max(0.0, (until - datetime.now(tz=UTC)).total_seconds() + 1))
    second = dana.builds(folder / "environment.yml")
    again = dana.sees(second, until={"HELD"})
    print(f"  {again['ref']} is {again['state']}")
    assert system.folder("research/ml").exists()

    step(8, "Each of these changes is in the audit log, which verifies.")
    print(indented(administrator.condastore("audit", "verify")))

    step(9, "libalpha 2 is recalled: builds that contain it are no longer served.")
    administrator.mutates(
        'mutation { recall(spec: "libalpha >=2", reason: "it leaks keys") { __typename } }',
        {},
        expect="Recall",
    )
    assert not system.folder("research/ml").exists()
    refused = dana.gets(f"/api/envs/research/ml/{ready['number']}/explicit.txt")
    print(f"  its lock: {refused.status_code} {refused.json()['detail']}")
    assert refused.status_code >= 400
    assert dana.gets("/api/envs/research/base/1/explicit.txt").status_code >= 400

    step(10, "Robin joins the scientists and may build in research after the next sign-in.")
    directory.add(person_entry("robin", 60))
    before = Person(system, "robin", "robin-password", folder)
    assert before.namespaces() == []
    directory.modify(membership("add", "robin"))
    joined = Person(system, "robin", "robin-password", folder)
    assert joined.namespaces() == ["research"]
    administrator.condastore("namespace", "create", "finance")
    assert joined.namespaces() == ["research"]  # and nothing else
    print("  before: nothing; then: research")

    step(11, "Robin leaves them and may do nothing any more, also with the old token.")
    directory.modify(membership("delete", "robin"))
    left = Person(system, "robin", "robin-password", folder)
    assert left.namespaces() == joined.namespaces() == []
    print("  afterwards: nothing")
    print("\nThe tour is complete.")


def membership(change: str, person: str) -> str:
    """Return LDIF that adds a person to the scientists, or removes them."""
    member = f"uid={person},ou=people,{BASE}"
    group = f"cn=scientists,ou=groups,{BASE}"
    return f"dn: {group}\nchangetype: modify\n{change}: member\nmember: {member}\n"


def indented(text: str) -> str:
    return textwrap.indent(text, "    ")


def step(number: int, text: str) -> None:
    print(f"\n{number}. {text}", flush=True)


class Person:
    """A person who signs in with a password and then uses the command line."""

    def __init__(self, system: System, name: str, password: str, folder: Path) -> None:
        self._system = system
        self._token = system.sign_in(name, password)
        home = folder / name
        home.mkdir(exist_ok=True)
        self._environ = {
            "PATH": os.environ["PATH"],
            "HOME": str(home),
            "CONDASTORE_URL": system.url,
            "CONDASTORE_TOKEN": self._token,
        }

    def condastore(self, *arguments: str) -> str:
        print(f"  $ condastore {' '.join(arguments)}", flush=True)
        command = [sys.executable, "-m", "condastore.cli.main", *arguments]
        done = subprocess.run(
            command, env=self._environ, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{arguments}: {done.stdout}{done.stderr}"
        return done.stdout.strip()

    def namespaces(self) -> list[str]:
        """Return the names of the visible namespaces."""
        found = self._system.graphql(NAMESPACES, token=self._token)["namespaces"]["edges"]
        return [edge["node"]["name"] for edge in found]

    def builds(self, file: Path) -> str:
        """Submit a build without waiting; return its id."""
        said = self.condastore(
            "env", "build", "research/ml", "-f", str(file), "--no-wait", "--json"
        )
        return str(json.loads(said)["build"]["id"])

    def sees(self, build: str, *, until: set[str]) -> Any:
        """Wait until the build is in one of these states; return it."""
        end = time.monotonic() + 120
        while time.monotonic() < end:
            found = self._system.graphql(SEEN, token=self._token, id=build)["build"]
            if found["state"] in until:
                return found
            assert found["state"] not in {"FAILED", "CANCELLED"}, found
            time.sleep(0.2)
        raise AssertionError(f"the build did not become {until}: {found}")

    def mutates(self, query: str, variables: dict[str, Any], *, expect: str) -> None:
        """Run a mutation whose result has the type `expect`."""
        data = self._system.graphql(query, token=self._token, **variables)
        [answer] = data.values()
        assert answer["__typename"] == expect, answer

    def gets(self, path: str) -> httpx.Response:
        headers = {"Authorization": f"Bearer {self._token}"}
        return httpx.get(f"{self._system.url}{path}", headers=headers)


NAMESPACES = "{ namespaces(first: 100) { edges { node { name } } } }"
SEEN = """
query($id: ID!) {
  build(id: $id) {
    ref number state failure { message }
    approvals { name version state reason chain }
  }
}
"""


def approve(page: Page, url: str, until: datetime, screenshots: Path | None) -> None:
    """Sign in, open the request, and approve it with a reason and an end."""

    def picture(name: str) -> None:
        if screenshots is not None:
            screenshots.mkdir(parents=True, exist_ok=True)
            page.screenshot(path=screenshots / f"{name}.png", full_page=True)

    page.goto(f"{url}/admin/")
    page.get_by_label("User name").fill("kim")
    page.get_by_label("Password").fill("kim-password")
    page.get_by_role("button", name="Sign in").click()
    page.goto(f"{url}/admin/environments/approvalrequest/")
    picture("requests")
    page.get_by_role("link", name="libalpha 2.1").first.click()
    picture("request")
    page.get_by_role("link", name="Approve").click()
    page.get_by_label("Reason").fill("The new maintainers are known to us.")
    page.get_by_label("Expires at").fill(f"{until:%Y-%m-%dT%H:%M:%S}")
    picture("approve")
    page.get_by_role("button", name="Approve").click()
    page.get_by_text("Approved: libalpha 2.1 in research.").wait_for()
    picture("approved")


if __name__ == "__main__":
    raise SystemExit(main())
