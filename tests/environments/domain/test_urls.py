"""Each resource has one spelling, and no respelling of it is another one."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from environments.domain.names import channel_allowed, in_channel
from environments.domain.urls import UrlError, canonical_or_same, canonical_url
from tests.security.strategies import plain_url, resources, respelt


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("HTTPS://Host.Example.ORG/Main", "https://host.example.org/Main"),
        ("https://host.example.org:443/main/", "https://host.example.org/main"),
        ("https://host.example.org.:00443//main", "https://host.example.org/main"),
        ("http://host.example.org:008080/main", "http://host.example.org:8080/main"),
        ("https://host.example.org:/main", "https://host.example.org/main"),
        ("https://host.example.org/%6Dain/%7eme", "https://host.example.org/main/~me"),
        ("https://h%6Fst.example.org/main", "https://host.example.org/main"),
        ("https://h.org/a%5b%3f", "https://h.org/a%5B%3F"),
        ("https://h.org/x-1%212.0-0.conda", "https://h.org/x-1!2.0-0.conda"),
        ("https://h.org/x-1.0+cpu-0.conda", "https://h.org/x-1.0%2Bcpu-0.conda"),
        ("https://h.org/x-1.0%2bcpu-0.conda", "https://h.org/x-1.0%2Bcpu-0.conda"),
        ("https://user:p%40ss@h.org/main", "https://h.org/main"),
        ("https://h.org/t/tk-1/main", "https://h.org/main"),
        ("https://h.org//%74//tk-1//main", "https://h.org/main"),
        ("http://127.1/main", "http://127.0.0.1/main"),
        ("http://0x7f.0.0.1/main", "http://127.0.0.1/main"),
        ("http://0177.0.0.01/main", "http://127.0.0.1/main"),
        ("http://2130706433/main", "http://127.0.0.1/main"),
        ("http://%31%32%37.1/main", "http://127.0.0.1/main"),
        ("http://[0:0:0:0:0:0:0:1]:80/main", "http://[::1]/main"),
        ("http://[::FFFF:127.0.0.1]/main", "http://127.0.0.1/main"),
        ("file:/srv/main", "file:///srv/main"),
        ("file://localhost/srv//main", "file:///srv/main"),
    ],
)
def test_a_url_is_written_in_one_way(text: str, canonical: str) -> None:
    assert canonical_url(text) == canonical
    assert canonical_url(canonical) == canonical


@pytest.mark.parametrize(
    "text",
    [
        "",
        "main",
        "ftp://h.org/main",
        "https:///main",
        "https://:443/main",
        "https://h.org:0/main",
        "https://h.org:65536/main",
        "https://h.org:8o/main",
        "https://h.org\\@evil.org/main",
        "https://h.org/a\\b",
        "https://h.org/a\tb",
        "https://h.org/a b",
        "https://h.org/%",
        "https://h.org/%zz",
        "https://h.org/a%2Fb",
        "https://h.org/a%5Cb",
        "https://h.org/a%00b",
        "https://h.org/a%0Ab",
        "https://h.org/%2561",
        "https://h.org/../a",
        "https://h.org/.%2e/a",
        "https://h.org/./a",
        "https://h.org/a?b=c",
        "https://h.org/a#b",
        "https://h.org/[a]",
        "https://h..org/a",
        "https://-h.org/a",
        "https://h%3A80/a",
        "https://h%2Forg/a",
        "http://256.1.1.1/a",
        "http://1.2.3.4.5/a",
        "http://0x100000000/a",
        "http://08.1/a",
        "http://[::1/a",
        "http://[::1]x/a",
        "http://[fe80::1%25eth0]/a",
        "file://server/srv/main",
        "https://h.org/t/a/t/b/c",
        "https://b\u00fccher.example/a",
        "https://h.org/\uff0e\uff0e/a",
    ],
)
def test_what_has_no_canonical_form_is_refused(text: str) -> None:
    with pytest.raises(UrlError):
        canonical_url(text)
    assert canonical_or_same(text) == text


# --- any two spellings of one resource ------------------------------------------------------------


@settings(deadline=None, max_examples=150)
@given(st.data())
def test_any_two_spellings_of_one_resource_have_one_form(data: st.DataObject) -> None:
    resource = data.draw(resources)
    plain = canonical_url(plain_url(resource))
    spelt = data.draw(respelt(resource))
    assert canonical_url(spelt) == plain
    assert canonical_url(plain) == plain
    # So no rule can be spelt past, whichever of the two its author wrote.
    assert channel_allowed(spelt, [plain])
    assert channel_allowed(plain, [spelt]) or "@" in spelt or "/t/" in spelt or "%74" in spelt
    assert in_channel(spelt, resource[3][-1])


@settings(deadline=None, max_examples=50)
@given(resources, resources)
def test_differentresources_stay_different(one, other) -> None:
    default = {"http": 80, "https": 443}

    def named(resource):
        scheme, host, port, segments = resource
        return scheme, host, port or default[scheme], segments

    same = canonical_url(plain_url(one)) == canonical_url(plain_url(other))
    assert same is (named(one) == named(other))


@settings(deadline=None)
@given(st.text(max_size=40).map(lambda text: f"http://{text}"))
def test_whatever_is_taken_is_stable(text: str) -> None:
    try:
        canonical = canonical_url(text)
    except UrlError:
        return
    assert canonical_url(canonical) == canonical
    assert "@" not in canonical.split("/")[2]


@pytest.mark.parametrize(
    ("pattern", "url", "fits"),
    [
        ("HTTPS://*.Example.ORG:443/%6Dain/*", "https://a.example.org/main/x", True),
        ("https://*.example.org./main", "https://a.example.org/main", True),
        ("http://127.1:08080/*", "http://127.0.0.1:8080/main", True),
        ("http://127.0.0.1/main", "http://0x7f000001//%6dain/", True),
        ("http://[::1]/*", "http://[0:0::1]:80/main", True),
        ("http://[::1]/*", "http://:/main", False),
        ("https://h.org/+plus", "https://h.org/%2bplus", True),
        ("https://h.org/[ab]", "https://h.org/a", True),
        ("https://h.org/main", "https://h.org/Main", False),
        ("main", "https://h.org/%6Dain", True),
        ("label/rc", "https://h.org/main//label/rc", True),
        ("ain", "https://h.org/main", False),
    ],
)
def test_a_pattern_fits_every_spelling_of_what_it_means(pattern, url, fits) -> None:
    assert in_channel(url, pattern) is fits
