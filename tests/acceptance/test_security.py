"""Security's acceptance: an ordinary account with a channel of its own takes nothing over.

Eve has her personal namespace, a channel on a server of hers, a hosted channel and every public
interface. Alice works in `research`, which an administrator governs. Attack by attack, Eve reads no
file of the service, runs no code outside the sandbox, changes no byte of others, learns no name of
others, and brings no unapproved package into a governed namespace. Each attack has a control: the
same steps without the trick work.
"""

from __future__ import annotations

import bz2
import hashlib
import io
import json
import stat
import subprocess
import tarfile
import threading
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import zstandard
from django.core import signing

from tests.channels import building
from tests.channels.channel_index import PATCHES_FILE, index_channel
from tests.channels.server import LOOPBACK, ChannelServer, serving
from tests.environments.engine.packing import INDEX, Entry, conda, entry, info_entries, tar_bz2
from tests.security.local_user import folder_for_all, reached, written
from tests.services.processes import find_program
from tests.system import SUBMIT, System, until

PASSWORD = "a password of many words, and long"
PEOPLE = ("eve", "alice", "secretive-sam")
#: Eve's hosted channel.
TOOLS = "eve/tools"
#: Names of others that Eve must not learn.
HIDDEN = ("governed-ml", "secretive-sam", "research")
EVIL_LIBRARY = """
#include <fcntl.h>
#include <unistd.h>
__attribute__((constructor)) static void run(void) {
    int mark = open("%s", O_CREAT | O_WRONLY, 0600);
    if (mark >= 0) { if (write(mark, "ran", 3) < 0) {} close(mark); }
}
"""
ERROR = "... on OperationError { code message hint }"
COPY = """mutation($id: ID!, $to: String!, $name: String!) {
  copyEnvironment(environmentId: $id, namespace: $to, name: $name) { __typename %s } }"""
MOVE = """mutation($id: ID!, $to: String!) {
  moveEnvironment(environmentId: $id, namespace: $to) { __typename %s } }"""

CREATE_CHANNEL = """mutation($name: String!) {
  createHostedChannel(namespace: "eve", name: $name) { __typename %s } }"""
GRANT = """mutation($user: String!) {
  grantRole(namespace: "eve", role: VIEWER, user: $user) { __typename %s } }"""


@dataclass(frozen=True, kw_only=True)
class World:
    system: System
    trusted: ChannelServer
    evil: ChannelServer
    evil_folder: Path
    tokens: Mapping[str, str]

    def submit(self, person: str, reference: str, text: str) -> dict[str, Any]:
        """Submit as a person; the build's id, or the error."""
        namespace, _, environment = reference.partition("/")
        values = {"namespace": namespace, "environment": environment, "text": text, "force": True}
        answer: dict[str, Any] = self.ask(person, SUBMIT, **values)["submitBuild"]
        return answer

    def build(self, person: str, reference: str, text: str) -> dict[str, Any]:
        """The build in its final or held state; a refused submission counts as REFUSED."""
        answer = self.submit(person, reference, text)
        if answer["__typename"] != "SubmittedBuild":
            return {"state": "REFUSED", "failure": answer, "attempt": 0}
        final = {"READY", "FAILED", "CANCELLED", "HELD"}
        return self.system.wait(str(answer["build"]["id"]), final)

    def ready(self, person: str, reference: str, text: str) -> dict[str, Any]:
        done = self.build(person, reference, text)
        assert done["state"] == "READY", done["failure"] or done
        return done

    def ask(self, person: str, query: str, **variables: Any) -> Any:
        return self.system.graphql(query, self.tokens[person], **variables)

    def send(self, person: str, method: str, path: str, content: bytes = b"") -> Any:
        headers = {"Authorization": f"Bearer {self.tokens[person]}"}
        return self.system.http.request(method, path, content=content, headers=headers)

    def publish(self, name: str, content: bytes, folder: str = "noarch", **said: str) -> str:
        """Put a file into Eve's channel, which lists it; the line of an explicit list.

        `said`: what the channel's record says instead of the package.
        """
        path = self.evil_folder / folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
        patches = {folder: {"packages": {name: said}}} if said else {}
        (self.evil_folder / PATCHES_FILE).write_text(json.dumps(patches))
        index_channel(self.evil_folder)
        return f"{self.evil.url}{folder}/{name}#sha256:{hashlib.sha256(content).hexdigest()}"

    def trusted_package(self, name: str) -> str:
        """The newest file of a package of the trusted channel, as a line of an explicit list."""
        path = max(
            path
            for subdir in ("linux-64", "noarch")
            for path in self.trusted.folders[""].glob(f"{subdir}/{name}-[0-9]*.conda")
        )
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        return f"{self.trusted.url}{path.parent.name}/{path.name}#sha256:{digest}"

    def environment_id(self, reference: str) -> str:
        return str(self.system.environment(reference)["id"])


def explicit(*lines: str) -> str:
    return "\n".join(("# platform: linux-64", "@EXPLICIT", *lines, ""))


@pytest.fixture(scope="module")
def world(
    small_channel: Path, simple_index: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[World]:
    evil_folder = tmp_path_factory.mktemp("evil")
    (evil_folder / "noarch").mkdir()
    index_channel(evil_folder)
    folders = {"": small_channel, building.INDEX_FOLDER: simple_index.parent}
    with folder_for_all() as base, serving(folders) as trusted, serving(evil_folder) as evil:
        # Eve's server stands for one on the public internet.
        evil_server = evil.url.removeprefix("http://").rstrip("/")
        environ = {"CONDASTORE_ALLOWED_NETWORKS": evil_server, "CONDASTORE_SWEEP_INTERVAL": "2"}
        with System(base / "data", channel=trusted.url, environ=environ) as system:
            system.manage(
                "from accounts.models import User\n"
                f"for name in {PEOPLE!r}: User.objects.create_user(name, password={PASSWORD!r})"
            )
            tokens = {name: system.sign_in(name, PASSWORD) for name in PEOPLE}
            govern(system)
            world = World(
                system=system, trusted=trusted, evil=evil, evil_folder=evil_folder, tokens=tokens
            )
            # The first build creates her namespace.
            world.ready("eve", "eve/first", "dependencies: [libalpha]\n")
            created = world.ask("eve", CREATE_CHANNEL % ERROR, name=TOOLS)["createHostedChannel"]
            assert created["__typename"] == "HostedChannel", created
            yield world


def govern(system: System) -> None:
    """`research`: Alice develops, `libbeta` is refused, `large-data` waits for approval."""
    system.create("research/governed-ml")
    system.run("namespace", "grant", "research", "alice", "developer")
    for kind, effect, package in (
        ("packages-denied", "enforce", "libbeta"),
        ("packages-denied", "ask", "large-data"),
    ):
        answer = system.graphql(
            """mutation($kind: String!, $effect: String!, $name: String!, $settings: JSON!) {
              addPolicyRule(kind: $kind, effect: $effect, name: $name, settings: $settings,
                            namespace: "research") { __typename ... on OperationError { message } }
            }""",
            kind=kind,
            effect=effect,
            name=f"no {package}",
            settings={"packages": [package]},
        )
        assert answer["addPolicyRule"]["__typename"] != "OperationError", answer


def link_entry(path: str, target: str) -> Entry:
    return entry(path, b"", type=tarfile.SYMTYPE, linkname=target)


def listing(index: Mapping[str, Any], *paths: str) -> list[Entry]:
    """`info/` of a package that lists these paths, whatever its archive holds."""
    return info_entries([entry(path) for path in paths], index={**INDEX, **index})


def secrets_of(system: System) -> list[bytes]:
    return [path.read_bytes().strip() for path in (system.data / "secrets").iterdir()]


def public_files(system: System) -> Iterator[Path]:
    """All that people are served from: prefixes, and kept bytes."""
    for folder in ("prefixes", "envs", "blobs"):
        for path in (system.data / folder).rglob("*"):
            if path.is_file() and not path.is_symlink():
                yield path


# --- 1. packages ---------------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["absolute", "relative", "through another link"])
def test_a_package_brings_no_file_of_the_service(world: World, target: str) -> None:
    secrets = world.system.data / "secrets"
    links = {
        "absolute": [link_entry("d", str(secrets))],
        "relative": [link_entry("d", "../" * 12 + str(secrets).lstrip("/"))],
        "through another link": [
            link_entry("e", str(secrets.parent)),
            link_entry("d", "e/secrets"),
        ],
    }[target]
    name = f"leak{len(target)}"
    content = tar_bz2(links, info=listing({"name": name}, "d/secret_key"))
    line = world.publish(f"{name}-1.0-0.tar.bz2", content)
    done = world.build("eve", f"eve/{name}", explicit(line))
    assert done["state"] == "FAILED", done
    assert done["failure"]["code"] == "cannot-link", done["failure"]
    assert done["attempt"] <= 1
    for form in ("env.tar.gz", "env.tar.zst", "env.squashfs", "bundle.tar"):
        answer = world.send("eve", "GET", f"/api/envs/eve/{name}/1/{form}")
        assert answer.status_code in (404, 409), answer.text
    upload = world.send("eve", "PUT", f"/channel/hosted/{TOOLS}/{name}-1.0-0.tar.bz2", content)
    assert upload.status_code == 422, upload.text


def test_the_honest_twin_of_such_a_package_is_linked(world: World) -> None:
    payload = [entry("share/twin.txt", b"honest"), link_entry("share/link", "twin.txt")]
    content = tar_bz2(payload, info=listing({"name": "twin"}, "share/twin.txt"))
    upload = world.send("eve", "PUT", f"/channel/hosted/{TOOLS}/twin-1.0-0.tar.bz2", content)
    assert upload.status_code == 201, upload.text
    done = world.ready("eve", "eve/twin", explicit(world.publish("twin-1.0-0.tar.bz2", content)))
    assert (Path(done["prefixPath"]) / "share/twin.txt").read_bytes() == b"honest"


@pytest.mark.parametrize("ending", [".tar.bz2", ".conda"])
def test_a_small_package_does_not_unpack_to_gigabytes(world: World, ending: str) -> None:
    zeros = [entry("share/zeros", bytes(100 << 20))]
    info = listing({"name": "bomb"}, "share/zeros")
    created = (
        tar_bz2(zeros, info=info)
        if ending == ".tar.bz2"
        else conda(zeros, info=info, stem="bomb-1.0-0")
    )
    assert len(created) < 1 << 20
    done = world.build("eve", "eve/bomb", explicit(world.publish(f"bomb-1.0-0{ending}", created)))
    assert (done["state"], done["failure"]["code"]) == ("FAILED", "cannot-link"), done
    assert done["attempt"] <= 1


def test_a_package_that_is_another_than_its_record_says_is_not_linked(world: World) -> None:
    content = tar_bz2([entry("x")], info=listing({"name": "truth", "version": "2.0"}, "x"))
    done = world.build(
        "eve", "eve/lie", explicit(world.publish("truth-1.0-0.tar.bz2", content, version="1.0"))
    )
    assert done["state"] in ("FAILED", "REFUSED"), done
    assert "1.0" in done["failure"]["message"], done["failure"]
    assert "2.0" in done["failure"]["message"], done["failure"]
    assert done["attempt"] <= 1


# --- 2. code of packages -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def evil_prefix(world: World, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A READY build of Eve's with a library in it, and the mark that the library leaves."""
    folder = tmp_path_factory.mktemp("library")
    mark = folder / "mark"
    (folder / "evil.c").write_text(EVIL_LIBRARY % mark)
    compiler = find_program("gcc", component="gcc", install="apt-get install gcc")
    subprocess.run(
        [compiler, "-shared", "-fPIC", "-o", folder / "evil.so", folder / "evil.c"], check=True
    )
    library = (folder / "evil.so").read_bytes()
    payload = [entry("lib/evil.so", library, mode=0o755)]
    variables = json.dumps({"LD_PRELOAD": "lib/evil.so", "GREETING": "from a package"}).encode()
    payload.append(entry("etc/conda/env_vars.d/evil.json", variables))
    created = tar_bz2(payload, info=listing({"name": "evil"}, *[info.name for info, _ in payload]))
    line = world.publish("evil-1.0-0.tar.bz2", created)
    done = world.ready("eve", "eve/carrier", explicit(line))
    return Path(done["prefixPath"]), mark


def test_no_variable_loads_code_into_the_service(
    world: World, evil_prefix: tuple[Path, Path]
) -> None:
    prefix, mark = evil_prefix
    library = prefix / "lib/evil.so"
    loaded = subprocess.run(["/bin/true"], env={"LD_PRELOAD": str(library)}, check=True)
    assert loaded.returncode == 0
    assert mark.exists(), "the library is no straw man"
    mark.unlink()
    shell = prefix / "lib/run.sh"
    done = world.build(
        "eve",
        "eve/preload",
        f"channels: ['{world.trusted.url}']\ndependencies: [libalpha]\n"
        f"variables: {{LD_PRELOAD: {library}, LD_AUDIT: {library}, BASH_ENV: {shell}}}\n"
        "condastore: {tests: {commands: ['true']}}\n",
    )
    assert done["state"] in ("READY", "FAILED", "REFUSED"), done
    assert not mark.exists()


def test_a_variable_reaches_the_smoke_test(world: World) -> None:
    world.ready(
        "eve",
        "eve/variable",
        f"channels: ['{world.trusted.url}']\ndependencies: [libalpha]\n"
        "variables: {GREETING: hello}\n"
        "condastore: {tests: {commands: ['test \"$GREETING\" = hello']}}\n",
    )


#: At the start of a module that each Python imports before anything else.
POISON = b"""
import builtins
def _poisoned(source, *rest, original=builtins.compile, **options):
    if isinstance(source, bytes) and b"generated noarch package" in source:
        source += b"\\nPOISONED = True\\n"
    return original(source, *rest, **options)
builtins.compile = _poisoned
"""
ENCODINGS = "encodings/__init__.py"
IMPORT = "import hello_noarch; print(getattr(hello_noarch, 'POISONED', False))"


def test_compiled_files_of_a_forged_python_reach_nobody_else(world: World) -> None:
    """Eve's `python` is the trusted one, but adds a line to what it compiles."""
    lock = explicit(forged_python(world), world.trusted_package("hello-noarch"))
    of_eve = Path(world.ready("eve", "eve/poison", lock)["prefixPath"])
    until(lambda: compiled(of_eve), 60, lambda: "nothing was compiled: is bubblewrap here?")
    assert says(of_eve) == "True", "the forged interpreter is no straw man"
    text = f"channels: ['{world.trusted.url}']\ndependencies: [python, hello-noarch]\n"
    of_alice = Path(world.ready("alice", "research/honest", text)["prefixPath"])
    until(lambda: compiled(of_alice), 60, lambda: "nothing was compiled")
    assert says(of_alice) == "False"
    assert not any(b"POISONED" in path.read_bytes() for path in compiled(of_alice))


def forged_python(world: World) -> str:
    """Publish it in Eve's channel; its line of an explicit list."""
    [path] = world.trusted.folders[""].glob("linux-64/python-3*.conda")
    files = dict(unpacked(path))
    location = next(name for name in files if name.endswith(ENCODINGS))
    info, content = files[location]
    head, future, rest = content.partition(b"import codecs")  # after the docstring
    files[location] = (info, head + POISON + future + rest)
    listed = json.loads(files["info/paths.json"][1])
    compiled_before = f"{location.removesuffix('__init__.py')}__pycache__/__init__."
    for old in [name for name in files if name.startswith(compiled_before)]:
        del files[old]
    listed["paths"] = [
        each for each in listed["paths"] if not each["_path"].startswith(compiled_before)
    ]
    for each in listed["paths"]:
        if each["_path"] == location:
            each["size_in_bytes"] = len(files[location][1])
            each["sha256"] = hashlib.sha256(files[location][1]).hexdigest()
    files["info/paths.json"] = (entry("info/paths.json")[0], json.dumps(listed).encode())
    created = io.BytesIO()
    with tarfile.open(fileobj=created, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for member, data in files.values():
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    name = f"{path.name.removesuffix('.conda')}.tar.bz2"
    return world.publish(name, bz2.compress(created.getvalue(), 1), "linux-64")


def unpacked(path: Path) -> Iterator[tuple[str, Entry]]:
    """Every member of a .conda file, by name."""
    with zipfile.ZipFile(path) as parts:
        for part in parts.namelist():
            if not part.endswith(".tar.zst"):
                continue
            stream = zstandard.ZstdDecompressor().stream_reader(io.BytesIO(parts.read(part)))
            with tarfile.open(fileobj=io.BytesIO(stream.read())) as archive:
                for member in archive:
                    file = archive.extractfile(member) if member.isreg() else None
                    yield member.name, (member, file.read() if file else b"")


def compiled(prefix: Path) -> list[Path]:
    return [*prefix.rglob("hello_noarch/__pycache__/*.pyc")]


def says(prefix: Path) -> str:
    command = [str(prefix / "bin/python"), "-c", IMPORT]
    environ = {"PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=True)
    return done.stdout.strip()


# --- 3. locks, and namespaces that others govern -------------------------------------------------


def test_what_policy_refuses_does_not_arrive_by_copy_or_move(world: World) -> None:
    """Alice may build in both namespaces; `research` refuses one package and holds another."""
    channel = f"channels: ['{world.trusted.url}']\n"
    for package, direct in (("libbeta", ("REFUSED", "FAILED")), ("large-data", ("HELD",))):
        text = f"{channel}dependencies: [{package}]\n"
        assert world.build("alice", f"research/direct-{package}", text)["state"] in direct
        world.ready("alice", f"alice/{package}", text)
        source = world.environment_id(f"alice/{package}")
        copied = world.ask(
            "alice", COPY % ERROR, id=source, to="research", name=f"copied-{package}"
        )
        moved = world.ask("alice", MOVE % ERROR, id=source, to="research")
        for name in (f"copied-{package}", package):
            assert not world.system.folder(f"research/{name}").exists(), (copied, moved)
            answer = world.send("alice", "GET", f"/api/envs/research/{name}/current/explicit.txt")
            assert answer.status_code == 404, (copied, moved)


def test_what_policy_allows_is_copied(world: World) -> None:
    text = f"channels: ['{world.trusted.url}']\ndependencies: [libalpha]\n"
    world.ready("alice", "alice/fine", text)
    source = world.environment_id("alice/fine")
    copied = world.ask("alice", COPY % ERROR, id=source, to="research", name="fine")
    assert copied["copyEnvironment"]["__typename"] != "OperationError", copied
    until(lambda: world.system.folder("research/fine").exists())


LOCK = """version: 1
metadata:
  content_hash: {{linux-64: '{zeros}'}}
  channels: [{{url: '{channel}', used_env_vars: []}}]
  platforms: [linux-64]
  sources: []
package:
- {{name: python, version: '{version}', manager: conda, platform: linux-64, dependencies: {{}},
    url: '{python}', hash: {{md5: '{python_md5}', sha256: '{python_digest}'}},
    category: main, optional: false}}
- {{name: {name}, version: '{wheel_version}', manager: pip, platform: linux-64, dependencies: {{}},
    url: '{wheel}', hash: {{sha256: '{digest}'}}, category: main, optional: false}}
"""


def lock_with_wheel(world: World, *, name: str, version: str, url: str, digest: str) -> str:
    python, _, python_digest = world.trusted_package("python").partition("#sha256:")
    path = world.trusted.folders[""] / python.removeprefix(world.trusted.url)
    return LOCK.format(
        zeros="0" * 64,
        channel=world.trusted.url,
        version=python.rpartition("/")[2].split("-")[1],
        python=python,
        python_digest=python_digest,
        python_md5=hashlib.md5(path.read_bytes()).hexdigest(),
        name=name,
        wheel_version=version,
        wheel=url,
        digest=digest,
    )


def test_a_wheel_of_a_lock_is_what_it_says_and_from_an_index_that_is_configured(
    world: World,
) -> None:
    file = next((world.trusted.folders[building.INDEX_FOLDER] / "files").glob("tinyold-1.0-*.whl"))
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    url = f"{world.trusted.url}{building.INDEX_FOLDER}/files/{file.name}"
    honest = lock_with_wheel(world, name="tinyold", version="1.0", url=url, digest=digest)
    world.ready("eve", "eve/wheel", honest)
    other = world.publish(file.name, file.read_bytes()).partition("#")[0]
    for number, (name, version, location) in enumerate(
        [
            ("harmless", "1.0", url),
            ("tinyold", "2.0", url),
            ("tinyold", "1.0", other),
            ("tinyold", "1.0", f"file://{file}"),
        ]
    ):
        lying = lock_with_wheel(world, name=name, version=version, url=location, digest=digest)
        done = world.build("eve", f"eve/lying-wheel-{number}", lying)
        assert done["state"] in ("REFUSED", "FAILED"), (name, version, location)


def test_no_spelling_of_a_url_passes_a_rule(world: World) -> None:
    base = world.evil.url.rstrip("/")
    answer = world.system.graphql(
        """mutation($settings: JSON!) {
          addPolicyRule(kind: "channels", effect: "enforce", name: "not Eve's",
                        settings: $settings, namespace: "research") {
            __typename ... on OperationError { message } } }""",
        settings={"deny": [base]},
    )
    assert answer["addPolicyRule"]["__typename"] != "OperationError", answer
    content = tar_bz2([entry("x")], info=listing({"name": "spelt"}, "x"))
    line = world.publish("spelt-1.0-0.tar.bz2", content)
    port = base.rpartition(":")[2]
    world.ready("alice", "alice/spelt", explicit(line))
    for number, spelling in enumerate(
        (
            line,
            line.replace("/noarch/", "//noarch/"),
            line.replace("/noarch/", "/%6eoarch/"),
            line.replace("spelt-", "%73pelt-"),
            line.replace(f":{port}", f":0{port}"),
            line.replace(LOOPBACK, "127.1"),
            line.replace(LOOPBACK, "0x7f000001"),
            line.replace("http:", "HTTP:"),
            line.replace("//", "//:p@", 1),
        )
    ):
        done = world.build("alice", f"research/spelt{number}", explicit(spelling))
        assert done["state"] in ("REFUSED", "FAILED", "HELD"), spelling


# --- 4. requests ---------------------------------------------------------------------------------


class Canary(ThreadingHTTPServer):
    """A server of the internal network, which nobody may reach by way of condastore."""

    def __init__(self) -> None:
        self.heard: list[str] = []
        canary = self

        class Handler(BaseHTTPRequestHandler):
            def handle_any(self) -> None:
                canary.heard.append(f"{self.command} {self.path}")
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            do_GET = do_HEAD = do_POST = do_PUT = do_CONNECT = handle_any  # noqa: N815

            def log_message(self, *arguments: object) -> None:
                pass

        super().__init__((LOOPBACK, 0), Handler)


@pytest.fixture
def canary() -> Iterator[Canary]:
    with Canary() as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def test_no_url_of_eves_reaches_the_internal_network(world: World, canary: Canary) -> None:
    open_port, closed_port = canary.server_port, 9
    texts = set()
    for number, host in enumerate(
        (f"127.0.0.1:{open_port}", f"127.0.0.1:{closed_port}", f"localhost:{open_port}",
         f"[::ffff:127.0.0.1]:{open_port}", "169.254.169.254", f"0.0.0.0:{open_port}")
    ):  # fmt: skip
        location = f"http://{host}"
        as_channel = f"channels: ['{location}/secret']\ndependencies: [x]\n"
        as_lock = explicit(f"{location}/secret/noarch/x-1.0-0.conda#sha256:{'0' * 64}")
        for kind, text in (("channel", as_channel), ("lock", as_lock)):
            done = world.build("eve", f"eve/probe-{kind}-{number}", text)
            assert done["state"] in ("FAILED", "REFUSED"), (location, done)
            texts.add(done["failure"]["message"].partition(" has ")[2])
            assert done["attempt"] <= 1, "another attempt would tell by its time"
    assert not canary.heard
    assert texts == {"no address that this installation may connect to."}


def test_the_channel_that_is_configured_is_reached(world: World) -> None:
    text = f"channels: ['{world.trusted.url}']\ndependencies: [libalpha]\n"
    world.ready("eve", "eve/reached", text)


# --- 5. and 6. the machine, keys and names -------------------------------------------------------


def test_another_account_of_the_machine_reads_nothing_of_a_private_namespace(
    world: World,
) -> None:
    world.system.change("createNamespace", name="open", description="", public=True)
    world.system.create("open/ml")
    text = f"channels: ['{world.trusted.url}']\ndependencies: [libalpha]\n"
    world.system.build("open/ml", text)
    found = reached(world.system.data)
    assert any(path.startswith("envs/open/") for path in found), "the control is readable"
    parts = {tuple(path.split("/")[:2]) for path in found}
    assert parts <= {(".",), ("envs",), ("prefixes",), ("envs", "open"), ("prefixes", "open")}
    assert written(world.system.data) == set()


def test_a_stolen_secret_key_opens_no_other_door(world: World) -> None:
    key = (world.system.data / "secrets/secret_key").read_text().splitlines()[0].strip()
    scope = "repository:research/governed-ml"
    forged = signing.dumps({"token": 1, "for": [scope]}, key=key, salt="condastore.registry")
    answer = world.system.http.get(
        "/v2/research/governed-ml/tags/list", headers={"Authorization": f"Bearer {forged}"}
    )
    assert answer.status_code == 401
    with world.system.rows() as rows:
        sessions = [row[0] for row in rows.execute("SELECT session_key FROM django_session")]
    for stored in sessions:
        answer = world.system.http.get("/api/whoami", cookies={"condastore_session": stored})
        assert not answer.json()["signed_in"]


def test_eve_learns_no_name_of_others(world: World) -> None:
    create, grant = CREATE_CHANNEL % ERROR, GRANT % ERROR
    world.system.graphql(create.replace('"eve"', '"research"'), name="sams-tools")
    known = world.ask("eve", grant, user="secretive-sam")["grantRole"]
    unknown = world.ask("eve", grant, user="nobody-of-this-name")["grantRole"]
    assert known["__typename"] == unknown["__typename"]
    assert str(known).replace("secretive-sam", "X") == str(unknown).replace(
        "nobody-of-this-name", "X"
    )
    reported = [world.ask("eve", create, name=name) for name in ("sams-tools", "tools-of-nobody")]
    assert reported[0] == reported[1]
    assert "code" in reported[0]["createHostedChannel"]
    for path in ("/environments/research/governed-ml/", "/api/envs/research/governed-ml/1/log",
                 "/channel/research/governed-ml/current/noarch/repodata.json"):  # fmt: skip
        absent = path.replace("research", "absentees")
        seen, missing = world.send("eve", "GET", path), world.send("eve", "GET", absent)
        assert (seen.status_code, missing.status_code) == (404, 404)
        assert seen.text.replace("research", "absentees") == missing.text
    for query in ("{ namespaces { edges { node { name } } } }",
                  "{ environments { edges { node { name } } } }",
                  "{ auditEvents { edges { node { target username } } } }"):  # fmt: skip
        shown = json.dumps(world.ask("eve", query))
        assert not [name for name in HIDDEN if name in shown], query


# --- at the end -----------------------------------------------------------------------------------


def test_no_secret_of_the_service_lies_where_people_read(world: World) -> None:
    inodes = {path.stat().st_ino for path in (world.system.data / "secrets").iterdir()}
    secrets = secrets_of(world.system)
    for path in public_files(world.system):
        status = path.stat()
        assert status.st_ino not in inodes, path
        assert not status.st_mode & (stat.S_ISUID | stat.S_ISGID), path
        if status.st_size < 1 << 16:
            content = path.read_bytes()
            assert not any(secret in content for secret in secrets), path
