"""Names, platforms and channels: what is taken, and in which one form."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from condastore.errors import InvalidInputError
from environments.domain.names import (
    MAX_LENGTH,
    NameKind,
    canonical_channel,
    channel_allowed,
    parse_name,
    parse_platform,
)

ALIAS = "https://conda.anaconda.org"
KINDS: tuple[NameKind, ...] = ("namespace", "environment", "tag", "token")


@pytest.mark.parametrize("text", ["a", "ml", "data-science", "py3.11", "a_b", "a--b", "0x", "a__b"])
@pytest.mark.parametrize("what", KINDS)
def test_a_plain_name_is_taken_as_it_is(text: str, what: NameKind) -> None:
    assert parse_name(text, what=what) == text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("..", "is not a valid"),
        (".", "is not a valid"),
        ("../etc", "is not a valid"),
        ("a/b", "is not a valid"),
        ("a\\b", "is not a valid"),
        ("a..b", "is not a valid"),
        ("-a", "is not a valid"),
        ("a.", "is not a valid"),
        (".hidden", "is not a valid"),
        ("a b", "is not a valid"),
        ("~root", "is not a valid"),
        ("a%2fb", "is not a valid"),
        ("a:b", "is not a valid"),
        ("a\nb", "U+000A"),
        ("a\0", "U+0000"),
        ("\u0430dmin", "CYRILLIC SMALL LETTER A"),
        ("a\u200b", "ZERO WIDTH SPACE"),
        ("a\u202eb", "RIGHT-TO-LEFT OVERRIDE"),
        ("\uff41", "FULLWIDTH LATIN SMALL LETTER A"),
        ("caf\u00e9", "LATIN SMALL LETTER E WITH ACUTE"),
        ("x" * 65, "65 characters"),
        ("Research", "capital letters"),
    ],
)
def test_what_is_no_name_is_refused_with_the_reason(text: str, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message.replace("+", r"\+")) as caught:
        parse_name(text, what="environment")
    assert caught.value.where == "environment"
    assert caught.value.hint
    assert text not in ("", "a\nb") or "\n" not in caught.value.message


@pytest.mark.parametrize(
    ("text", "what"), [("api", "namespace"), ("graphql", "namespace"), ("current", "tag")]
)
def test_a_word_that_means_something_else_is_reserved(text: str, what: NameKind) -> None:
    with pytest.raises(InvalidInputError, match="reserved"):
        parse_name(text, what=what)


def test_a_tag_cannot_be_mistaken_for_the_number_of_a_build() -> None:
    with pytest.raises(InvalidInputError, match="build number"):
        parse_name("12", what="tag")


@given(st.text(max_size=80), st.sampled_from(KINDS))
def test_every_name_that_is_taken_is_safe_as_one_part_of_a_path(text: str, what: NameKind) -> None:
    try:
        name = parse_name(text, what=what)
    except InvalidInputError:
        return
    assert name == text
    assert 0 < len(name) <= MAX_LENGTH[what]
    assert set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789-_.")
    assert name.strip(".") == name
    assert ".." not in name


def test_a_platform_that_is_misspelt_gets_a_suggestion() -> None:
    assert parse_platform("osx-arm64") == "osx-arm64"
    with pytest.raises(InvalidInputError) as caught:
        parse_platform("linux64")
    assert caught.value.hint == "Did you mean 'linux-64'?"


@pytest.mark.parametrize(
    ("text", "url", "name"),
    [
        ("conda-forge", f"{ALIAS}/conda-forge", "conda-forge"),
        ("conda-forge/label/rc", f"{ALIAS}/conda-forge/label/rc", "conda-forge/label/rc"),
        ("pkgs/main", "https://repo.anaconda.com/pkgs/main", "pkgs/main"),
        (f"{ALIAS}/conda-forge/", f"{ALIAS}/conda-forge", "conda-forge"),
        ("HTTPS://Conda.Anaconda.Org:443//x/", f"{ALIAS}/x", "x"),
        ("http://h.org:8080/x", "http://h.org:8080/x", "http://h.org:8080/x"),
        ("file:///srv/channel", "file:///srv/channel", "file:///srv/channel"),
    ],
)
def test_a_channel_has_one_url_however_it_is_written(text: str, url: str, name: str) -> None:
    channel = canonical_channel(text, alias=ALIAS)
    assert (channel.url, channel.name, channel.credentials) == (url, name, ())
    assert canonical_channel(channel.url, alias=ALIAS).url == url


def test_a_token_in_a_url_becomes_a_credential_that_no_representation_shows() -> None:
    channel = canonical_channel("https://h.org/base/t/tk-SECRET/own", alias=ALIAS)
    (credential,) = channel.credentials
    assert channel.url == "https://h.org/base/own"
    assert (credential.kind, credential.secret) == ("token", "tk-SECRET")
    assert "SECRET" not in repr(channel)
    assert credential.authenticated("https://h.org/base/own/noarch/a.conda") == (
        "https://h.org/base/t/tk-SECRET/own/noarch/a.conda"
    )


def test_a_password_in_a_url_becomes_a_credential_for_that_channel_only() -> None:
    channel = canonical_channel("https://me:p%40ss@h.org/own", alias=ALIAS)
    (credential,) = channel.credentials
    assert channel.url == "https://h.org/own"
    assert (credential.kind, credential.secret) == ("basic", "me:p@ss")
    assert "p@ss" not in repr(channel)
    assert credential.authenticated("https://h.org/own/a") == "https://me:p%40ss@h.org/own/a"
    for other in ("https://h.org/owner/a", "https://evil.org/own/a", "http://h.org/own/a"):
        assert credential.authenticated(other) == other


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not the name of a channel"),
        ("./channel", "not the name of a channel"),
        ("/srv/channel", "not the name of a channel"),
        ("C:\\channel", "not the name of a channel"),
        ("conda-forge/linux-64", "not the name of a channel"),
        ("a b", "not the name of a channel"),
        ("ftp://h.org/x", "ftp is not http"),
        ("https:///x", "no host"),
        ("https://h.org/x?token=SECRET", "query"),
        ("https://h.org/x/../y", "contains `..`"),
        ("https://h.org/%2e%2e/y", "contains `..`"),
        ("https://h.org/%252e%252e/y", "contains `..`"),
        ("https://h.org/a%2fb", "a hidden separator"),
        ("https://h.org/x/noarch", "ends in a platform"),
        ("https://h.org/x/repodata.json", "names a file"),
        ("https://h.org:port/x", "cannot be read"),
        ("https://u:p/SECRET@h.org/x", "cannot be read"),
        ("https://$USER:$PASS@h.org/x", "shell variable"),
        ("https://h.org/t/${TOKEN}/x", "shell variable"),
        ("https://h.org/\u0441onda", "character"),
        ("https://h\u043est.org/x", "character"),
    ],
)
def test_what_is_no_channel_is_refused_and_no_secret_is_repeated(text: str, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message) as caught:
        canonical_channel(text, alias=ALIAS)
    assert caught.value.hint
    if "?" not in text:
        assert "SECRET" not in str(caught.value)


@given(st.text(max_size=60).map(lambda text: f"https://{text}"))
def test_a_url_that_is_taken_is_stable_and_holds_no_credentials(text: str) -> None:
    try:
        channel = canonical_channel(text, alias=ALIAS)
    except InvalidInputError:
        return
    again = canonical_channel(channel.url, alias=ALIAS)
    assert (again.url, again.credentials) == (channel.url, ())
    assert "@" not in channel.url.split("/")[2]


@pytest.mark.parametrize(
    ("url", "pattern", "allowed"),
    [
        (f"{ALIAS}/conda-forge", f"{ALIAS}/conda-forge", True),
        (f"{ALIAS}/conda-forge", f"{ALIAS}/*", True),
        (f"{ALIAS}/conda-forge/label/rc", f"{ALIAS}/conda-forge", False),
        (f"{ALIAS}/conda-forge", "*", True),
        (f"{ALIAS}/conda-forge", "http://conda.anaconda.org/*", False),
        ("https://a.example.org/x", "https://*.example.org/*", True),
        ("https://evil.com/.example.org/x", "https://*.example.org/*", False),
        ("https://evil.com/https://a.example.org/x", "https://*.example.org/*", False),
        ("file:///srv/channels/a", "file:///srv/channels/*", True),
        ("file:///etc", "file:///srv/channels/*", False),
        (f"{ALIAS}/conda-forge", "", False),
    ],
)
def test_a_pattern_never_reaches_beyond_its_host(url: str, pattern: str, allowed: bool) -> None:
    assert channel_allowed(url, [pattern]) is allowed
