"""What an environment file becomes, and what is said of one that is at fault."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rattler import MatchSpec

from condastore.errors import SpecificationError
from environments.domain.exclude_newer import newest_allowed, parse_exclude_newer
from environments.domain.names import KNOWN_PLATFORMS
from environments.domain.rendering import conda_lock_yml, explicit_txt
from environments.domain.requirements import parse_conda_requirement
from environments.domain.selectors import lines_for, selector_faults
from environments.domain.specification import Defaults, SmokeTests, Specification, Submission
from environments.domain.specification_forms import parse_specification
from tests.environments.domain.packages import locks

ALIAS = "https://conda.anaconda.org"
FORGE = f"{ALIAS}/conda-forge"


def parse(text: str | bytes, **defaults: Any) -> Submission:
    return parse_specification(text, defaults=Defaults(**defaults))


def faults(text: str | bytes, **defaults: Any) -> list[tuple[str, str, str]]:
    """(where, message, hint) of each fault; there must be one."""
    with pytest.raises(SpecificationError) as caught:
        parse(text, **defaults)
    assert caught.value.details["faults"]
    return [(fault.where, fault.message, fault.hint) for fault in caught.value.faults]


def only(text: str | bytes, **defaults: Any) -> tuple[str, str, str]:
    (fault,) = faults(text, **defaults)
    return fault


def dependencies(*lines: str) -> str:
    return "dependencies:\n" + "".join(f"  - {line}\n" for line in lines)


FILE = """\
# What the team uses.
name: ml
channels:
  - conda-forge
  - nodefaults
dependencies:
  - python=3.11
  - numpy >=1.26,<3      # not 3 yet
  - pywin32              # [win]
  - uvloop               # [unix]
  - pip:
      - HTTPX[http2] >=0.28; python_version < "3.14"
variables:
  VERSION: 1.10
  FLAG: true
  EMPTY:
platforms: [win-64, linux-64]
condastore:
  tests:
    imports: [numpy.linalg]
    commands: [python -V]
  virtual-packages: [__glibc=2.28, __cuda = 12]
  exclude-newer: 2 weeks
  description: What the team uses.
"""


def test_an_environment_file_becomes_one_normal_form() -> None:
    submission = parse(FILE)
    assert submission.warnings == ()
    assert submission.source == FILE
    assert submission.specification == Specification(
        kind="environment",
        channels=(FORGE,),
        platforms=("linux-64", "win-64"),
        dependencies={
            "linux-64": ("numpy >=1.26,<3", "python 3.11.*", "uvloop"),
            "win-64": ("numpy >=1.26,<3", "python 3.11.*", "pywin32"),
        },
        pip=dict.fromkeys(("linux-64", "win-64"), ('httpx[http2]>=0.28; python_version < "3.14"',)),
        variables={"EMPTY": "", "FLAG": "true", "VERSION": "1.10"},
        virtual_packages=("__cuda=12", "__glibc=2.28"),
        exclude_newer="P14D",
        smoke_tests=SmokeTests(imports=("numpy.linalg",), commands=("python -V",)),
        description="What the team uses.",
        name="ml",
    )


def test_a_specification_survives_json_and_keeps_its_digest() -> None:
    specification = parse(FILE).specification
    again = Specification.from_json(json.loads(json.dumps(specification.to_json())))
    assert again == specification
    assert again.digest == specification.digest


@given(st.permutations(["python=3.11", "numpy>=1.26", "scipy", "pandas 2.*"]))
def test_the_order_of_dependencies_is_no_part_of_the_digest(order: list[str]) -> None:
    usual = parse(dependencies("python =3.11.*", "numpy  >=1.26", "scipy", "pandas=2"))
    assert parse(dependencies(*order)).specification.digest == usual.specification.digest


@pytest.mark.parametrize(
    ("change", "same"),
    [
        (("name: ml", "name: other"), True),
        (("description: What", "description: That"), True),
        (("# What the team uses.", "# Another comment."), True),
        (("[win-64, linux-64]", "[linux-64, win-64]"), True),
        (("- conda-forge", "- bioconda"), False),
        (("- nodefaults", "- bioconda"), False),
        (("numpy >=1.26", "numpy >=1.27"), False),
        (("FLAG: true", "FLAG: false"), False),
        (("2 weeks", "3 weeks"), False),
        (("__cuda = 12", "__cuda = 11"), False),
        (("python -V", "python -VV"), False),
        ((">=0.28;", ">=0.27;"), False),
    ],
)
def test_the_digest_is_of_what_was_asked_for(change: tuple[str, str], same: bool) -> None:
    assert change[0] in FILE
    changed = parse(FILE.replace(*change)).specification
    assert (changed.digest == parse(FILE).specification.digest) is same


def test_the_order_of_channels_is_part_of_the_digest() -> None:
    one = parse("channels: [a, b]\ndependencies: [x]").specification
    two = parse("channels: [b, a]\ndependencies: [x]").specification
    assert one.digest != two.digest


def test_defaults_hold_where_the_file_says_nothing() -> None:
    specification = parse(
        dependencies("x"), channels=("own",), channel_alias="https://h.org", platforms=("osx-64",)
    ).specification
    assert specification.channels == ("https://h.org/own",)
    assert specification.platforms == ("osx-64",)
    named = parse("channels: [nodefaults]\ndependencies: [x]").specification
    assert named.channels == (FORGE,)


def test_the_channel_defaults_is_condas() -> None:
    specification = parse("channels: [defaults, conda-forge]\ndependencies: [x]").specification
    assert specification.channels == (
        "https://repo.anaconda.com/pkgs/main",
        "https://repo.anaconda.com/pkgs/r",
        FORGE,
    )


# --- requirements of conda --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("numpy", "numpy"),
        ("NumPy", "numpy"),
        ("numpy *", "numpy"),
        ("numpy=1.24", "numpy 1.24.*"),
        ("numpy = 1.24", "numpy 1.24.*"),
        ("numpy 1.24.*", "numpy 1.24.*"),
        ("numpy 1.24*", "numpy 1.24.*"),
        ("numpy=1.*", "numpy 1.*"),
        ("numpy=1.24.*", "numpy 1.24.*"),
        ("numpy==1.24.*", "numpy 1.24.*"),
        ("pandas 1.5.3", "pandas ==1.5.3"),
        ("numpy==1.2.3", "numpy ==1.2.3"),
        ("numpy>=1.2,<2", "numpy >=1.2,<2"),
        ("numpy > 1.2 , < 3", "numpy >1.2,<3"),
        ("numpy>1.2.*", "numpy >1.2"),
        ("numpy>=1.2.*", "numpy >=1.2"),
        ("numpy=1.2,<3", "numpy 1.2.*,<3"),
        ("numpy>=1.11|1.10", "numpy >=1.11|==1.10"),
        ("numpy >1.8,<2|==1.7", "numpy >1.8,<2|==1.7"),
        ("numpy=1.11.1|1.11.3", "numpy 1.11.1.*|==1.11.3"),
        ("numpy ~=1.24.0", "numpy ~=1.24.0"),
        ("numpy!=1.24", "numpy !=1.24"),
        ("numpy=1.2=py39_0", "numpy ==1.2 py39_0"),
        ("numpy 1.8.1 py27_0", "numpy ==1.8.1 py27_0"),
        ("numpy=*=*mkl*", "numpy * *mkl*"),
        ("pytorch=2.0=*cuda*", "pytorch ==2.0 *cuda*"),
        ("numpy[version='>=1.2',build=py*]", "numpy >=1.2 py*"),
        ("numpy[version=1.8]", "numpy ==1.8"),
        ("numpy=1.24[build=py*]", "numpy 1.24.* py*"),
        ("numpy[build_number='>=1']", 'numpy[build_number=">=1"]'),
        ("numpy[license=MIT]", 'numpy[license="MIT"]'),
        ("conda-forge::numpy", "conda-forge::numpy"),
        ("conda-forge::numpy=1.24", "conda-forge::numpy 1.24.*"),
        ("conda-forge/linux-64::numpy", "conda-forge/linux-64::numpy"),
        ("*/linux-64::numpy", 'numpy[subdir="linux-64"]'),
        ("numpy[channel=conda-forge]", "conda-forge::numpy"),
        (f"{FORGE}::numpy", "conda-forge::numpy"),
        ("https://h.org/own::numpy=1", 'numpy 1.*[channel="https://h.org/own/"]'),
        ("pkgs/main::numpy", 'numpy[channel="https://repo.anaconda.com/pkgs/main/"]'),
        ("numpy=1!2.0", "numpy 1!2.0.*"),
        ("openssl=1.1.1l", "openssl 1.1.1l.*"),
        ("__cuda>=12", "__cuda >=12"),
    ],
)
def test_each_form_that_conda_documents_is_read_with_condas_meaning(
    written: str, read: str
) -> None:
    requirement, _ = parse_conda_requirement(written, alias=ALIAS)
    assert requirement.text == read
    assert str(MatchSpec(read, strict=True)) == read
    assert parse_conda_requirement(read, alias=ALIAS)[0] == requirement


@pytest.mark.parametrize(
    ("line", "message", "hint"),
    [
        ("1.2", "is a number, not a package", "Name the package"),
        ("'num py'", "which has no number", "contain no space"),
        ("numpy=<1.2", "is not a requirement", "Write '>='"),
        ("numpy@1.2", "is not a requirement", "numpy =1.26"),
        ("numpy===1.2", "is not a requirement", "exact version"),
        ("numpy>=", "is not a requirement", "Write it like"),
        ("numpy-*", "is not a requirement", "Write it like"),
        ("'numpy[foo=bar]'", "invalid bracket key", "Write it like"),
        ("numpy >2,<1", "excludes every version", "Loosen"),
        ("httpx[http2]", "is not a requirement", "under 'pip:'"),
        ("conda-forge:numpy", "one ':'", "CHANNEL::NAME"),
        ("$CHANNEL::numpy", "shell variable", "Write the channel"),
        ("./pkg", "path on your machine", "Publish"),
        ("https://h.org/noarch/a-1-0.conda", "address of a file", "@EXPLICIT"),
        ("git+https://h.org/a", "address of a repository", "Publish"),
        ("-r other.txt", "is an option", "one by one"),
        ("ftp://h.org/x::numpy", "ftp is not http", "https://HOST"),
        ("n\u00fcmpy", "characters that are not allowed", "Write it like"),
        ("npm: [x]", "'npm' is not a known key here", "Only 'pip:'"),
        ("numpy: 1.26", "'numpy' is not a known key here", "numpy =1.26"),
        ("[numpy]", "Expected a package, found a list", "indentation"),
        ("", "Expected a package, found nothing", "indentation"),
    ],
)
def test_what_is_no_requirement_is_refused_with_its_line(
    line: str, message: str, hint: str
) -> None:
    where, said, advice = only(dependencies("python", line))
    assert where == "dependencies[1], line 3"
    assert message in said
    assert hint in advice


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("numpy=1.24", "numpy=2.3"),
        ("numpy==1.24.1", "numpy>=1.25"),
        ("numpy<2", "numpy>=2"),
        ("numpy=1.24=py39_0", "numpy=1.24=py310_0"),
        ("numpy=1.24=py39_0", "numpy * mkl*"),
        ("conda-forge::numpy", "bioconda::numpy"),
    ],
)
def test_requirements_that_exclude_each_other_are_refused_with_both_lines(
    first: str, second: str
) -> None:
    where, message, _ = only(dependencies(first, "scipy", second))
    assert where == "dependencies[2], line 4"
    assert "(line 2)" in message
    assert "(line 4) exclude each other" in message


@pytest.mark.parametrize(
    ("first", "second", "kept"),
    [
        ("numpy=1.24", "numpy>=1.20", ("numpy 1.24.*", "numpy >=1.20")),
        ("numpy", "numpy<2", ("numpy", "numpy <2")),
        ("numpy!=1.2", "numpy==1.2", ("numpy !=1.2", "numpy ==1.2")),
        ("numpy * py39*", "numpy * *_0", ("numpy * *_0", "numpy * py39*")),
    ],
)
def test_requirements_that_may_hold_together_are_both_kept(
    first: str, second: str, kept: tuple[str, ...]
) -> None:
    specification = parse(dependencies(first, second)).specification
    assert specification.dependencies["linux-64"] == tuple(sorted(kept))


def test_the_same_requirement_twice_is_kept_once_with_a_warning() -> None:
    submission = parse(dependencies("numpy=1.24", "scipy", "numpy 1.24.*"))
    assert submission.specification.dependencies["linux-64"] == ("numpy 1.24.*", "scipy")
    assert submission.warnings == (
        "dependencies[2], line 4: numpy 1.24.* is listed twice, first in line 2.",
    )


def test_a_channel_that_only_a_requirement_names_is_added_last_with_a_warning() -> None:
    submission = parse(dependencies("bioconda::samtools"))
    assert submission.specification.channels == (FORGE, f"{ALIAS}/bioconda")
    assert "lowest priority" in submission.warnings[0]


# --- requirements of pip ----------------------------------------------------------------------


def pip(*lines: str) -> str:
    return "dependencies:\n  - python\n  - pip:\n" + "".join(f"      - {line}\n" for line in lines)


def test_requirements_of_pip_are_normalised_and_sorted() -> None:
    specification = parse(
        pip("Zope_Interface", "httpx[socks, http2]<1,>=0.28", "'a==1; sys_platform==\"win32\"'")
    ).specification
    assert specification.pip["linux-64"] == (
        'a==1; sys_platform == "win32"',
        "httpx[http2,socks]<1,>=0.28",
        "zope-interface",
    )


def test_a_fault_of_a_pip_line_names_its_place() -> None:
    where, said, _ = only(pip("httpx", "-r more.txt"))
    assert where == "dependencies[1].pip[1], line 5"
    assert "a file on your machine" in said


def test_options_and_sources_of_a_pip_part_are_part_of_the_specification() -> None:
    commit, digest = "a" * 40, "b" * 64
    submission = parse(
        pip(
            "--extra-index-url https://download.pytorch.org/whl/cu118/",
            "-f https://data.pyg.org/whl/torch.html",
            "--pre",
            "--prefer-binary",
            f"httpx==1.0 --hash=sha256:{digest}",
            f"-e git+https://github.com/acme/lib.git@{commit}#egg=lib",
        )
    )
    specification = submission.specification
    options = specification.pip_options["linux-64"]
    assert options.extra_indexes == ("https://download.pytorch.org/whl/cu118",)
    assert options.find_links == ("https://data.pyg.org/whl/torch.html",)
    assert options.prereleases
    assert options.hashes == {"httpx": (digest,)}
    assert specification.pip["linux-64"] == (
        "httpx==1.0",
        f"lib @ git+https://github.com/acme/lib.git@{commit}",
    )
    assert specification.pip_urls == (
        "https://github.com/acme/lib.git",
        "https://download.pytorch.org/whl/cu118",
        "https://data.pyg.org/whl/torch.html",
    )
    assert "'--prefer-binary' is ignored" in submission.warnings[0]
    assert "is installed as a package" in submission.warnings[1]
    again = Specification.from_json(specification.to_json())
    assert again == specification
    assert again.digest != parse(pip("httpx==1.0")).specification.digest
    assert "pip_options" not in parse(pip("httpx==1.0")).specification.to_json()


def test_versions_of_pip_that_exclude_each_other_are_refused() -> None:
    assert "a==1 (line 4) and a==2 (line 5) exclude" in only(pip("a==1", "a==2"))[1]
    assert "exclude each other" in only(pip("a==1.5", "a>=2"))[1]
    markers = ("a==1; python_version<'3.12'", "a==2; python_version>='3.12'")
    assert len(parse(pip(*markers)).specification.pip["linux-64"]) == 2


def test_a_package_that_is_asked_of_conda_and_of_pip_is_a_warning() -> None:
    submission = parse("dependencies:\n  - numpy\n  - pip:\n      - NumPy>=1\n")
    assert "numpy is required from conda too" in submission.warnings[0]


def test_an_empty_pip_part_is_none() -> None:
    assert parse("dependencies:\n  - python\n  - pip:\n").specification.pip == {"linux-64": ()}


# --- channels and credentials -----------------------------------------------------------------


def test_credentials_leave_everything_but_the_place_that_is_made_for_them() -> None:
    text = """\
# old: https://me:PASSWORD@h.org/own
channels: [https://me:PASSWORD@h.org/own, "https://h.org/t/TOKEN/more", conda-forge]
dependencies:
  - https://h.org/t/OTHER/third::numpy   # keep
"""
    submission = parse(text)
    assert (
        submission.source
        == """\
# old: https://h.org/own
channels: [https://h.org/own, "https://h.org/more", conda-forge]
dependencies:
  - https://h.org/third::numpy   # keep
"""
    )
    assert {(c.url_prefix, c.kind, c.secret) for c in submission.credentials} == {
        ("https://h.org/own", "basic", "me:PASSWORD"),
        ("https://h.org/more", "token", "TOKEN"),
        ("https://h.org/third", "token", "OTHER"),
    }
    retained = repr(submission) + json.dumps(submission.specification.to_json())
    for secret in ("PASSWORD", "TOKEN", "OTHER"):
        assert secret not in retained
    assert parse(submission.source).specification == submission.specification


def test_credentials_that_could_not_be_taken_out_of_the_text_are_refused() -> None:
    text = 'channels: ["https:\\x2f/me:PASSWORD@h.org/own"]\ndependencies: [x]'
    where, message, _ = only(text)
    assert "in a form that cannot be removed" in message
    assert "PASSWORD" not in where + message


@pytest.mark.parametrize(
    ("channel", "message"),
    [
        ("https://$ME:$PASS@h.org/own", "shell variable"),
        ("https://me:p/SECRET@h.org/own", "cannot be read"),
        ("ftp://me:SECRET@h.org/own", "ftp is not http"),
        ("../own", "not the name of a channel"),
        ("conda-forge/noarch", "not the name of a channel"),
    ],
)
def test_a_channel_that_cannot_be_is_refused_with_its_line(channel: str, message: str) -> None:
    where, said, hint = only(f"channels:\n  - conda-forge\n  - {channel}\ndependencies: [x]\n")
    assert where == "channels[1], line 3"
    assert message in said
    assert "SECRET" not in said + hint


# --- keys and values --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "where", "message", "hint"),
    [
        ("pip-repositories: [x]", "pip-repositories, line 2", "a Python index", "administrators"),
        ("name: [x]", "name, line 2", "Expected text, found a list", "indentation"),
        ("channels: conda-forge", "channels, line 2", "Expected a list of channels", "'-'"),
        ("channels: [[x]]", "channels[0], line 2", "Expected text, found a list", "'-'"),
        ("platforms: [linux64]", "platforms[0], line 2", "not a known platform", "'linux-64'"),
        ("platforms: [noarch]", "platforms[0], line 2", "not a known platform", "Use one of"),
        ("variables: [x]", "variables, line 2", "Expected a mapping", "indentation"),
        ("variables: {a-b: 1}", "variables.a-b, line 2", "not a valid name of an env", "letters"),
        ("variables: {A: [1]}", "variables.A, line 2", "Expected text", "indentation"),
        ('variables: {A: "1\\n2"}', "variables.A, line 2", "line break", "one line"),
        ("condastore: [x]", "condastore, line 2", "Expected a mapping", "indentation"),
        ("condastore: {test: 1}", "condastore.test, line 2", "not a known", "'tests'"),
        ("condastore: {tests: [x]}", "condastore.tests, line 2", "Expected a mapping", ""),
        ("condastore: {tests: {import: [x]}}", "condastore.tests.import", "", "'imports'"),
        ("condastore: {tests: {imports: ['a;b']}}", "condastore.tests.imports[0]", "module", ""),
        ("condastore: {tests: {commands: [' ']}}", "condastore.tests.commands[0]", "empty", ""),
        ("condastore: {virtual-packages: [cuda]}", "condastore.virtual-packages[0]", "", "__cuda"),
        ("condastore: {virtual-packages: [__a=1, __a=2]}", "condastore.", "twice", "Keep one"),
        (
            "condastore: {exclude-newer: soon}",
            "condastore.exclude-newer",
            "neither a date",
            "7 days",
        ),
        (
            "condastore: {exclude-newer: 2025-02-30}",
            "condastore.exclude-newer",
            "neither a date",
            "",
        ),
        ("condastore: {exclude-newer: 900 years}", "condastore.exclude-newer", "100 years", ""),
    ],
)
def test_a_value_that_cannot_be_is_refused_with_its_key_and_line(
    text: str, where: str, message: str, hint: str
) -> None:
    location, said, advice = only(f"dependencies: [x]\n{text}\n")
    assert location.startswith(where)
    assert "line 2" in location
    assert message in said
    assert hint in advice


def test_every_fault_is_reported_at_once_in_the_order_of_the_lines() -> None:
    found = faults("name: [x]\nchannels: ['..']\ndependencies:\n- numpy=<1\n- pip:\n  - ./x\n")
    assert [where for where, _, _ in found] == [
        "name, line 1",
        "channels[0], line 2",
        "dependencies[0], line 4",
        "dependencies[1].pip[0], line 6",
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "empty"),
        ("# nothing\n", "empty"),
        ("just text", "not an environment file: it is text"),
        ("- numpy", "not an environment file: it is a list"),
        ("name: x", "'dependencies' is missing"),
        ("dependencies: numpy", "Expected a list of packages"),
    ],
)
def test_a_text_that_is_no_environment_file_is_refused(text: str, message: str) -> None:
    assert message in only(text)[1]


# --- YAML of strangers ------------------------------------------------------------------------


def _bomb() -> str:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 10)]
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("a: [", "line", "A value is missing here"),
        ("a: {b: c", "line", "not closed"),
        ("a:\n\t- b", "line 2", "indented with a tab"),
        ("a: b: c", "line 1", "':' is not allowed here"),
        ('a: "b', "line 1", "inside of quotes"),
        ("a: @b", "line 1", "cannot start a value"),
        ("a: 1\n---\nb: 2", "line 2", "A second document"),
        ("a: !!python/object:os.system x", "line 1", "tag"),
        ("a: 1\nb: 2\na: 3", "line 3", "'a' is listed twice: lines 1 and 3"),
        ("a: &x 1\nb:\n  <<: *x", "line 3", "Merge keys"),
        ("a: *x", "line 1", "without an anchor"),
        ("a: &x [*x]", "line 1", "without an anchor"),
        ("? [a]\n: b", "line 1", "key must be text"),
        ("[" * 50, "line 1", "more than 20 deep"),
        ("[" * 500_000, "line 1", "more than 20 deep"),
        ("- " * 50, "line 1", "more than 20 deep"),
        ("{a: " * 50, "line 1", "more than 20 deep"),
        (_bomb(), "line 4", "More than 20 aliases"),
        ("a: b\0", "line 1", "U+0000"),
        ("a: 1\nb: \x1b[31m", "line 2", "U+001B"),
        ("a: b\x85c", "line 1", "U+0085"),
        ("a: \ud800", "line 1", "not UTF-8"),
        (b"a: 1\nb: \xff", "line 2", "not UTF-8"),
    ],
)
def test_yaml_that_cannot_be_read_is_refused_in_plain_words_with_the_line(
    text: str | bytes, line: str, message: str
) -> None:
    where, said, _ = faults(text)[0]
    assert where.startswith(line)
    assert message in said
    assert "\n" not in said


def test_a_few_aliases_are_read() -> None:
    text = "channels: &c [conda-forge]\ndependencies: [&p numpy, scipy]\nvariables: {A: *p}\n"
    assert parse(text).specification.variables == {"A": "numpy"}


def test_two_levels_of_aliases_cannot_grow_without_limit() -> None:
    wide = f"a: &a [{'x, ' * 30_000}]\nb: [{', '.join(['*a'] * 20)}]"
    assert "more than 400,000 values" in only(wide)[1]


def test_five_megabytes_are_refused_before_they_are_read() -> None:
    text = dependencies(*("x" for _ in range(1_000_000)))
    where, message, _ = only(text)
    assert where == ""
    assert "the maximum is 1,048,576" in message


def test_a_lock_has_a_limit_of_its_own() -> None:
    text = "version: 1\nmetadata: {}\npackage: []\n" + "#" * 200
    assert parse(text, max_bytes=100).specification.kind == "lock"
    assert "the maximum is 100" in only(text, max_bytes=10, max_lock_bytes=100)[1]


def test_more_dependencies_than_anyone_needs_are_refused() -> None:
    assert "2,001 dependencies" in only(dependencies(*(f"p{i}" for i in range(2001))))[1]


def test_more_requirements_of_one_package_than_anyone_needs_are_refused() -> None:
    assert (
        "More than 20 requirements of a."
        in only(dependencies(*(f"a<{i}" for i in range(1, 99))))[1]
    )


def test_of_very_many_faults_the_first_are_reported_and_the_rest_counted() -> None:
    found = faults(dependencies(*(f"p{i}=<1" for i in range(500))))
    assert len(found) == 101
    assert found[-1][1] == "There are 400 more faults."


@pytest.mark.parametrize(
    "line", ["a://" * 50_000, "a." * 100_000, "#[" * 100_000, "# [a](" * 30_000, "*" * 200_000]
)
def test_a_hostile_line_is_answered(line: str) -> None:
    faults(f"channels: ['https://me:PASS@h.org/own']\ndependencies:\n  - {line}\n  - 'x=>1'\n")


@settings(max_examples=300, deadline=None)
@given(
    st.one_of(
        st.text(max_size=200),
        st.binary(max_size=100),
        st.lists(
            st.sampled_from(
                [*FILE.splitlines(), "  - *a", "a: &a", "{", "]", "- -", "\t", "# [win]", "<<: x"]
            ),
            max_size=15,
        ).map("\n".join),
    )
)
def test_any_text_gives_a_specification_or_faults(text: str | bytes) -> None:
    try:
        submission = parse(text)
    except SpecificationError:
        return
    specification = submission.specification
    again = Specification.from_json(json.loads(json.dumps(specification.to_json())))
    assert again.digest == specification.digest


# --- selectors --------------------------------------------------------------------------------


def test_a_selector_keeps_its_line_for_its_platforms_only() -> None:
    text = dependencies("a # [linux]", "b # [osx]", "c # [unix]", "d # [win]", "e # [arm64]")
    specification = parse(text + "platforms: [linux-64, osx-arm64, win-64]\n").specification
    assert specification.dependencies == {
        "linux-64": ("a", "c"),
        "osx-arm64": ("b", "c", "e"),
        "win-64": ("d",),
    }


@pytest.mark.parametrize("comment", ["# [osx and arm64]", "# [not win]", "# see issue [12]"])
def test_a_selector_that_conda_lock_would_drop_everywhere_is_refused(comment: str) -> None:
    where, message, hint = only(dependencies("a", f"b  {comment}"))
    assert where == "line 3"
    assert "is not a known selector" in message
    assert "Use one word of" in hint


def test_brackets_elsewhere_are_text_and_a_selector_elsewhere_is_a_warning() -> None:
    text = "variables:\n  A: 1 # [win]\ndependencies: [x]\ncondastore:\n  description: a #1 [b]\n"
    submission = parse(text)
    assert submission.specification.variables == {"A": "1"}
    assert submission.warnings == ("Line 2: selectors have an effect under 'dependencies' only.",)


_lines = st.lists(
    st.text(alphabet="ab#[]() linuxwos64", max_size=30)
    | st.builds(
        "{}{}[{}]{}".format,
        st.sampled_from(["- a ", "a", "", " "]),
        st.sampled_from(["#", "# ", "# x ", " ## ", ""]),
        st.sampled_from(["linux", "win", "unix", "osx", "linux64", "nonsense", "a]b"]),
        st.sampled_from(["", " ", " x", "(x)", " [win]"]),
    ),
    max_size=6,
)
_CONDA_LOCKS = ("linux-64", "linux-aarch64", "linux-ppc64le", "osx-64", "osx-arm64", "win-64")


@pytest.mark.filterwarnings("ignore::PendingDeprecationWarning", "ignore::DeprecationWarning")
@settings(max_examples=300, deadline=None)
@given(_lines, st.sampled_from(_CONDA_LOCKS))
def test_selectors_are_read_as_conda_lock_reads_them(lines: list[str], platform: str) -> None:
    from conda_lock.src_parser.selectors import filter_platform_selectors

    text = "\n".join(lines)
    if selector_faults(text, range(1, 100)):
        return
    theirs = [line for line in filter_platform_selectors(text, platform) if line]
    ours = lines_for(text, platform).splitlines()
    assert [line for line in ours if line and not line.lstrip().startswith("#")] == theirs


def test_every_known_platform_has_selectors() -> None:
    for platform in KNOWN_PLATFORMS:
        family = platform.split("-")[0]
        assert "a" in lines_for(f"a # [{family}]", platform)


# --- locks as specifications ------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(locks())
def test_a_lock_is_told_apart_by_its_content_and_survives_json(lock: Any) -> None:
    submission = parse(conda_lock_yml(lock))
    specification = submission.specification
    assert specification.kind == "lock"
    assert specification.lock is not None
    assert specification.lock.digest == lock.digest
    assert specification.platforms == tuple(part.platform for part in lock)
    assert Specification.from_json(specification.to_json()) == specification
    platform = lock.platforms[0].platform
    explicit = parse(explicit_txt(lock, platform)).specification
    assert (explicit.kind, explicit.platforms) == ("explicit", (platform,))
    assert explicit.digest != specification.digest


# --- exclude-newer ----------------------------------------------------------------------------

NOW = datetime(2025, 6, 30, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("written", "kept", "moment"),
    [
        ("7 days", "P7D", datetime(2025, 6, 23, 12, tzinfo=UTC)),
        ("7d", "P7D", datetime(2025, 6, 23, 12, tzinfo=UTC)),
        ("1 week", "P7D", datetime(2025, 6, 23, 12, tzinfo=UTC)),
        ("P1W", "P7D", datetime(2025, 6, 23, 12, tzinfo=UTC)),
        ("PT36H", "PT36H", datetime(2025, 6, 29, tzinfo=UTC)),
        ("P1DT12H", "PT36H", datetime(2025, 6, 29, tzinfo=UTC)),
        ("2025-01-31", "2025-01-31", datetime(2025, 2, 1, tzinfo=UTC)),
        (
            "2025-01-31T12:00:00+02:00",
            "2025-01-31T10:00:00Z",
            datetime(2025, 1, 31, 10, tzinfo=UTC),
        ),
        ("2025-01-31 12:00", "2025-01-31T12:00:00Z", datetime(2025, 1, 31, 12, tzinfo=UTC)),
        ("", "", None),
    ],
)
def test_a_date_or_an_age_bounds_what_may_be_chosen(
    written: str, kept: str, moment: datetime | None
) -> None:
    assert parse_exclude_newer(written) == kept
    assert parse_exclude_newer(kept) == kept
    assert newest_allowed(kept, NOW) == moment
