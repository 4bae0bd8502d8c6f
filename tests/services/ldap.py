"""OpenLDAP with a few people and groups: plain, StartTLS and ldaps, by a certificate of its own."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from .processes import (
    LOOPBACK,
    ComponentMissing,
    Service,
    accepts,
    find_program,
    free_ports,
    new_folder,
    running,
)

BASE = "dc=example,dc=org"
ADMIN, ADMIN_PASSWORD = f"cn=admin,{BASE}", "admin-password"
_INSTALL = "apt-get install slapd ldap-utils"
_CONFIGURATION = """
include /etc/ldap/schema/core.schema
include /etc/ldap/schema/cosine.schema
include /etc/ldap/schema/inetorgperson.schema
include /etc/ldap/schema/nis.schema
pidfile {folder}/slapd.pid
modulepath /usr/lib/ldap
moduleload back_mdb
TLSCACertificateFile {folder}/cert.pem
TLSCertificateFile {folder}/cert.pem
TLSCertificateKeyFile {folder}/key.pem
access to attrs=userPassword by self write by anonymous auth by * none
access to * by users read by anonymous auth
database mdb
maxsize 104857600
suffix "{base}"
rootdn "{admin}"
rootpw {password}
directory {folder}/db
"""
_PEOPLE = ("alice", "bob", "erin")


@dataclass(frozen=True, slots=True, kw_only=True)
class LdapService:
    """A directory; the password of `erin` is `erin-password`."""

    service: Service
    url: str
    secure_url: str
    certificate: Path

    def add(self, text: str) -> None:
        self._change("ldapadd", text)

    def modify(self, text: str) -> None:
        self._change("ldapmodify", text)

    def delete(self, dn: str) -> None:
        self._change("ldapdelete", "", dn)

    def _change(self, program: str, text: str, *more: str) -> None:
        command = [program, "-x", "-H", self.url, "-D", ADMIN, "-w", ADMIN_PASSWORD, *more]
        subprocess.run(command, input=text, text=True, check=True, capture_output=True)


@contextmanager
def openldap() -> Iterator[LdapService]:
    """People: alice, bob, erin. Groups: physics (erin) in science, staff by posixGroup (bob)."""
    if find_spec("ldap") is None:
        headers = "apt-get install gcc python3-dev libldap-dev libsasl2-dev"
        raise ComponentMissing("python-ldap", f"{headers}; pip install -e .[ldap]")
    program = find_program(
        "slapd", component="OpenLDAP", install=_INSTALL, folders=["/usr/sbin", "/usr/local/libexec"]
    )
    if shutil.which("ldapadd") is None or not Path("/etc/ldap/schema/nis.schema").exists():
        raise ComponentMissing("OpenLDAP", _INSTALL)
    folder = new_folder("ldap")
    (folder / "db").mkdir()
    certificate = self_signed(folder)
    port, secure_port = free_ports(2)
    url, secure_url = f"ldap://{LOOPBACK}:{port}", f"ldaps://{LOOPBACK}:{secure_port}"
    (folder / "slapd.conf").write_text(
        _CONFIGURATION.format(folder=folder, base=BASE, admin=ADMIN, password=ADMIN_PASSWORD)
    )
    service = Service(
        name="slapd",
        url=url,
        command=[
            *(str(program), "-d", "0", "-f", str(folder / "slapd.conf")),
            *("-h", f"{url}/ {secure_url}/"),
        ],
        ready=accepts(port),
        folder=folder,
    )
    with running(service):
        created = LdapService(
            service=service, url=url, secure_url=secure_url, certificate=certificate
        )
        created.add(_entries())
        yield created


def self_signed(folder: Path) -> Path:
    """`cert.pem` and `key.pem` for the loopback interface; the certificate."""
    if shutil.which("openssl") is None:
        raise ComponentMissing("OpenSSL", "apt-get install openssl")
    certificate = folder / "cert.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]
    command += ["-keyout", str(folder / "key.pem"), "-out", str(certificate)]
    command += ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    subprocess.run(command, check=True, capture_output=True)
    return certificate


def person_entry(name: str, number: int = 1) -> str:
    return f"""dn: uid={name},ou=people,{BASE}
objectClass: inetOrgPerson
objectClass: posixAccount
uid: {name}
cn: {name.title()}
sn: Example
givenName: {name.title()}
mail: {name}@example.org
uidNumber: {1000 + number}
gidNumber: {1000 + number}
homeDirectory: /home/{name}
userPassword: {name}-password

"""


def _entries() -> str:
    text = f"dn: {BASE}\nobjectClass: dcObject\nobjectClass: organization\ndc: example\no: E\n\n"
    for unit in ("people", "groups", "posix"):
        text += f"dn: ou={unit},{BASE}\nobjectClass: organizationalUnit\nou: {unit}\n\n"
    text += "".join(person_entry(name, number) for number, name in enumerate(_PEOPLE))
    for name, member in (
        ("physics", f"uid=erin,ou=people,{BASE}"),
        ("science", f"cn=physics,ou=groups,{BASE}"),
    ):
        text += f"dn: cn={name},ou=groups,{BASE}\nobjectClass: groupOfNames\ncn: {name}\n"
        text += f"member: {member}\n\n"
    text += f"dn: cn=staff,ou=posix,{BASE}\nobjectClass: posixGroup\ncn: staff\n"
    return text + "gidNumber: 2000\nmemberUid: bob\n\n"
