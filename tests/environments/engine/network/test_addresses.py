"""Address guard: permitted addresses, servers and files."""

from __future__ import annotations

import socket
import threading
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from condastore.errors import AddressRefusedError, FileRefusedError, InvalidInputError
from environments.engine.network import addresses, clients
from environments.engine.network.addresses import Guard, ResolverError, is_allowed, parse_networks

PRIVATE = parse_networks(["10.2.0.0/16"])


@pytest.mark.parametrize(
    ("address", "allowed"),
    [
        ("93.184.216.34", True),
        ("2606:2800:220:1:248:1893:25c8:1946", True),
        ("10.2.3.4", True),  # in the network that is allowed
        ("::ffff:10.2.3.4", True),
        ("10.9.3.4", False),
        ("127.0.0.1", False),
        ("169.254.169.254", False),
        ("168.63.129.16", False),
        ("0.0.0.0", False),
        ("100.64.0.1", False),
        ("100.100.100.200", False),
        ("192.0.0.192", False),
        ("198.18.0.1", False),
        ("224.0.0.1", False),
        ("240.0.0.1", False),
        ("255.255.255.255", False),
        ("::", False),
        ("::1", False),
        ("::7f00:1", False),
        ("fe80::1", False),
        ("fec0::1", False),
        ("fd00::1", False),
        ("fd00:ec2::254", False),
        ("ff02::1", False),
        ("::ffff:127.0.0.1", False),
        ("64:ff9b::7f00:1", False),
        ("64:ff9b::a9fe:a9fe", False),
        ("64:ff9b:1::7f00:1", False),
        ("2002:7f00:1::", False),
        ("2002:a9fe:a9fe::1", False),
        ("2001:0:4136:e378:8000:63bf:80ff:fffe", False),
    ],
)
def test_only_public_addresses_and_allowed_networks_are_reached(
    address: str, allowed: bool
) -> None:
    assert is_allowed(ip_address(address), PRIVATE) == allowed


@given(inner=st.ip_addresses(v=4))
def test_an_ipv4_address_is_judged_alike_in_each_of_its_ipv6_forms(inner: IPv4Address) -> None:
    number = int(inner)
    mapped = IPv6Address((0xFFFF << 32) | number)
    translated = IPv6Address((0x64FF9B << 96) | number)
    tunnelled = IPv6Address((0x2002 << 112) | (number << 80) | 1)
    expected = is_allowed(inner, ())
    assert [is_allowed(each, ()) for each in (mapped, translated, tunnelled)] == [expected] * 3


def test_an_address_of_this_machine_is_refused_though_it_is_public(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(addresses, "is_own", lambda address: True)
    assert not is_allowed(ip_address("93.184.216.34"), ())


def test_the_kernel_says_which_addresses_are_of_this_machine() -> None:
    assert addresses.is_own(ip_address("127.0.0.1"))
    assert not addresses.is_own(ip_address("93.184.216.34"))


@pytest.mark.parametrize(
    ("url", "servers"),
    [
        ("https://conda.example.org/main", {("conda.example.org", 443)}),
        ("http://127.0.0.1:8000/*", {("127.0.0.1", 8000)}),
        ("http://[::1]:8000/x", {("::1", 8000)}),
        ("https://user:pw@Conda.Example.org./x", {("conda.example.org", 443)}),
        ("*://conda.example.org/*", {("conda.example.org", 80), ("conda.example.org", 443)}),
        ("https://*.example.org/*", set()),
        ("https://conda.example.or?/*", set()),
        ("https://[ab].example.org/*", set()),
        ("http://127.0.0.1:*/x", set()),
        ("*", set()),
        ("", set()),
    ],
)
def test_a_url_of_a_setting_allows_its_server_at_its_port_alone(
    url: str, servers: set[tuple[str, int]]
) -> None:
    assert Guard.from_settings(urls=[url]).hosts == servers


def test_allowed_are_networks_and_servers_and_nothing_else() -> None:
    found = Guard.from_settings(
        allowed=["10.1.0.0/16", "::1", "db.example.org:8080", "10.9.9.9:80"]
    )
    assert found.networks == parse_networks(["10.1.0.0/16", "::1"])
    assert found.hosts == {("db.example.org", 8080), ("10.9.9.9", 80)}
    for text in ("db.example.org", "10.1.0.0/99", "http://x:80/", "x:99999", "", "a@b:1"):
        with pytest.raises(InvalidInputError):
            Guard.from_settings(allowed=[text])


def test_a_configured_server_is_reached_at_its_port_and_its_neighbours_are_not() -> None:
    guard = Guard.from_settings(urls=["http://127.0.0.1:8000/channel"])
    assert guard.resolve("127.0.0.1", 8000) == ["127.0.0.1"]
    for host, port in (("127.0.0.1", 8001), ("127.0.0.2", 8000), ("localhost", 8000)):
        with pytest.raises(AddressRefusedError):
            guard.resolve(host, port)


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "localhost", "[::1]", "2130706433", "0x7f.1", "0177.1", "0", "127.1"]
)
def test_an_address_of_this_machine_is_refused_however_it_is_written(host: str) -> None:
    with pytest.raises(AddressRefusedError):
        Guard().resolve(host, 80)


@pytest.fixture
def resolver(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Answers of the resolver, one after the other: addresses, or an error."""
    answers: list[Any] = []
    real = socket.getaddrinfo

    def getaddrinfo(host: str, port: int, *arguments: Any, **options: Any) -> list[Any]:
        if addresses.literal_address(host):
            return real(host, port, *arguments, **options)
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        if isinstance(answer, Exception):
            raise answer
        return [
            (family, socket.SOCK_STREAM, 6, "", (one, port))
            for one in answer
            for family in [socket.AF_INET6 if ":" in one else socket.AF_INET]
        ]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    return answers


def test_a_name_is_connected_to_at_its_public_addresses_alone(resolver: list[Any]) -> None:
    resolver.append(["10.0.0.1", "93.184.216.34", "::1"])
    assert Guard().resolve("mixed.example.org", 443) == ["93.184.216.34"]


def test_internal_and_unknown_names_are_refused_with_the_same_message(
    resolver: list[Any],
) -> None:
    said = set()
    for answer in (["10.0.0.1"], [], socket.gaierror(socket.EAI_NONAME, "Name not known")):
        resolver[:] = [answer]
        with pytest.raises(AddressRefusedError) as refused:
            Guard().resolve("name.example.org", 443)
        said.add((str(refused.value), refused.value.hint))
    assert len(said) == 1


def test_a_resolver_that_fails_is_asked_again_later(resolver: list[Any]) -> None:
    resolver[:] = [socket.gaierror(socket.EAI_AGAIN, "Try again")]
    with pytest.raises(ResolverError):
        Guard().resolve("name.example.org", 443)
    resolver[:] = [socket.gaierror(socket.EAI_NONAME, "Name not known")]
    with pytest.raises(ResolverError):  # an administrator named it
        Guard.from_settings(urls=["https://name.example.org/"]).resolve("name.example.org", 443)


def test_a_slow_resolver_costs_no_more_than_the_time_limit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    release = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: release.wait(20) and [])
    client = clients.client(within=Guard(), timeout=0.2)
    with client, pytest.raises(httpx.ConnectTimeout):
        client.get("http://slow.example.org/")
    release.set()


def test_a_second_dns_answer_does_not_change_the_connection(resolver: list[Any]) -> None:
    """DNS rebinding: public when it is checked, this machine when it is asked again."""
    with socket.create_server(("127.0.0.1", 0)) as canary:
        canary.settimeout(0.3)
        port = canary.getsockname()[1]
        resolver[:] = [["192.0.2.1"], ["127.0.0.1"]]
        # TEST-NET-1 stands for a public address, which nobody here may connect to.
        within = Guard.from_settings(allowed=["192.0.2.0/24"])
        with (
            clients.client(within=within, timeout=0.2) as client,
            pytest.raises((httpx.ConnectTimeout, httpx.ConnectError)),
        ):
            client.get(f"http://rebinding.example.org:{port}/")
        with pytest.raises(TimeoutError):
            canary.accept()


def test_files_are_read_below_the_folders_that_were_named(tmp_path: Path) -> None:
    (tmp_path / "channels" / "main").mkdir(parents=True)
    (tmp_path / "secret").write_text("x")
    (tmp_path / "channels" / "link").symlink_to(tmp_path)
    guard = Guard.from_settings(folders=[str(tmp_path / "channels")])
    main = (tmp_path / "channels" / "main").as_uri()
    assert guard.path(main) == tmp_path / "channels" / "main"
    root = tmp_path.as_uri()
    said = set()
    for url in (
        f"{root}/secret",
        f"{root}/missing",
        f"{root}/channels/../secret",
        f"{root}/channels/link/secret",
        f"{root}/channels-too",
        f"{root}/channels/%2e%2e/secret",
        "file:///etc/passwd",
        "file://localhost/etc/passwd",
    ):
        with pytest.raises(FileRefusedError) as refused:
            guard.path(url)
        said.add(refused.value.message.replace(url, "URL"))
    assert len(said) == 1
    with pytest.raises(FileRefusedError):
        Guard().path(main)


@pytest.mark.parametrize(
    ("url", "folder"),
    [
        ("file:///srv/channels/*", "/srv/channels"),
        ("file:///srv/channels/main", "/srv/channels/main"),
        ("file:///srv/chan*/x", "/srv"),
    ],
)
def test_a_file_url_of_a_setting_allows_what_is_before_its_wildcard(url: str, folder: str) -> None:
    assert Guard.from_settings(urls=[url]).folders == (folder,)
