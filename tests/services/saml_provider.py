"""A SAML 2.0 identity provider, as a program: port, our metadata's file, folder for its key."""

from __future__ import annotations

import html
import sys
import urllib.parse
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, make_server

from saml2 import BINDING_HTTP_POST, BINDING_HTTP_REDIRECT
from saml2.config import IdPConfig
from saml2.metadata import entity_descriptor
from saml2.saml import NAME_FORMAT_BASIC, NAMEID_FORMAT_PERSISTENT, NameID
from saml2.server import Server

PEOPLE = {"erin": ["physics", "science"], "frank": ["science"]}
PASSWORD_LOGIN = "urn:oasis:names:tc:SAML:2.0:ac:classes:PasswordProtectedTransport"
SHA256 = {
    "sign_alg": "http://www.w3.org/2001/04/xmldsig-more#rsa-sha256",
    "digest_alg": "http://www.w3.org/2001/04/xmlenc#sha256",
}
SHA1 = {
    "sign_alg": "http://www.w3.org/2000/09/xmldsig#rsa-sha1",
    "digest_alg": "http://www.w3.org/2000/09/xmldsig#sha1",
}


class Provider:
    def __init__(self, port: int, ours: Path, folder: Path) -> None:
        self.base, self.ours, self.folder = f"http://127.0.0.1:{port}", ours, folder
        self.metadata = str(entity_descriptor(self.configuration())).encode()
        self._server: Any = None

    def configuration(self, *metadata: str) -> Any:
        endpoints = {"single_sign_on_service": [(f"{self.base}/sso", BINDING_HTTP_REDIRECT)]}
        policy = {"default": {"attribute_restrictions": None, "name_form": NAME_FORMAT_BASIC}}
        return IdPConfig().load(
            {
                "entityid": "urn:test:idp",
                "key_file": str(self.folder / "key.pem"),
                "cert_file": str(self.folder / "cert.pem"),
                "xmlsec_binary": "/usr/bin/xmlsec1",
                "metadata": {"local": list(metadata)} if metadata else {},
                "service": {
                    "idp": {
                        "endpoints": endpoints,
                        "policy": policy,
                        "name_id_format": [NAMEID_FORMAT_PERSISTENT],
                    }
                },
            }
        )

    @property
    def server(self) -> Any:
        if self._server is None:  # ours is known by the first sign-in only
            self._server = Server(config=self.configuration(str(self.ours)))
        return self._server

    def answer(self, form: Mapping[str, str]) -> str:
        """A page whose form carries the signed answer to us."""
        name, server = form["login"], self.server
        requested = server.parse_authn_request(form["SAMLRequest"], BINDING_HTTP_REDIRECT).message
        where = server.response_args(requested, [BINDING_HTTP_POST])
        attributes = {
            "email": [f"{name}@example.org"],
            "firstName": [name.title()],
            "lastName": ["Example"],
            "uid": [name],
            "groups": PEOPLE[name],
        }
        response = server.create_authn_response(
            attributes,
            userid=name,
            name_id=NameID(format=NAMEID_FORMAT_PERSISTENT, text=f"id-of-{name}"),
            sign_assertion=True,
            sign_response=True,
            authn={"class_ref": PASSWORD_LOGIN, "authn_auth": self.base},
            **(SHA1 if form.get("sha1") else SHA256),
            **{key: where[key] for key in ("in_response_to", "sp_entity_id", "destination")},
        )
        text, state = str(response), form.get("RelayState", "")
        if form.get("other"):  # somebody changes the answer on its way
            text = text.replace(f"id-of-{name}", f"id-of-{form['other']}")
        page = server.apply_binding(
            BINDING_HTTP_POST, text, where["destination"], state, response=True
        )
        return str(page["data"])

    def __call__(self, environ: Mapping[str, Any], start: Callable[..., object]) -> Iterable[bytes]:
        path = environ["PATH_INFO"]
        if path == "/metadata":
            start("200 OK", [("Content-Type", "application/samlmetadata+xml")])
            return [self.metadata]
        if path == "/sso":
            hidden = "".join(
                f'<input type=hidden name="{key}" value="{html.escape(value)}">'
                for key, value in urllib.parse.parse_qsl(environ["QUERY_STRING"])
            )
            start("200 OK", [("Content-Type", "text/html")])
            return [f"<form action=/login method=post>{hidden}<input name=login></form>".encode()]
        if path == "/login":
            body = environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"])).decode()
            start("200 OK", [("Content-Type", "text/html")])
            return [self.answer(dict(urllib.parse.parse_qsl(body))).encode()]
        start("404 Not Found", [])
        return [b""]


class Quiet(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        pass


if __name__ == "__main__":
    provider = Provider(int(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]))
    make_server("127.0.0.1", int(sys.argv[1]), provider, handler_class=Quiet).serve_forever()
