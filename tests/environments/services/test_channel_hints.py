"""Missing packages that are in a channel which the request does not list."""

from __future__ import annotations

from typing import Any

import pytest

from condastore.errors import UnsatisfiableError
from environments.models import Channel, ChannelCredential, IndexedPackage, Namespace
from environments.services.channel_hints import MAX_CHANNELS, add_channel_hints

pytestmark = pytest.mark.django_db
LISTED = "https://channel.example.org/main"


def channel(name: str, *packages: str) -> str:
    created = Channel.objects.create(url=f"https://channel.example.org/{name}")
    for package in packages:
        IndexedPackage.objects.create(channel=created, name=package, versions=1)
    return created.url


def missing(*requirements: str, note: str = "") -> UnsatisfiableError:
    """As the solver explains it."""
    items = [
        {"requirement": one, "channels": [LISTED], "similar": [], "note": note}
        for one in requirements
    ]
    return UnsatisfiableError("Nothing provides it.", details={"missing": items})


def pointed(*requirements: str, note: str = "") -> UnsatisfiableError:
    error = missing(*requirements, note=note)
    add_channel_hints(error, listed=[LISTED])
    return error


def test_the_channel_that_has_it_is_named_with_what_to_do() -> None:
    channel("main", "python")
    bio = channel("bioconda", "samtools")
    error = pointed("samtools >=1.20", note="it was never there")
    assert f"samtools is in {bio}: not among the channels you listed." in error.message
    assert "Nothing provides it." in error.message
    assert "Add the channel" in error.hint
    (item,) = error.details["missing"]
    assert item["note"] == f"it was never there; it is in {bio}, which is not among your channels"


def test_several_packages_and_channels_are_named_but_not_all() -> None:
    urls = [channel(f"c{number}", "samtools") for number in range(MAX_CHANNELS + 2)]
    only = channel("z", "bwa")
    error = pointed("samtools", "bwa", "nowhere")
    assert all(url in error.message for url in [*urls[:MAX_CHANNELS], only])
    assert not any(url in error.message for url in urls[MAX_CHANNELS:])
    assert [item["note"] for item in error.details["missing"]][2] == ""


def test_what_is_nowhere_or_only_in_the_listed_channels_is_told_as_before() -> None:
    channel("main", "samtools")
    error = pointed("samtools >=99", "nowhere")
    assert error.message == "Nothing provides it."
    assert error.hint == UnsatisfiableError.hint


def test_of_a_private_channel_not_even_the_name_is_told(research: Namespace) -> None:
    private = channel("private", "secret-tool")
    sibling = channel("private-not", "secret-tool")
    credential = ChannelCredential(namespace=research, url_prefix=private, kind="token")
    credential.save()
    error = pointed("secret-tool")
    assert sibling in error.message
    assert f"{private} " not in f"{error.message} "
    assert private not in [
        word.strip(",;:") for word in error.details["missing"][0]["note"].split()
    ]


def test_a_channel_that_nobody_may_list_is_not_named(settings: Any) -> None:
    channel("bioconda", "samtools")
    settings.ALLOWED_CHANNELS = [LISTED, "https://mirror.example.org/*"]
    assert pointed("samtools").message == "Nothing provides it."


def test_a_conflict_without_anything_missing_stays_as_it_is() -> None:
    channel("bioconda", "samtools")
    error = UnsatisfiableError("They exclude each other.", details={"conflicts": []})
    add_channel_hints(error, listed=[LISTED])
    assert error.message == "They exclude each other."
