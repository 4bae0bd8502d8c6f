"""Editor of an environment: form and text in step, preview, build, and nothing typed is lost."""

from __future__ import annotations

import json
import re
from html import unescape
from typing import Any

import pytest
from django.core.files.uploadedfile import SimpleUploadedFile
from django.test import Client

from accounts.access import Actor
from environments.domain.names import canonical_channel
from environments.domain.policy import Effect
from environments.models import (
    Build,
    Channel,
    Environment,
    IndexedPackage,
    LockRow,
    Namespace,
    Policy,
    PolicyRule,
    Preview,
)
from environments.models.previews import PreviewState
from tests import factories

EDIT = "/environments/research/ml/edit/"
NEW = "/environments/new/"
TEXT = "channels: [conda-forge]\ndependencies:\n  # pinned\n  - python 3.12.*\n  - numpy\n"
HTMX = {"HX-Request": "true"}


def signed_in(actor: Actor) -> Client:
    client = Client()
    client.force_login(actor.account)
    return client


def form_of(content: bytes) -> dict[str, Any]:
    """Values that a browser would submit from the page, without the buttons."""
    page = content.decode()
    found: dict[str, Any] = {}
    for field in re.findall(r"<input [^>]*>", page):
        name, value = re.search(r' name="(\w+)"', field), re.search(r' value="([^"]*)"', field)
        if name is None or 'type="file"' in field:
            continue
        if 'type="checkbox"' in field and "checked" not in field:
            continue
        found.setdefault(name[1], []).append(unescape(value[1]) if value else "")
    for name, text in re.findall(
        r'<textarea [^>]*name="(\w+)"[^>]*>\n(.*?)</textarea>', page, re.S
    ):
        found[name] = [unescape(text)]
    return found


def page_of(client: Client, path: str = EDIT, **changes: Any) -> tuple[dict[str, Any], str]:
    """Submit the page with changes; return the values and the text of the page that follows."""
    values = form_of(client.get(path).content) | changes
    answer = client.post(path, values)
    assert answer.status_code == 200, answer
    return form_of(answer.content), unescape(answer.content.decode())


@pytest.fixture
def built(environment: Environment) -> Build:
    return factories.make_build(environment, text=TEXT)


# --- who may


def test_a_viewer_is_refused_and_others_find_nothing(
    bob: Actor, charlie: Actor, built: Build
) -> None:
    for path, who, status in ((EDIT, bob, 403), (EDIT, charlie, 404), (NEW, charlie, 200)):
        for method in ("get", "post"):
            assert getattr(signed_in(who), method)(path).status_code == status
    assert b"research" not in signed_in(charlie).get(NEW).content


def test_the_page_begins_with_the_current_build(alice: Actor, built: Build) -> None:
    answer = signed_in(alice).get(EDIT)
    values = form_of(answer.content)
    assert values["text"] == [TEXT]
    assert values["package"] == ["python", "numpy", ""]
    assert values["version"] == ["3.12.*", "", ""]
    assert "based on build 1" in answer.content.decode()


@pytest.mark.parametrize("path", [EDIT, "/environments/no/such/edit/", NEW])
def test_a_draft_survives_the_end_of_the_session(alice: Actor, built: Build, path: str) -> None:
    client = Client()
    assert client.get(path)["Location"] == f"/login/?next={path}"
    answer = client.post(path, {"text": f"{TEXT}  - six\n", "namespace": "n", "name": "e"})
    assert (answer.status_code, answer["Location"]) == (302, f"/login/?next={path}")
    assert client.post(path, {"text": TEXT + "  - six\n"}, headers=HTMX).status_code == 401
    client.force_login(alice.account)
    if "/no/such/" not in path:
        assert form_of(client.get(path).content)["text"] == [f"{TEXT}  - six\n"]
        assert "six" not in client.get(path).content.decode()  # once


def test_a_draft_that_is_too_long_is_not_stored_for_the_signed_out(built: Build) -> None:
    client = Client()
    client.post(EDIT, {"text": "x" * 100_000})
    assert not client.session.keys()


def test_an_address_can_store_few_drafts_without_a_sign_in(built: Build) -> None:
    """Nobody is to fill the database with sessions."""
    stored = 0
    for _ in range(15):
        client = Client()
        client.post(EDIT, {"text": TEXT})
        stored += bool(client.session.keys())
        assert client.session.get_expiry_age() <= 3_600 or not client.session.keys()
    assert stored == 10


def test_a_draft_does_not_shorten_the_session_of_the_person(alice: Actor, built: Build) -> None:
    client = Client()
    client.post(EDIT, {"text": TEXT})
    client.force_login(alice.account)
    client.get(EDIT)
    assert client.session.get_expiry_age() > 3_600


@pytest.mark.parametrize(
    "reference", ["http://[", "//", "http://elsewhere.example/environments/a/b/", "a b"]
)
def test_an_address_to_start_from_that_is_not_one_is_explained(
    alice: Actor, built: Build, reference: str
) -> None:
    for answer in (
        signed_in(alice).get(NEW, {"from": reference}),
        signed_in(alice).post(NEW, {"from": reference, "action": "start", "text": TEXT}),
    ):
        assert answer.status_code == 200
        text = answer.content.decode()
        assert "Copy the address" in text or "Write it like" in text


@pytest.mark.parametrize("name", ["\0", "a\0b", "../x", "<b>", "A" * 300])
def test_names_that_are_not_valid_are_explained(alice: Actor, built: Build, name: str) -> None:
    for field in ("namespace", "name"):
        form = {"namespace": "research", "name": "new", "text": TEXT, "action": "build"}
        answer = signed_in(alice).post(NEW, form | {field: name})
        assert answer.status_code in {200, 303}
        assert "<b>" not in answer.content.decode()


# --- form and text


def test_changes_of_the_form_arrive_in_the_text_with_its_comments(
    alice: Actor, built: Build
) -> None:
    values, _ = page_of(
        signed_in(alice),
        action="merge",
        package=["python", "numpy", "pandas"],
        version=["3.13.*", ">=2", ""],
        platform=["linux-64", "osx-arm64"],
        variables="A=1=2\nB=",
        gpu="on",
        cuda="12.6",
        imports="numpy\n",
        pip="shap",
        exclude_newer="P7D",
        description="For all.",
    )
    text = values["text"][0]
    assert text.startswith(
        "channels: [conda-forge]\ndependencies:\n  # pinned\n  - python 3.13.*\n  - numpy >=2\n"
        "  - pandas\n  - pip:\n      - shap\n"
    )
    for line in ("A: 1=2", 'B: ""', "- __cuda=12.6", "- numpy", "exclude-newer: P7D", "For all."):
        assert line in text
    assert values["base"] == [text]
    assert values["platform"] == ["linux-64", "osx-arm64"]


def test_changes_of_the_text_arrive_in_the_form(alice: Actor, built: Build) -> None:
    values, _ = page_of(signed_in(alice), action="merge", text=TEXT.replace("numpy", "scipy =1"))
    assert values["package"] == ["python", "scipy", ""]
    assert values["version"][1] == "=1"


def test_changes_of_both_sides_are_kept(alice: Actor, built: Build) -> None:
    values, _ = page_of(
        signed_in(alice),
        action="merge",
        text=f"{TEXT}  - scipy\n",
        package=["python", "pandas"],
        version=["3.12.*", ""],
    )
    assert values["package"] == ["python", "pandas", "scipy", ""]


def test_a_row_is_removed(alice: Actor, built: Build) -> None:
    values, _ = page_of(signed_in(alice), action="merge", remove="0")
    assert values["package"] == ["numpy", ""]
    assert "# pinned" in values["text"][0]


def test_a_text_that_cannot_be_read_keeps_the_form_and_says_where(
    alice: Actor, built: Build
) -> None:
    broken = "dependencies: [python\nchannels:"
    values, page = page_of(
        signed_in(alice), text=broken, package=["python", "pandas"], version=["", ""]
    )
    assert values["text"] == [broken]
    assert values["package"] == ["python", "pandas", ""]
    assert "Line 2" in page
    assert Preview.objects.count() == 0


def test_locks_are_edited_as_text(alice: Actor, environment: Environment) -> None:
    factories.make_build(environment, text="@EXPLICIT\n")
    page = signed_in(alice).get(EDIT).content.decode()
    assert "@EXPLICIT" in page
    assert 'name="package"' not in page


# --- faults


def test_all_faults_are_shown_at_once_and_nothing_is_built(alice: Actor, built: Build) -> None:
    text = "platforms: [linux-65]\ndependencies:\n  - numpy >=\n  - 5\nvariables:\n  1A: x\n"
    for action in ("preview", "build"):
        values, page = page_of(signed_in(alice), text=text, action=action)
        assert values["text"] == [text]
        for line in (1, 3, 4, 6):
            assert f"Line {line} " in page
        assert "Did you mean" in page or "Use one of" in page
    assert (Build.objects.count(), Preview.objects.count()) == (1, 0)


def test_texts_are_escaped(alice: Actor, built: Build) -> None:
    text = "dependencies:\n  - <b>x</b>\n  - python\nvariables:\n  A: '</textarea><i>'\n"
    client = signed_in(alice)
    for action in ("preview", "merge"):
        answer = client.post(EDIT, {"text": text, "action": action}).content.decode()
        assert "<b>" not in answer
        assert "<i>" not in answer


# --- build


def test_building_leads_to_the_page_of_the_build(alice: Actor, built: Build) -> None:
    client = signed_in(alice)
    values = form_of(client.get(EDIT).content) | {"action": "build", "version": ["3.13.*", "", ""]}
    answer = client.post(EDIT, values)
    assert answer.status_code == 303
    assert answer["Location"] == "/environments/research/ml/builds/2/"
    assert "python 3.13.*" in Build.objects.get(number=2).source
    assert client.post(EDIT, values)["Location"] == answer["Location"]  # sent twice, built once
    assert Build.objects.count() == 2


def test_a_new_environment_is_created_with_its_first_build(
    alice: Actor, research: Namespace
) -> None:
    client = signed_in(alice)
    values = form_of(client.get(f"{NEW}?template=data").content)
    values |= {"namespace": "research", "name": "churn", "action": "build"}
    answer = client.post(NEW, values)
    assert answer["Location"] == "/environments/research/churn/builds/1/"
    assert "jupyterlab" in Build.objects.get().source


@pytest.mark.parametrize(
    ("namespace", "name", "message"),
    [
        ("research", "ml", "already exists"),
        ("research", "Not A Name", "Use lowercase letters and digits"),
        ("research", "", "name of the environment is empty"),
        ("nowhere", "x", "There is no namespace 'nowhere'."),
    ],
)
def test_a_wrong_name_is_explained_and_the_text_stays(
    alice: Actor, built: Build, namespace: str, name: str, message: str
) -> None:
    values, page = page_of(
        signed_in(alice), NEW, text=TEXT, namespace=namespace, name=name, action="build"
    )
    assert message in page
    assert (values["text"], values["name"]) == ([TEXT], [name])


def test_a_viewer_cannot_create_an_environment(bob: Actor, research: Namespace) -> None:
    _, page = page_of(
        signed_in(bob), NEW, text=TEXT, namespace="research", name="x", action="build"
    )
    assert "You may not build" in page
    assert not Environment.objects.exists()


# --- preview


def preview_of(build: Build, **changes: Any) -> Preview:
    environment = build.environment
    return Preview.objects.create(
        namespace=environment.namespace,
        environment=environment,
        specification=factories.make_specification(TEXT),
        **changes,
    )


def result_of(client: Client, preview: Preview, text: str = TEXT) -> str:
    answer = client.post(EDIT, {"text": text, "preview": str(preview.pk), "action": "result"})
    return unescape(answer.content.decode())


def test_a_preview_is_requested_and_awaited(alice: Actor, built: Build) -> None:
    client = signed_in(alice)
    values, page = page_of(client, action="preview")
    assert values["preview"] == [str(Preview.objects.get().pk)]
    assert "Solving" in page
    assert "Solving" in unescape(client.post(EDIT, values | {"action": "result"}).content.decode())
    assert Preview.objects.count() == 1


def test_the_same_text_is_previewed_once_while_typing(alice: Actor, built: Build) -> None:
    client = signed_in(alice)
    values = form_of(client.get(EDIT).content) | {"action": "sync"}
    first = form_of(client.post(EDIT, values, headers=HTMX).content)
    again = values | {"preview": first["preview"], "text": f"{TEXT}# typed\n"}
    second = form_of(client.post(EDIT, again, headers=HTMX).content)
    assert second["preview"] == first["preview"]
    other = again | {"text": f"{TEXT}  - six\n"}
    third = form_of(client.post(EDIT, other, headers=HTMX).content)
    assert third["preview"] != first["preview"]


def test_looking_at_the_page_creates_no_namespace(alice: Actor) -> None:
    client = signed_in(alice)
    values = form_of(client.get(NEW).content)
    assert values["namespace"] == ["alice"]
    client.post(NEW, values | {"action": "sync"}, headers=HTMX)
    assert not Namespace.objects.filter(name="alice").exists()
    client.post(NEW, values | {"action": "preview"})
    assert Namespace.objects.filter(name="alice").exists()


def test_a_preview_shows_what_changes_requested_apart_from_dependencies(
    alice: Actor, environment: Environment
) -> None:
    old = factories.make_lock(
        factories.make_package("python", "3.12.1"),
        factories.make_package("openssl", "3.1"),
        factories.make_package("gone"),
    )
    new = factories.make_lock(
        factories.make_package("python", "3.12.9", size=2_000_000),
        factories.make_package("openssl", "3.0", size=1_000_000),
        factories.make_package("numpy", "2.3", size=500_000),
    )
    build = factories.make_build(environment, text=TEXT, lock=old)
    preview = preview_of(build, state=PreviewState.READY, lock=LockRow.store(new))
    page = result_of(signed_in(alice), preview)
    assert "4 changes" in page
    assert "against build 1" in page
    assert "at most 3.5 MB to fetch" in page
    requested, _, dependencies = page.partition("2 dependencies")
    for name in ("python", "numpy"):
        assert re.search(rf"<th[^>]*>{name}</th>", requested)
    for name, word in (("openssl", "downgraded"), ("gone", "removed")):
        assert re.search(rf'aria-label="{word}".*?<th[^>]*>{name}</th>', dependencies)


def test_a_conflict_stands_at_its_lines_with_repairs_that_work(alice: Actor, built: Build) -> None:
    text = "dependencies:\n  - numpy >=2.3  # fast\n  - lightgbm 4.6.*\n  - pandass\n"
    details = {
        "conflicts": [
            {
                "requirements": ["numpy >=2.3", "lightgbm 4.6.*"],
                "reason": "lightgbm 4.6 needs numpy <2.3.",
                "chain": [],
                "platform": "linux-64",
            }
        ],
        "missing": [{"requirement": "pandass", "similar": ["pandas"], "note": "", "channels": []}],
    }
    failure = {"code": "unsatisfiable", "message": "m", "where": "", "hint": "", "details": details}
    preview = preview_of(built, state=PreviewState.FAILED, failure=failure)
    client = signed_in(alice)
    page = result_of(client, preview, text)
    assert "Lines 2, 3: lightgbm 4.6 needs numpy <2.3." in page
    assert "Conflicts with lightgbm 4.6.*" in page
    assert "Any version of numpy" in page
    assert 'id="build-button" name="action" value="build" aria-disabled="true"' in page
    repair = json.dumps(["pandass", "pandas"])
    assert repair in page
    fixed = form_of(client.post(EDIT, {"text": text, "repair": repair}).content)
    assert fixed["text"] == [text.replace("pandass", "pandas")]


def test_verdicts_say_who_decides_and_do_not_stop_the_build(alice: Actor, built: Build) -> None:
    def verdict(effect: Effect, reason: str) -> dict[str, object]:
        return {"rule": "r", "effect": effect.value, "subject": "numpy", "reason": reason}

    preview = preview_of(
        built,
        state=PreviewState.READY,
        lock=LockRow.store(factories.make_lock()),
        verdicts=[
            verdict(Effect.ASK, "numpy is not reviewed yet"),
            verdict(Effect.WARN, "numpy is young"),
            verdict(Effect.ENFORCE, "numpy is not allowed"),
        ],
    )
    page = result_of(signed_in(alice), preview)
    assert "1 package needs approval" in page
    assert "anna" in page
    assert page.count("numpy is not reviewed yet") == 2  # in the form and in the preview
    for text in ("1 warning", "1 package not allowed", "rule r"):
        assert text in page
    assert "aria-disabled" not in page


def test_previews_of_others_are_not_shown(alice: Actor, dora: Actor, built: Build) -> None:
    foreign = factories.make_namespace("secret")
    row = factories.make_specification("dependencies: [confidential]")
    failure = {"message": "confidential things", "details": {}}
    preview = Preview.objects.create(
        namespace=foreign, specification=row, state=PreviewState.FAILED, failure=failure
    )
    for reference in (str(preview.pk), "no-id", ""):
        answer = signed_in(alice).post(
            EDIT, {"text": TEXT, "preview": reference, "action": "result"}
        )
        assert answer.status_code == 200
        assert b"confidential" not in answer.content


# --- suggestions

SUGGESTIONS = "/environments/packages/"


def index(url: str, *names: str, license_text: str = "MIT") -> None:
    channel, _ = Channel.objects.get_or_create(url=url)
    for name in names:
        IndexedPackage.objects.create(
            channel=channel,
            name=name,
            latest_version="1.7.2",
            versions=3,
            subdirs=["linux-64"],
            license=license_text,
        )


def test_packages_of_the_channels_are_suggested_with_those_that_are_not_allowed(
    alice: Actor, built: Build, settings: Any
) -> None:
    url = canonical_channel("conda-forge", alias=settings.CHANNEL_ALIAS).url
    index(url, "scikit-learn", "scikit-image", "my-scikit", "numpy")
    index(url, "scikit-survival", license_text="GPL-3.0-only")
    index("https://secret.example.org/private", "scikit-secret")
    policy = Policy.objects.create(namespace=built.environment.namespace)
    PolicyRule.objects.create(
        policy=policy,
        kind="licenses",
        name="licenses",
        effect="enforce",
        position=1,
        settings={"deny": ["GPL-*"]},
    )
    asked = {
        "q": "Scikit",
        "namespace": "research",
        "channels": "conda-forge\nhttps://secret.example.org/private",
    }
    client = signed_in(alice)
    page = client.get(SUGGESTIONS, asked).content.decode()
    names = re.findall(r'data-value="([^"]+)"( aria-disabled)?', page)
    assert names == [
        ("scikit-image", ""),
        ("scikit-learn", ""),
        ("scikit-survival", " aria-disabled"),
        ("my-scikit", ""),
    ]
    assert "1.7.2" in page
    assert "not allowed: " in page
    assert client.get(SUGGESTIONS, asked | {"platform": "osx-arm64"}).content.strip() == b""
    assert client.get(SUGGESTIONS, {"q": ""}).content.strip() == b""


def test_suggestions_need_a_sign_in_and_do_not_apply_rules_of_others(
    charlie: Actor, built: Build, settings: Any
) -> None:
    index(canonical_channel("conda-forge", alias=settings.CHANNEL_ALIAS).url, "numpy")
    policy = Policy.objects.create(namespace=built.environment.namespace)
    PolicyRule.objects.create(
        policy=policy,
        kind="packages-denied",
        name="secret rule",
        effect="enforce",
        position=1,
        settings={"packages": ["numpy"]},
    )
    asked = {"q": "num", "namespace": "research", "channels": "conda-forge"}
    assert Client().get(SUGGESTIONS, asked).status_code == 401
    page = signed_in(charlie).get(SUGGESTIONS, asked).content.decode()
    assert 'data-value="numpy">' in page


# --- start from


def test_a_draft_starts_from_an_upload_or_from_what_one_may_see(alice: Actor, built: Build) -> None:
    client = signed_in(alice)
    file = SimpleUploadedFile("environment.yml", b"dependencies:\r\n  - six\r\n")
    values, _ = page_of(client, NEW, file=file, action="start")
    assert values["text"] == ["dependencies:\n  - six\n"]
    for reference in (
        "research/ml",
        "research/ml/1",
        "/environments/research/ml/",
        "http://testserver/environments/research/ml/builds/1/",
    ):
        values, _ = page_of(client, NEW, **{"from": reference, "action": "start"})
        assert values["text"] == [TEXT], reference
        assert form_of(client.get(NEW, {"from": reference}).content)["text"] == [TEXT]


@pytest.mark.parametrize(
    "reference", ["secret/plans", "research/none", "x", "https://elsewhere.org/environments/a/b/"]
)
def test_a_start_that_is_not_found_keeps_the_draft(
    alice: Actor, built: Build, reference: str
) -> None:
    secret = factories.make_environment(factories.make_namespace("secret"), "plans")
    factories.make_build(secret, text="dependencies: [confidential]")
    values, page = page_of(
        signed_in(alice), NEW, text="# mine\n", **{"from": reference, "action": "start"}
    )
    assert values["text"] == ["# mine\n"]
    assert "confidential" not in page
    assert "There is no environment" in page or "from" in page


def test_a_binary_upload_is_refused_with_a_reason(alice: Actor, built: Build) -> None:
    file = SimpleUploadedFile("x.bin", b"\xff\x00\x01")
    values, page = page_of(signed_in(alice), file=file, action="start")
    assert values["text"] == [TEXT]
    assert "The text is not UTF-8." in page


def test_the_page_needs_a_constant_number_of_queries(
    alice: Actor, built: Build, django_assert_max_num_queries: Any
) -> None:
    client = signed_in(alice)
    client.get(EDIT)
    with django_assert_max_num_queries(14):
        client.get(EDIT)
