"""Wheels by URL, Git commits and other indexes in builds: who allows them, and what is recorded."""

from __future__ import annotations

import base64
import json
import subprocess
from urllib.parse import quote

import pytest

from condastore.errors import AccessDeniedError, PolicyError, RuleError
from environments.domain.lifecycle import BuildState
from environments.domain.policy import Effect, PipSources
from environments.domain.rendering import (
    conda_lock_yml,
    environment_yml,
    explicit_txt,
    pixi_lock,
)
from environments.domain.sbom import cyclonedx
from environments.jobs import builds
from environments.models import Blob, Build, Namespace, PolicyRule, PypiRecord
from environments.operations import policies
from environments.operations.provenance import provenance
from environments.services import folders
from environments.services.policies import policy_of
from tests.channels.server import serving
from tests.channels.simple_index import make_wheel, write_simple_index
from tests.environments.engine.pypi.test_direct_wheels import project
from tests.factories import make_namespace
from tests.services.git_server import git_server

pytestmark = pytest.mark.django_db(transaction=True)
S = BuildState
LOCAL = "http://127.0.0.1:*/*"


@pytest.fixture
def git(tmp_path):
    with git_server(tmp_path / "git") as server:
        yield server


def allow(actor, namespace=None, *, effect="enforce", name="sources", **settings):
    return policies.add_rule(
        actor=actor,
        namespace=namespace,
        kind="pip-sources",
        effect=effect,
        name=name,
        settings=settings,
    )


def text(*lines: str) -> str:
    return "dependencies:\n- python\n- pip:\n" + "".join(f"  - '{line}'\n" for line in lines)


def run(build: Build) -> Build:
    builds.run(build.pk)
    return Build.objects.get(pk=build.pk)


def said(build: Build) -> str:
    return "\n".join(build.log_from())


# --- who allows -----------------------------------------------------------------------------------


def test_nothing_is_allowed_until_an_administrator_of_the_installation_does(
    submit, research, dora, root, git
):
    repository = git.create("acme/lib", project())
    git.requests.clear()
    line = f"git+{repository.url}@{repository.head}"
    wheel = f"https://h.org/lib-1.0-py3-none-any.whl#sha256={'b' * 64}"
    for requested, message in (
        (line, "Git repositories are not allowed"),
        (wheel, "wheels by URL are not allowed"),
        ("--extra-index-url https://h.org/simple", "https://h.org/simple is not allowed here"),
    ):
        with pytest.raises(PolicyError, match=message) as caught:
            submit(text("httpx", requested))
        assert "an administrator of the installation allows" in caught.value.message
        assert caught.value.hint.startswith("Ask an administrator of the installation")
    with pytest.raises(AccessDeniedError):
        allow(dora, git=[LOCAL])
    allow(dora, research, git=[LOCAL], wheels=["https://*/*"], indexes=["https://*/*"])
    for requested in (line, wheel, "--extra-index-url https://h.org/simple"):
        with pytest.raises(PolicyError, match="not allowed"):
            submit(text("httpx", requested))
    assert git.requests == []


def test_a_rule_of_the_installation_holds_in_the_namespaces_that_it_names(research, root):
    other = make_namespace("other")
    allow(root, git=["https://github.com/acme/*"], namespaces=["res*"])

    def grants(namespace: Namespace) -> PipSources:
        rules = policy_of(namespace).rules
        return next(rule for rule in rules if isinstance(rule, PipSources))

    assert grants(research).git == ("https://github.com/acme/*",)
    assert grants(other).git == ()
    allow(root, name="more", effect="ask", wheels=["https://h.org/*"])
    merged = grants(research)
    assert (merged.git, merged.wheels) == (("https://github.com/acme/*",), ("https://h.org/*",))
    assert merged.effect is Effect.ASK


def test_a_namespace_narrows_what_the_installation_allows(submit, research, dora, root):
    allow(root, git=["https://*/*"])
    allow(dora, research, name="ours", git=["https://github.com/acme/*"])
    with pytest.raises(PolicyError, match=r"only https://github\.com/acme/"):
        submit(text(f"git+https://github.com/evil/lib@{'a' * 40}"))
    assert submit(text(f"git+https://github.com/acme/lib@{'a' * 40}"))


@pytest.mark.parametrize("pattern", ["*", "github.com/acme/*", "https://me:x@h.org/*", "ftp://h/*"])
def test_a_pattern_of_sources_names_its_scheme_and_no_login(root, pattern):
    with pytest.raises(RuleError):
        allow(root, git=[pattern])


# --- builds ---------------------------------------------------------------------------------------


def test_a_commit_becomes_an_environment_that_runs_and_is_recorded(
    submit, environment, root, git, alice
):
    allow(root, git=[LOCAL])
    repository = git.create("acme/lib", project(body="    value = 'from git'"))
    commit = repository.head
    build = run(submit(text(f"lib @ git+{repository.url}@{commit}", "tinyname")))
    assert build.state == S.READY, said(build)
    prefix = folders.link_path(environment.namespace.name, environment.name).resolve()
    answer = subprocess.run(
        [prefix / "bin/python", "-c", "import lib; print(lib.VALUE)"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert answer.stdout.strip() == "from git"
    lock = build.lock.value()
    [package] = [each for each in lock.platforms[0].pypi if each.name == "lib"]
    location = f"git+{repository.url}@{commit}"
    assert (package.url, package.direct, package.license) == (location, True, "MIT")
    assert Blob.objects.filter(sha256=package.sha256, damaged_at=None).exists()
    assert PypiRecord.objects.get(name="lib").direct
    assert location in conda_lock_yml(lock)
    assert f"lib @ {location}" in environment_yml(lock, "linux-64")
    assert f"# pip lib @ {location}" in explicit_txt(lock, "linux-64")
    assert f"?rev={commit}#{commit}" in pixi_lock(lock)
    components = json.loads(cyclonedx(lock, "linux-64"))["components"]
    [component] = [each for each in components if each["name"] == "lib"]
    assert component["purl"] == f"pkg:pypi/lib@1.0?vcs_url={quote(location, safe=':/')}"
    assert component["hashes"] == [{"alg": "SHA-256", "content": package.sha256}]
    envelope = json.loads(provenance(actor=alice, build=build))
    statement = json.loads(base64.b64decode(envelope["payload"]))
    made_from = statement["predicate"]["buildDefinition"]["resolvedDependencies"]
    assert {
        "uri": component["purl"],
        "downloadLocation": location,
        "digest": {"sha256": package.sha256, "gitCommit": commit},
    } in made_from


def test_a_commit_is_installed_again_when_its_server_is_gone(submit, root, tmp_path, engine):
    allow(root, git=[LOCAL])
    with git_server(tmp_path / "git") as git:
        repository = git.create("acme/gone", project("gone"))
        requested = text(f"gone @ git+{repository.url}@{repository.head}")
        assert run(submit(requested)).state == S.READY
    for entry in engine.wheels.folder.glob("*/contents.json"):
        if "gone" in entry.read_text():
            entry.unlink()
    again = run(submit(requested))
    assert again.state == S.READY, said(again)


def test_what_is_asked_is_held_with_its_source(submit, research, root, git):
    allow(root, effect="ask", git=["https://github.com/acme/*"])
    repository = git.create("acme/lib", project("asked"))
    build = run(submit(text(f"asked @ git+{repository.url}@{repository.head}")))
    assert build.state == S.HELD, said(build)
    [verdict] = [each for each in build.verdicts if each["rule"] == "sources"]
    assert verdict["package"]["name"] == "asked"
    assert f"git+{repository.url}@{repository.head}" in verdict["reason"]


def test_other_rules_judge_what_a_commit_gives(submit, research, dora, root, git):
    allow(root, git=[LOCAL])
    policies.add_rule(
        actor=dora,
        namespace=research,
        kind="licenses",
        effect="enforce",
        name="no MIT",
        settings={"deny": ["MIT"], "except": ["python", "hello-noarch"], "missing": "accept",
                  "unknown": "accept"},
    )  # fmt: skip
    repository = git.create("acme/lib", project("judged"))
    build = run(submit(text(f"judged @ git+{repository.url}@{repository.head}")))
    assert build.state == S.FAILED
    assert "judged 1.0" in build.failure["message"]
    assert "MIT" in build.failure["message"]
    policies.add_rule(
        actor=dora,
        namespace=research,
        kind="packages-denied",
        effect="enforce",
        name="not this",
        settings={"packages": ["pypi:judged"]},
    )
    with pytest.raises(PolicyError, match="judged is denied"):
        submit(text(f"judged @ git+{repository.url}@{repository.head}"))


def test_an_extra_index_that_is_allowed_is_searched_first(submit, root, tmp_path):
    write_simple_index(tmp_path / "second", [make_wheel("tinyname", "0.1+ours")])
    with serving({"pypi": tmp_path / "second"}) as server:
        allow(root, indexes=[f"{server.url}*"])
        build = run(submit(text("tinyname", f"--extra-index-url {server.url}pypi/simple")))
    assert build.state == S.READY, said(build)
    [package] = build.lock.value().platforms[0].pypi
    assert package.version == "0.1+ours"
    exported = environment_yml(build.lock.value(), "linux-64", build.specification.value())
    assert f"- --extra-index-url {server.url}pypi/simple\n" in exported


def test_the_indexes_of_the_installation_may_always_be_named(submit, engine, settings):
    [url] = settings.PYPI_INDEX_URLS
    build = run(submit(text("tinyname", f"--extra-index-url {url}", f"--index-url {url}")))
    assert build.state == S.READY, said(build)


def test_a_lock_may_name_wheels_that_a_rule_allows(submit, root, tmp_path):
    wheel = make_wheel("outside", "1.0")
    (tmp_path / "files").mkdir()
    location = tmp_path / "files" / wheel.file_name
    location.write_bytes(wheel.content)
    with serving({"": tmp_path / "files"}) as server:
        line = f"outside @ {server.url}{wheel.file_name}#sha256={wheel.sha256}"
        allow(root, wheels=[f"{server.url}*"])
        first = run(submit(text(line)))
        assert first.state == S.READY, said(first)
        explicit = explicit_txt(first.lock.value(), "linux-64")
        assert f"# pip {line}" in explicit
        again = run(submit(explicit))
        assert again.state == S.READY, said(again)
        [package] = again.lock.value().platforms[0].pypi
        assert (package.direct, package.listed, package.size) == (True, False, wheel.size)
        location.write_bytes(b"other bytes")
        changed = run(submit(explicit + "# changed\n"))
        assert changed.state == S.FAILED
        rule = PolicyRule.objects.get(name="sources")
        policies.change_rule(actor=root, rule=rule, settings={"wheels": ["https://h.org/*"]})
        refused = run(submit(explicit + "# refused\n"))
        assert refused.state == S.FAILED
        assert "outside" in refused.failure["message"]
