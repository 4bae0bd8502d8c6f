"""Texts that people have: line ends, keys of other tools, names that are paths, other formats."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from condastore.errors import SpecificationError
from environments.domain.default_channels import CONDA_DEFAULTS
from environments.domain.lockfiles import unhashed
from environments.domain.names import printable
from environments.domain.specification import Defaults, Submission
from environments.domain.specification_forms import parse_specification

FORGE = "https://conda.anaconda.org/conda-forge"
MAIN, R = CONDA_DEFAULTS


def parse(text: str | bytes, **defaults: Any) -> Submission:
    return parse_specification(text, defaults=Defaults(**defaults))


def faults(text: str | bytes, **defaults: Any) -> list[tuple[str, str, str]]:
    with pytest.raises(SpecificationError) as caught:
        parse(text, **defaults)
    return [(fault.where, fault.message, fault.hint) for fault in caught.value.faults]


# --- line ends and encodings --------------------------------------------------------------------

FILE = """\
name: ml
dependencies:
  - numpy >=1.26  # not older
  - pywin32  # [win]
  - pip:
      - httpx
variables:
  TEXT: |
    one
"""
LIST = f"# platform: linux-64\n@EXPLICIT\n{FORGE}/noarch/a-1-0.conda#{'0' * 32}\n"


def _lock(packages: int = 1, **changes: Any) -> dict[str, Any]:
    return {
        "version": 1,
        "metadata": {
            "content_hash": {"linux-64": "0" * 64},
            "channels": [{"url": "conda-forge", "used_env_vars": []}],
            "platforms": ["linux-64"],
            "sources": ["environment.yml"],
        },
        "package": [
            {
                "name": f"a{number}",
                "version": "1",
                "manager": "conda",
                "platform": "linux-64",
                "dependencies": {},
                "url": f"{FORGE}/noarch/a{number}-1-0.conda",
                "hash": {"md5": "0" * 32, "sha256": "1" * 64},
                "category": "main",
                "optional": False,
            }
            | changes
            for number in range(packages)
        ],
    }


LOCK = json.dumps(_lock(), indent=4)


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.replace("\n", "\r\n"),
        lambda text: text.replace("\n", "\r"),
        lambda text: text.replace("\n", "\r\n").encode(),
        lambda text: f"\ufeff{text}",
        lambda text: b"\xef\xbb\xbf" + text.encode(),
        lambda text: b"\xff\xfe" + text.replace("\n", "\r\n").encode("utf-16-le"),
        lambda text: b"\xfe\xff" + text.encode("utf-16-be"),
    ],
    ids=["crlf", "cr", "crlf-bytes", "bom", "bom-bytes", "powershell", "utf-16-be"],
)
@pytest.mark.parametrize("text", [FILE, LIST, LOCK, "a=1=0\n"], ids=["file", "list", "lock", "e"])
def test_line_ends_and_marks_of_other_systems_change_nothing(
    text: str, change: Callable[[str], str | bytes]
) -> None:
    one = text.replace("  TEXT: |\n    one\n", "  TEXT: one\n")
    submission = parse(change(one))
    assert submission == parse(one)
    assert "\r" not in submission.source


def test_the_line_of_a_fault_is_right_whatever_ends_the_lines() -> None:
    for end in ("\n", "\r\n", "\r"):
        text = end.join(["dependencies:", "- numpy", "- 'num py'"])
        assert faults(text)[0][0] == "dependencies[1], line 3"


@pytest.mark.parametrize("character", ["\0", "\v", "\f", "\x1b", "\x85", "\u2028"])
def test_other_control_characters_are_refused_with_their_line(character: str) -> None:
    ((where, message, _),) = faults(f"dependencies:\r\n- a\r\n- b{character}")
    assert (where, message) == (
        "line 3",
        f"The text contains a control character (U+{ord(character):04X}).",
    )


# --- keys and names -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "warning"),
    [
        ("prefix: /home/me/env", "Line 1: 'prefix' is ignored: the server chooses the folder"),
        ("category: dev", "Line 1: 'category' is ignored: every package belongs"),
        ("platform: linux-64", "Line 1: 'platform' is ignored: write 'platforms:' with a list."),
        ("channel_priority: flexible", "Line 1: 'channel_priority' is ignored: channels always"),
        ("extras: {a: [b]}", "Line 1: 'extras' is ignored: it is not a known key."),
        ("x-anchors: [a]", "Line 1: 'x-anchors' is ignored: it is not a known key."),
        ("chanels: [x]", "it is not a known key. Did you mean 'channels'?"),
        ("tests: {}", "Line 1: 'tests' is ignored: it belongs under 'condastore:'."),
        ("pip: [x]", "Line 1: 'pip' is ignored: 'pip:' must be an entry of 'dependencies'."),
        ("zzz: 1", "Line 1: 'zzz' is ignored: it is not a known key."),
        ('"z\\e[1m": 1', "Line 1: 'z\\x1b[1m' is ignored"),
        ("name: /srv/envs/ml", "name, line 1: the name is a path and is ignored"),
        ("name: 'C:\\envs\\ml'", "name, line 1: the name is a path and is ignored"),
        ("name: ../up", "name, line 1: the name is a path and is ignored"),
        ('name: "a\\nb"', "name, line 1: 'a\\nb' is not a valid name of an environment"),
        ("name: a:b", "name, line 1: 'a:b' is not a valid name of an environment"),
        ("description: [a]", "Line 1: 'description' is ignored: it is a list."),
        (f"description: {'a' * 4001}", "it has 4,001 characters, and the maximum is 4,000"),
    ],
)
def test_what_has_no_effect_is_a_warning(key: str, warning: str) -> None:
    submission = parse(f"{key}\ndependencies: [x]")
    assert warning in submission.warnings[0]
    assert submission.specification == parse("dependencies: [x]").specification


def test_the_description_is_that_of_the_file_unless_there_is_one_for_condastore() -> None:
    file = "description: |\n  For all.\ndependencies: [x]\n"
    assert parse(file).specification.description == "For all."
    assert parse(file).warnings == ()
    both = f"{file}condastore:\n  description: For us.\n"
    assert parse(both).specification.description == "For us."


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("name: x", "List the packages under 'dependencies:'."),
        ("channels: [x]\ndependancies: [x]", "Line 2 has 'dependancies': write 'dependencies'."),
    ],
)
def test_a_file_without_dependencies_is_refused(text: str, hint: str) -> None:
    ((where, message, advice),) = faults(text)
    assert (where, message) == ("line 1", "The key 'dependencies' is missing.")
    assert hint in advice


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("version: 6\nenvironments: {}\npackages: []\n", "a pixi.lock"),
        (
            '{"bomFormat": "CycloneDX", "specVersion": "1.6", "dependencies": [{"ref": "a"}]}',
            "a bill of materials",
        ),
        ('{"payloadType": "x", "payload": "eA==", "signatures": []}', "a signed statement"),
        ('{"_type": "x", "predicateType": "y", "subject": []}', "a statement (in-toto)"),
    ],
)
def test_a_file_of_another_kind_is_named_once(text: str, kind: str) -> None:
    ((where, message, advice),) = faults(text)
    assert where == "line 1"
    assert message.startswith(f"The file is {kind}")
    assert "conda-lock.yml" in advice


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("numpy==1.0\npandas[excel] >=2 ; python_version > '3'\n# more\n", "requirements.txt"),
        ("numpy\n", "requirements.txt"),
        ("# packages in environment at /opt:\nnumpy 1 0 main\n", "conda list --export"),
        ("<!DOCTYPE html>\n<p>no</p>\n", "web page"),
        ("Dear all,\nthis is what I need.\n", "Start it with 'dependencies:'"),
    ],
)
def test_a_text_without_keys_is_refused_with_what_to_submit(text: str, hint: str) -> None:
    ((_, message, advice),) = faults(text)
    assert message == "The text is not an environment file: it is text without keys."
    assert hint in advice


# --- requirements -------------------------------------------------------------------------------


def test_equals_greater_is_read_as_conda_reads_it() -> None:
    submission = parse("dependencies: ['constructor=>3.1']")
    assert submission.specification.dependencies["linux-64"] == ("constructor >=3.1",)
    (warning,) = submission.warnings
    assert warning == (
        "dependencies[0], line 1: 'constructor=>3.1' is read as 'constructor >=3.1', as conda "
        "reads it."
    )
    ((_, _, hint),) = faults("dependencies: ['constructor=<3.1']")
    assert hint == "Write '>=' and '<=', not '=>' and '=<'."


@pytest.mark.parametrize(
    ("written", "channel"),
    [
        ("defaults::six", MAIN),
        ("defaults::six >=1.16", MAIN),
        ("defaults/noarch::six", MAIN),
        ('six[channel=defaults,version=">=1"]', MAIN),
        ("defaults::r-base=4.3", R),
        ("defaults::_r-mutex", R),
        ("defaults::r", R),
        ("defaults::rstudio", R),
        ("defaults::ripgrep", MAIN),
    ],
)
def test_defaults_before_a_package_is_condas(written: str, channel: str) -> None:
    submission = parse(f"channels: [conda-forge]\ndependencies: ['{written}']")
    assert submission.specification.channels == (FORGE, MAIN, R)
    (requirement,) = submission.specification.dependencies["linux-64"]
    assert f'channel="{channel}/' in requirement


def test_defaults_is_condas_in_settings_and_locks_too() -> None:
    listed = parse("dependencies: [x]", channels=("defaults", "conda-forge"))
    assert listed.specification.channels == (MAIN, R, FORGE)
    lock = _lock()
    lock["metadata"]["channels"] = [{"url": "defaults", "used_env_vars": []}]
    assert parse(json.dumps(lock)).specification.channels == (MAIN, R, FORGE)


def test_selectors_of_mamba_choose_by_platform() -> None:
    text = """\
platforms: [linux-64, osx-arm64, win-64]
dependencies:
  - python
  - sel(linux): gdb
  - sel(osx): lldb >=15
  - sel(unix): make
  - sel(win): vs2022_win-64
"""
    assert parse(text).specification.dependencies == {
        "linux-64": ("gdb", "make", "python"),
        "osx-arm64": ("lldb >=15", "make", "python"),
        "win-64": ("python", "vs2022_win-64"),
    }


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("sel(bsd): gdb", "'sel(bsd)' is not a known selector."),
        ("sel(linux): [gdb, make]", "Expected a package, found a list."),
        ("sel(linux): 'num py'", "which has no number"),
    ],
)
def test_a_selector_of_mamba_that_cannot_be_read_is_refused(entry: str, message: str) -> None:
    ((where, said, _),) = faults(f"dependencies:\n  - python\n  - {entry}\n")
    assert where == "dependencies[1], line 3"
    assert message in said


# --- locks --------------------------------------------------------------------------------------


def test_a_lock_is_read_as_conda_store_stores_it() -> None:
    submission = parse(LOCK)
    assert submission.specification.kind == "lock"
    assert submission.specification.channels == (FORGE,)
    retained = {"name": "ml", "description": "\U0001f40d and so on", "lockfile": _lock()}
    wrapped = parse(json.dumps(retained))
    assert wrapped.specification.lock == submission.specification.lock
    assert wrapped.specification.description == "\U0001f40d and so on"
    assert wrapped.specification.digest == submission.specification.digest


def test_a_lock_without_a_version_is_version_1_and_keys_have_no_order() -> None:
    lock = _lock()
    del lock["version"]
    assert parse(json.dumps(lock)).specification == parse(LOCK).specification
    turned = dict(reversed(_lock().items()))
    assert parse(json.dumps(turned)).specification == parse(LOCK).specification
    ((where, message, _),) = faults(json.dumps(_lock() | {"version": 2}))
    assert (where, message) == (
        "line 1",
        "The lock file has version '2'; only version 1 is supported.",
    )


def test_a_fault_of_many_packages_of_a_lock_is_reported_once() -> None:
    git = _lock(
        packages=3,
        manager="pip",
        url="git+https://github.com/x/y.git@0123456789012345678901234567890123456789",
        hash={"sha256": "0123456789012345678901234567890123456789"},
    )
    ((where, message, hint),) = faults(json.dumps(git))
    assert where == "package[0], line 1"
    assert message == "From a repository of source code, not from a Python index: a0, a1, a2."
    assert "Submit the environment file" in hint
    ((_, message, _),) = faults(json.dumps(_lock(packages=40, hash={})))
    assert message.startswith("No hash, so that the bytes could not be checked: a0, a1, a2,")
    assert message.endswith("a9 and 30 more.")


def test_an_explicit_list_may_leave_hashes_to_the_channel() -> None:
    text = (
        f"# platform: linux-64\n@EXPLICIT\n{FORGE}/noarch/a-1-0.conda\n{FORGE}/noarch/b-1-0.conda"
    )
    submission = parse(text)
    lock = submission.specification.lock
    assert lock is not None
    assert unhashed(lock, "linux-64") == ("a-1-0.conda", "b-1-0.conda")
    (warning,) = submission.warnings
    assert warning == (
        "The list has no hash for 2 of its packages: the hashes of their channels at the start of "
        "the build are used."
    )
    assert submission.specification.digest != parse(f"{text}#{'0' * 32}").specification.digest


# --- conda list --export ------------------------------------------------------------------------

EXPORT = """\
# This file may be used to create an environment using:
# $ conda create --name <env> --file <this file>
# platform: osx-arm64
# created-by: conda 24.1.0
numpy=1.26.4=py311h1234567_0
python=3.11.8=hdf0ec26_0_cpython
Foo_Bar=1.0=pypi_0
"""


def test_an_exported_list_asks_for_its_builds() -> None:
    submission = parse(EXPORT)
    specification = submission.specification
    assert specification.kind == "environment"
    assert specification.platforms == ("osx-arm64",)
    assert specification.dependencies == {
        "osx-arm64": ("numpy ==1.26.4 py311h1234567_0", "python ==3.11.8 hdf0ec26_0_cpython")
    }
    assert specification.pip == {"osx-arm64": ("foo-bar==1.0",)}
    assert submission.source == EXPORT
    assert submission.warnings == (
        f"The list names no channels: its packages are searched in {FORGE}.",
    )
    unnamed = parse("a=1=0\n")
    assert unnamed.warnings[1] == "The list names no platform: linux-64 is assumed."


def test_a_fault_of_an_exported_list_is_named_with_its_line() -> None:
    ((where, message, _),) = faults(f"{EXPORT}a=x=0\n")
    assert where == "dependencies[2], line 8"
    assert "which has no number" in message


# --- credentials --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("git+https://github.com/x/y.git@master", "git+https://github.com/x/y.git@master"),
        ("git+https://h.org:8443/x/y.git@v1#egg=y", "git+https://h.org:8443/x/y.git@v1#egg=y"),
        ("git+ssh://git@github.com/x/y.git@v1", "git+ssh://github.com/x/y.git@v1"),
        ("git+https://me:SECRET@h.org/x/y.git@v1", "git+https://h.org/x/y.git@v1"),
        ("git+https://SECRET@h.org/x/y.git@v1", "git+https://h.org/x/y.git@v1"),
        ("https://h.org/x@v1.zip", "https://h.org/x@v1.zip"),
        ("y @ https://h.org/x/y.zip", "y @ https://h.org/x/y.zip"),
        ("https://me:SE/CRET@h.org/x", "https://h.org/x"),
        ("https://me:1/SECRET@h.org/x", "https://h.org/x"),
        ("https://h.org:1/SECRET@h.org/x", "https://h.org/x"),
        ("git+https://me:SE/CRET@h.org/x@v1", "git+https://v1"),
        ("https://a.org/x,https://me:SE/CRET@h.org/x", "https://a.org/x,https://h.org/x"),
        ("https://h.org/t/SECRET/x@y", "https://h.org/x@y"),
    ],
)
def test_a_message_repeats_what_was_written_without_its_secrets(text: str, shown: str) -> None:
    assert printable(text) == repr(shown)


def test_a_login_elsewhere_stays_as_it_was_written_with_a_warning() -> None:
    text = """\
# https://me:SECRET@h.org/own
channels: ["https://me:SECRET@h.org/own"]
dependencies:
  - numpy  # https://me:SECRET@h.org/own
variables:
  DB: postgres://u:PASS@db/x
"""
    submission = parse(text)
    assert dict(submission.specification.variables) == {"DB": "postgres://u:PASS@db/x"}
    assert submission.source == text.replace("me:SECRET@", "")
    (warning,) = submission.warnings
    assert warning == (
        "variables.DB, line 6: the value contains a login, which everybody who may see the "
        "environment can read."
    )
    assert parse(submission.source).specification == submission.specification


def test_credentials_that_cannot_be_taken_out_are_refused_with_their_place() -> None:
    text = 'channels:\n- ok\n- "https:\\x2f/me:SECRET@h.org/own"\ndependencies: [x]'
    ((where, message, hint),) = faults(text)
    assert where == "channels[1], line 3"
    assert "in a form that cannot be removed" in message
    assert "SECRET" not in where + message + hint
