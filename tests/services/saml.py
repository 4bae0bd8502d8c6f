"""A SAML 2.0 identity provider: pysaml2, code that is independent of what we verify with."""

from __future__ import annotations

import re
import shutil
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from html import unescape
from importlib.util import find_spec
from pathlib import Path

import httpx

from .ldap import self_signed
from .processes import LOOPBACK, ComponentMissing, Service, free_ports, new_folder, running

ENTITY_ID = "urn:test:idp"
PROGRAM = Path(__file__).with_name("saml_provider.py")


@dataclass(frozen=True, slots=True, kw_only=True)
class SamlService:
    service: Service
    url: str
    ours: Path

    @property
    def metadata_url(self) -> str:
        return f"{self.url}/metadata"

    def know(self, metadata: bytes) -> None:
        """Our own metadata, before the first sign-in."""
        self.ours.write_bytes(metadata)

    def sign_in(self, address: str, name: str, **how: str) -> tuple[str, dict[str, str]]:
        """As a browser: the address that the answer is posted to, and the form.

        `how`: `sha1` signs as nobody should; `other` puts another person into the signed answer.
        """
        with httpx.Client(timeout=30) as browser:
            page = browser.get(address).raise_for_status().text
            requested = _fields(page) | {"login": name} | how
            page = browser.post(f"{self.url}/login", data=requested).raise_for_status().text
        action = re.search(r'action="([^"]+)"', page)
        assert action, page
        return unescape(action[1]), _fields(page)


def _fields(page: str) -> dict[str, str]:
    found = {}
    for tag in re.findall(r"<input[^>]*>", page):
        name, value = re.search(r'name="([^"]+)"', tag), re.search(r'value="([^"]*)"', tag)
        if name and value:
            found[name[1]] = unescape(value[1])
    return found


@contextmanager
def saml_provider() -> Iterator[SamlService]:
    """People: erin (physics, science) and frank (science)."""
    if shutil.which("xmlsec1") is None:
        raise ComponentMissing("xmlsec1", "apt-get install xmlsec1")
    if find_spec("saml2") is None or find_spec("onelogin") is None:
        raise ComponentMissing("SAML", "pip install pysaml2 'django-allauth[saml]'")
    folder = new_folder("saml")
    self_signed(folder)
    (port,) = free_ports()
    url, ours = f"http://{LOOPBACK}:{port}", folder / "ours.xml"

    def ready() -> bool:
        with urllib.request.urlopen(f"{url}/metadata", timeout=2) as answer:
            return bool(answer.status == 200)

    service = Service(
        name="saml",
        url=url,
        command=[sys.executable, str(PROGRAM), str(port), str(ours), str(folder)],
        ready=ready,
        folder=folder,
    )
    with running(service):
        yield SamlService(service=service, url=url, ours=ours)
