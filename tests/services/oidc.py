"""A certified OpenID Connect provider: npm's oidc-provider, with people that a test may change."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from html import unescape
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

import httpx

from .processes import LOOPBACK, ComponentMissing, Service, free_ports, new_folder, running

FILES = Path(__file__).with_name("openid_provider")
PEOPLE = {
    name: {
        "email": f"{name}@example.org",
        "email_verified": True,
        "name": name.title(),
        "given_name": name.title(),
        "family_name": "Example",
        "preferred_username": name,
        "groups": groups,
    }
    for name, groups in {"erin": ["physics", "science"], "frank": []}.items()
}


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenIdService:
    """The provider; its clients are `one` and `two`."""

    service: Service
    url: str
    people: Path

    def entry(self, key: str, client: str, **more: Any) -> dict[str, Any]:
        """Of CONDASTORE_OIDC_PROVIDERS."""
        scope = ["openid", "profile", "email", "groups"]
        secret = f"secret-of-{client}-secret-of-{client}"
        base = {"id": key, "server_url": self.url, "client_id": client, "client_secret": secret}
        return {**base, "scope": scope, **more}

    def set_people(self, people: dict[str, dict[str, Any]]) -> None:
        self.people.write_text(json.dumps(people))

    def sign_in(self, address: str, name: str) -> str:
        """As a browser: from our redirect to the provider, to the address it leads back to."""
        with httpx.Client(timeout=30) as browser:
            answer = browser.get(address)
            for _ in range(12):
                if answer.is_redirect:
                    target = urljoin(str(answer.request.url), answer.headers["Location"])
                    if not target.startswith(self.url):
                        return target
                    answer = browser.get(target)
                    continue
                form = re.search(r'<form[^>]*action="([^"]+)"', answer.text)
                assert form, answer.text
                prompt = re.search(r'name="prompt" value="(\w+)"', answer.text)
                assert prompt, answer.text
                fields = {"prompt": prompt[1]}
                if prompt[1] == "login":
                    fields |= {"login": name, "password": "any"}
                target = urljoin(str(answer.request.url), unescape(form[1]))
                answer = browser.post(target, data=fields)
        raise AssertionError(f"no end: {answer.url}")


@contextmanager
def openid_provider(*, redirects: Sequence[str]) -> Iterator[OpenIdService]:
    """People: erin (physics, science) and frank (no group); each password is right."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        raise ComponentMissing("Node.js", "apt-get install nodejs npm")
    folder = new_folder("openid")
    try:
        for path in FILES.iterdir():
            if path.is_file():
                shutil.copy(path, folder)
        install = [npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--prefer-offline"]
        subprocess.run(install, cwd=folder, check=True, capture_output=True)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    people = folder / "people.json"
    people.write_text(json.dumps(PEOPLE))
    (port,) = free_ports()
    url = f"http://{LOOPBACK}:{port}"

    def ready() -> bool:
        address = f"{url}/.well-known/openid-configuration"
        with urllib.request.urlopen(address, timeout=2) as answer:
            return bool(answer.status == 200)

    service = Service(
        name="oidc-provider",
        url=url,
        command=[node, "provider.mjs"],
        ready=ready,
        folder=folder,
        environment=os.environ
        | {"OP_PORT": str(port), "OP_PEOPLE": str(people), "OP_REDIRECTS": ",".join(redirects)},
    )
    with running(service):
        yield OpenIdService(service=service, url=url, people=people)
