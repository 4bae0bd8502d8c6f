"""Lines of a pip part: what they name, and what is said of those that cannot be locked."""

from __future__ import annotations

import pytest

from condastore.errors import InvalidInputError
from environments.domain.pip_requirements import (
    DirectReference,
    PipOption,
    PipRequirement,
    direct_reference,
    parse_pip_line,
)

COMMIT, DIGEST = "a" * 40, "b" * 64
GIT = f"git+https://github.com/acme/lib.git@{COMMIT}"
WHEEL = "https://h.org/lib-1.0-py3-none-any.whl"


@pytest.mark.parametrize(
    ("line", "text"),
    [
        (GIT, f"lib @ {GIT}"),
        (f"GIT+HTTPS://GitHub.com/acme/lib.git@{COMMIT.upper()}", f"lib @ {GIT}"),
        (f"{GIT}#egg=My_Lib[b,a]", f"my-lib[a,b] @ {GIT}"),
        (f"-e {GIT}#egg=lib&subdirectory=python/", f"lib @ {GIT}#subdirectory=python"),
        (f"--editable={GIT}", f"lib @ {GIT}"),
        (
            f"Lib[x] @ {GIT}#subdirectory=a/b ; python_version<'3.12'",
            f'lib[x] @ {GIT}#subdirectory=a/b ; python_version < "3.12"',
        ),
        (f"{WHEEL}#sha256={DIGEST}", f"lib @ {WHEEL}#sha256={DIGEST}"),
        (f"lib @ {WHEEL} --hash=sha256:{DIGEST.upper()}", f"lib @ {WHEEL}#sha256={DIGEST}"),
        (
            f"lib[x] @ {WHEEL}#sha256={DIGEST} ; sys_platform == 'linux'",
            f'lib[x] @ {WHEEL}#sha256={DIGEST} ; sys_platform == "linux"',
        ),
        (
            f"https://h.org/torch-2.0+cu118-cp311-cp311-linux_x86_64.whl#sha256={DIGEST}",
            f"torch @ https://h.org/torch-2.0%2Bcu118-cp311-cp311-linux_x86_64.whl#sha256={DIGEST}",
        ),
    ],
)
def test_a_source_that_cannot_change_is_named_in_one_form(line: str, text: str) -> None:
    found = parse_pip_line(line)
    assert isinstance(found, PipRequirement)
    assert found.text == text
    assert direct_reference(text) == found.direct
    again = parse_pip_line(text)
    assert isinstance(again, PipRequirement)
    assert again.text == text
    assert found.direct is not None
    location = DirectReference.of_location(found.direct.location, sha256=found.direct.sha256)
    assert location == found.direct


def test_an_index_requirement_is_no_source() -> None:
    assert direct_reference("httpx[http2]<1,>=0.28") is None
    assert direct_reference('a==1; sys_platform == "win32"') is None


@pytest.mark.parametrize(
    ("line", "kind", "url"),
    [
        ("--index-url https://H.org/simple/", "index", "https://h.org/simple"),
        ("-i https://h.org/simple", "index", "https://h.org/simple"),
        ("--extra-index-url=https://h.org/simple", "extra-index", "https://h.org/simple"),
        ("-fhttps://h.org/x.html", "find-links", "https://h.org/x.html"),
        ("--find-links https://h.org/a+b.html", "find-links", "https://h.org/a%2Bb.html"),
        ("--pre", "prereleases", ""),
        ("--only-binary :all:", "ignored", ""),
    ],
)
def test_options_are_read(line: str, kind: str, url: str) -> None:
    found = parse_pip_line(line)
    assert isinstance(found, PipOption)
    assert (found.kind, found.url) == (kind, url)


@pytest.mark.parametrize(
    ("line", "message", "hint"),
    [
        ("-r more.txt", "a file on your machine", "Paste the lines"),
        ("-c limits.txt", "a file on your machine", "Write its versions"),
        ("--index-url https://me:SECRET@h.org/simple", "contains a login", "credential set"),
        ("--extra-index-url=https://me:SECRET@h.org/", "contains a login", "credential set"),
        ("-i https://h.org/t/SECRET/simple", "contains a login", "credential set"),
        ("--find-links ./wheels", "not the URL of an index", "https://"),
        ("--no-index", "leaves no index", "Remove the line"),
        ("--trusted-host h.org", "turns off the check", "administrator"),
        ("--no-deps", "leaves out dependencies", "Remove the option"),
        ("-e .", "a folder on your machine", "channel upload"),
        ("-e .[dev]", "a folder on your machine", "channel upload"),
        ("./pkg", "path on your machine", "channel upload"),
        ("../pkg[extra]", "path on your machine", "channel upload"),
        ("pkg-1.0-py3-none-any.whl", "path on your machine", "channel upload"),
        ("C:\\pkg", "path on your machine", "channel upload"),
        ("pkg @ file:///pkg", "path on your machine", "channel upload"),
        ("git+https://me:SECRET@h.org/pkg", "names no commit", "git ls-remote"),
        (f"git+https://me:SECRET@h.org/pkg@{COMMIT}", "contains a login", "credential set"),
        (f"git+https://$TOKEN@h.org/pkg@{COMMIT}", "contains a login", "credential set"),
        (
            "git+https://h.org/pkg.git@master",
            "'master' is not a full commit",
            "ls-remote URL master",
        ),
        ("git+https://h.org/pkg.git@abc1234", "'abc1234' is not a full commit", "40 digits"),
        (f"pkg @ git+ssh://git@h.org/pkg@{COMMIT}", "without an https URL", "git+https://"),
        (f"git+file:///pkg@{COMMIT}", "without an https URL", "git+https://"),
        ("git+ext::sh%20-c%20id", "without an https URL", "git+https://"),
        (f"git+https://--upload-pack=id/x@{COMMIT}", "host is not a name", "plainly"),
        (f"git+https://h.org/x@{COMMIT}#subdirectory=../x", "an invalid subdirectory", "folder"),
        (f"git+https://h.org/x@{COMMIT}#subdirectory=-x", "an invalid subdirectory", "folder"),
        (f"git+https://h.org/x@{COMMIT}#sha1=0", "after '#'", "#egg=NAME"),
        (f"{GIT} --hash=sha256:{DIGEST}", "does not apply to a Git", "Remove"),
        ("hg+https://h.org/x@1", "is a hg repository", "Git"),
        ("git@github.com:acme/lib.git", "not a URL that the server reads", "git+https://"),
        ("pkg @ https://h.org/pkg.whl", "not that of a wheel", "NAME-VERSION"),
        (f"lib @ {WHEEL}", "names no sha256, so its bytes can change", "pip hash"),
        (f"lib @ {WHEEL}#sha256={'B' * 63}", "is not a sha256", "64"),
        (f"lib @ {WHEEL}#md5=0", "is not a sha256", "64"),
        (f"lib @ {WHEEL}#sha256={DIGEST} --hash=sha256:{'c' * 64}", "two digests", "#sha256"),
        (f"other @ {WHEEL}#sha256={DIGEST}", "a wheel of lib", "lib @ URL"),
        (f"{WHEEL}?x=1#sha256={DIGEST}", "a query", "plainly"),
        ("https://h.org/t/SECRET/pkg.tar.gz", "contains a login", "credential set"),
        ("https://h.org/pkg.tar.gz", "sources are built from Git only", "git+https://"),
        ("numpy=1.0", "is not a requirement of a Python package", "'=='"),
        ("numpy==1.0 --hash=sha256:0", "not the sha256 of a file", "64 hexadecimal"),
        ("numpy==1.0 --hash=md5:0", "not the sha256 of a file", "64 hexadecimal"),
        ("numpy --global-option=x", "contains an option", "Remove"),
        ("two words", "is not a requirement of a Python package", "Write it like"),
        ("a\nb", "control characters", "Remove"),
        ("", "is empty", "Remove"),
        ("x" * 1001, "1001 characters", "Shorten"),
    ],
)
def test_what_cannot_be_locked_is_refused_and_no_secret_is_repeated(
    line: str, message: str, hint: str
) -> None:
    with pytest.raises(InvalidInputError) as caught:
        parse_pip_line(line)
    assert message in caught.value.message
    assert hint in caught.value.hint
    assert "SECRET" not in caught.value.message + caught.value.hint
    if "master" not in line and "no sha256" not in message and "commit" not in message:
        assert "can change" not in caught.value.message + caught.value.hint


def test_sources_that_differ_exclude_each_other() -> None:
    one, other = parse_pip_line(GIT), parse_pip_line(GIT.replace("aaaa", "cccc"))
    index = parse_pip_line("lib>=1")
    assert isinstance(one, PipRequirement)
    assert isinstance(other, PipRequirement)
    assert isinstance(index, PipRequirement)
    assert one.excludes(other)
    assert not one.excludes(one)
    assert not one.excludes(index)


@pytest.mark.parametrize(
    "line",
    [
        "-e git+https://github.com/CompVis/taming-transformers.git@master#egg=taming-transformers",
        "git+https://github.com/openai/CLIP.git@a1d0717",
        f"lib @ git+ssh://github.com/acme/a-repository-with-a-long-name.git@{COMMIT}#egg=lib",
        "https://download.example.org/whl/a-very-long-name-of-a-wheel-1.0-cp311-cp311-linux.zip",
    ],
)
def test_a_refusal_shows_what_was_written(line: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        parse_pip_line(line)
    assert line in caught.value.message


@pytest.mark.parametrize(
    "line", ["a{}b", "a @ https://example.org/x{}y", "-e git+https://h.org/x{}y"]
)
def test_only_hashes_make_a_line_long(line: str) -> None:
    """What else is in it would be matched in a time that grows by the square of its length."""
    digest = f" --hash=sha256:{'0' * 64}"
    assert parse_pip_line("a==1.0" + digest * 100)
    with pytest.raises(InvalidInputError, match=r"A requirement of [\d]+ characters"):
        parse_pip_line(line.format(" " * 40_000) + digest)


def test_deep_markers_are_refused() -> None:
    with pytest.raises(InvalidInputError, match="is not a requirement of a Python package"):
        parse_pip_line("a ; " + "(" * 900)
    with pytest.raises(InvalidInputError, match="is not a requirement of a Python package"):
        parse_pip_line(f"a @ https://h.org/a-1-py3-none-any.whl#sha256={'0' * 64} ; " + "(" * 800)
