"""What is delivered for operators has the restrictions that docs/how-to/hardening.md speaks of."""

from __future__ import annotations

import re
import shutil
import subprocess
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import yaml
from django.core.management import call_command
from django.test import Client

from accounts.models import User
from tests.condastore.test_nginx import CONFIGURATION, MAIN
from tests.services.processes import ComponentMissing

ROOT = Path(__file__).parents[2]
HARDENING = (ROOT / "docs" / "how-to" / "hardening.md").read_text()
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "deploy" / "compose.yaml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
UNITS = sorted((ROOT / "deploy" / "systemd").glob("*.service"))
#: Units whose programs run bubblewrap.
WITH_SANDBOX = {"condastore.service", "condastore-worker@.service", "condastore-sync.service"}


def options(unit: Path) -> dict[str, list[str]]:
    """Option -> its values, in the order of the file."""
    found: dict[str, list[str]] = {}
    for line in unit.read_text().splitlines():
        if "=" in line and not line.startswith("#"):
            name, _, value = line.partition("=")
            found.setdefault(name, []).append(value)
    return found


# --- the compose file ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", SERVICES)
def test_every_container_is_without_root_and_without_privileges(name: str) -> None:
    service = SERVICES[name]
    assert service["user"].split(":")[0] not in ("", "0", "root")
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert "cap_add" not in service
    assert "privileged" not in service
    assert "no-new-privileges:true" in service["security_opt"]
    assert not any("docker.sock" in str(one) for one in service.get("volumes", ()))
    unconfined = {one for one in service["security_opt"] if one.endswith("=unconfined")}
    assert bool(unconfined) == (name == "worker")


def test_no_container_is_given_a_secret_as_a_variable() -> None:
    text = (ROOT / "deploy" / "compose.yaml").read_text()
    for service in SERVICES.values():
        for variable, value in service.get("environment", {}).items():
            if re.search(r"PASSWORD|KEY|SECRET|TOKEN|DATABASE_URL", variable):
                assert variable.endswith("_FILE"), variable
                secret = value.removeprefix("/run/secrets/")
                assert secret in service["secrets"]
                assert f"./secrets/{secret}" == COMPOSE["secrets"][secret]["file"]
                assert f"> {secret}" in text, "how it is made"
    assert "/deploy/secrets/" in (ROOT / ".gitignore").read_text()
    assert "deploy/secrets" in (ROOT / ".dockerignore").read_text()


def test_database_and_queue_are_on_a_network_that_leads_nowhere() -> None:
    networks = {name: set(service["networks"]) for name, service in SERVICES.items()}
    assert COMPOSE["networks"]["inside"] == {"internal": True}
    assert networks["database"] == networks["queue"] == {"inside"}
    assert networks["proxy"] == {"front"}
    assert "front" not in networks["worker"]
    published = {name: one["ports"] for name, one in SERVICES.items() if "ports" in one}
    assert list(published) == ["proxy"]
    assert all(port.startswith("127.0.0.1:") for port in published["proxy"])


def test_probes_need_no_host_of_the_allowed_ones(settings: Any) -> None:
    """As the documents and the defaults have it: by the address of the container or pod."""
    settings.ALLOWED_HOSTS = ["condastore.example.org"]
    (address,) = re.findall(r"http://([^/]+)/healthz", str(SERVICES["web"]["healthcheck"]))
    (container, _) = blocks("yaml")
    (web,) = yaml.safe_load(container)["containers"]
    for name, path in (("livenessProbe", "/healthz"), ("readinessProbe", "/readyz")):
        assert web[name] == {"httpGet": {"path": path, "port": 8470}}
    for host in (address, "10.1.2.3:8470"):
        assert Client().get("/healthz", headers={"Host": host}).status_code == 200


def test_readiness_shows_no_details_under_a_foreign_host_name(db: None, settings: Any) -> None:
    settings.ALLOWED_HOSTS = ["condastore.example.org"]
    ours = Client().get("/readyz", headers={"Host": "condastore.example.org"})
    assert ours.json()["checks"]
    foreign = Client().get("/readyz", headers={"Host": "evil.example"})
    assert foreign.status_code == ours.status_code
    assert set(foreign.json()) == {"ready"}


def test_preparing_creates_the_first_administrator_once(
    transactional_db: None, settings: Any
) -> None:
    assert SERVICES["prepare"]["command"] == "condastore manage prepare"
    settings.ADMIN_PASSWORD = "from-a-file"

    def prepare() -> str:
        said = StringIO()
        call_command("prepare", stdout=said)
        return said.getvalue()

    assert "Administrator 'admin' was created." in prepare()
    assert User.objects.get(username="admin").check_password("from-a-file")
    assert prepare() == "The database is up to date.\n"


# --- the units of systemd -----------------------------------------------------------------------


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_every_unit_is_restricted(unit: Path) -> None:
    found = options(unit)
    for name in ("NoNewPrivileges", "PrivateTmp", "PrivateDevices", "ProtectHome"):
        assert found[name] == ["true"], name
    assert found["ProtectSystem"] == ["strict"]
    assert found["CapabilityBoundingSet"] == [""]
    assert found["User"][0] not in ("", "root")
    assert "RestrictAddressFamilies" in found
    assert found["SystemCallArchitectures"] == ["native"]
    calls = " ".join(found["SystemCallFilter"]).split()
    assert {"@system-service", "landlock_restrict_self"} <= set(calls)
    # What bubblewrap needs, and nobody else.
    namespaces = set(" ".join(found["RestrictNamespaces"]).split())
    covering = {"ProtectKernelTunables", "ProtectKernelLogs", "ProtectProc", "ProcSubset"}
    if unit.name in WITH_SANDBOX:
        assert namespaces == {"user", "mnt", "pid", "net", "ipc", "uts", "cgroup"}
        assert "@mount" in calls
        assert "AF_NETLINK" in found["RestrictAddressFamilies"][0]
        assert not covering & set(found)
    else:
        assert namespaces == {"true"}
        assert "@mount" not in calls
        assert found["ProtectKernelTunables"] == ["true"]


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_systemd_reads_every_unit(unit: Path, tmp_path: Path) -> None:
    if not shutil.which("systemd-analyze"):
        return  # what follows needs no running systemd, but its programs
    copy = tmp_path / unit.name.replace("@", "@1")
    text = re.sub(r"^ExecStart=.*", "ExecStart=/bin/true", unit.read_text(), flags=re.M)
    copy.write_text(re.sub(r"^(User|Group)=.*", "", text, flags=re.M))  # not on this machine
    done = subprocess.run(
        ["systemd-analyze", "verify", copy], capture_output=True, text=True, timeout=60
    )
    said = [line for line in done.stderr.splitlines() if unit.stem.rstrip("@") in line]
    assert not said


# --- what the page shows ------------------------------------------------------------------------


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", HARDENING, flags=re.M | re.S)


def test_the_network_policies_of_the_page_are_valid() -> None:
    (container, policies) = blocks("yaml")
    pod = yaml.safe_load(container)
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["containers"][0]["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    worker, database = yaml.safe_load_all(policies)
    for policy in (worker, database):
        assert policy["kind"] == "NetworkPolicy"
        assert set(policy["spec"]["policyTypes"]) == {"Ingress", "Egress"}
    assert worker["spec"]["ingress"] == database["spec"]["egress"] == []
    (outside,) = (one for one in worker["spec"]["egress"] if "ipBlock" in one["to"][0])
    assert "169.254.0.0/16" in outside["to"][0]["ipBlock"]["except"]


def test_nginx_takes_the_tls_settings_of_the_page(tmp_path: Path) -> None:
    if not (shutil.which("nginx") and shutil.which("openssl")):
        raise ComponentMissing("nginx", "apt-get install nginx-light openssl")
    lines, redirect = blocks("nginx")
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    make = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=condastore.example.org"
    command = [*make.split(), "-keyout", str(key), "-out", str(certificate)]
    subprocess.run(command, check=True, capture_output=True)
    delivered = CONFIGURATION.read_text().replace("    listen 80;\n", lines) + redirect
    for known, here in (
        ("server web:8470;", "server 127.0.0.1:9;"),
        ("/etc/nginx/tls/condastore.pem", str(certificate)),
        ("/etc/nginx/tls/condastore.key", str(key)),
        ("/var/log/nginx/access.log", f"{tmp_path}/access.log"),
    ):
        assert known in delivered
        delivered = delivered.replace(known, here)
    configuration = tmp_path / "nginx.conf"
    configuration.write_text(MAIN.format(folder=tmp_path, delivered=delivered))
    done = subprocess.run(
        ["nginx", "-t", "-p", tmp_path, "-c", configuration, "-e", tmp_path / "early.log"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
