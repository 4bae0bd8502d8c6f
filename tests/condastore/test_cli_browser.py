"""`condastore login --browser` against a running system: a person approves, the command ends."""

from __future__ import annotations

import re
from pathlib import Path

import httpx
import pytest

from tests.condastore.command_line import Person
from tests.condastore.running_system import ADMIN, PASSWORD, System


def hidden(page: str) -> str:
    found = re.search(r'name="csrfmiddlewaretoken" value="(\w+)"', page)
    assert found, page
    return found[1]


@pytest.mark.parametrize("decision", ["approve", "deny"])
def test_a_command_line_is_signed_in_with_the_browser(
    running_server: System, tmp_path: Path, decision: str
) -> None:
    person = Person(home=tmp_path)
    waiting = person.start("login", running_server.url, "--browser")
    assert waiting.stderr is not None
    said = re.search(r"Open (\S+) and enter the code ([A-Z-]{9})", waiting.stderr.readline())
    assert said
    with httpx.Client(follow_redirects=True, timeout=30) as browser:
        page = browser.get(said[1], params={"code": said[2]})
        assert page.url.path == "/login/"
        form = {"username": ADMIN, "password": PASSWORD, "next": page.url.params["next"]}
        page = browser.post(page.url, data=form | {"csrfmiddlewaretoken": hidden(page.text)})
        assert page.url.path == "/device/"
        form = {"code": said[2], "decision": decision, "csrfmiddlewaretoken": hidden(page.text)}
        assert browser.post(page.url.copy_with(query=None), data=form).status_code == 200
    out, err = waiting.communicate(timeout=60)
    if decision == "approve":
        assert waiting.returncode == 0, err
        assert f"Signed in to {running_server.url} as {ADMIN}." in out
        assert person.does("whoami").succeeded().out
        person.does("logout").succeeded()
    else:
        assert waiting.returncode == 3
        assert "was denied" in err
