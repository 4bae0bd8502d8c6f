"""What surrounds a request: its id, and errors told to people and to programs."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest
from django.db import connection
from django.http import HttpRequest, HttpResponse
from django.test import AsyncClient, Client, RequestFactory
from django.test.utils import CaptureQueriesContext

from accounts.models import User
from condastore import errors, outages
from condastore.errors import StoreError
from condastore.http import error_responses, middleware
from tests import factories


def all_kinds(kind: type[StoreError] = StoreError) -> set[type[StoreError]]:
    return {kind}.union(*(all_kinds(one) for one in kind.__subclasses__()))


def test_a_request_has_an_id_that_a_proxy_may_choose(client: Client) -> None:
    own = client.get("/healthz")["X-Request-ID"]
    assert len(own) == 32
    assert client.get("/healthz")["X-Request-ID"] != own
    given = {"X-Request-ID": "from-the-proxy-1"}
    assert client.get("/healthz", headers=given)["X-Request-ID"] == "from-the-proxy-1"
    strange = {"X-Request-ID": "x\ty <script>"}
    assert "<" not in client.get("/healthz", headers=strange)["X-Request-ID"]


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (errors.NotFoundError, 404),
        (errors.NotSignedInError, 401),
        (errors.AccessDeniedError, 403),
        (errors.PolicyError, 403),
        (errors.ConflictError, 409),
        (errors.TransitionError, 409),
        (errors.LimitError, 413),
        (errors.InvalidInputError, 400),
        (errors.UnsatisfiableError, 422),
        (errors.UnavailableError, 503),
        (errors.UnexpectedError, 500),
    ],
)
def test_each_kind_of_error_has_its_status(error: type[StoreError], status: int) -> None:
    answer = error_responses.problem(error("No.", where="there", hint="Do this."))
    assert answer.status_code == status
    assert answer["Content-Type"] == "application/problem+json"
    assert b'"where": "there"' in answer.content
    assert b'"hint": "Do this."' in answer.content


@pytest.mark.parametrize(
    ("path", "allowed"),
    [
        ("/api/whoami", "GET, HEAD"),
        ("/api/envs/research/ml/1/conda-lock.yml", "GET, HEAD"),
        ("/channel/research/ml/1/linux-64/repodata.json", "GET, HEAD"),
        ("/v2/research/ml/manifests/1", "GET, HEAD"),
    ],
)
def test_a_method_that_is_not_answered_is_named_with_those_that_are(
    client: Client, db: None, path: str, allowed: str
) -> None:
    answer = client.delete(path)
    assert (answer.status_code, answer["Allow"]) == (405, allowed)
    if path.startswith("/v2/"):
        assert answer.json()["errors"][0]["code"] == "UNSUPPORTED"
    else:
        assert answer["Content-Type"] == "application/problem+json"
        assert "DELETE" in answer.json()["detail"]
        assert "GET or HEAD" in answer.json()["hint"]


@pytest.mark.parametrize("path", ["/api/whoami", "/"])
def test_a_host_name_that_is_not_answered_to_is_named_with_the_setting(
    client: Client, db: None, path: str
) -> None:
    answer = client.get(path, headers={"Host": "elsewhere.example.org", "Accept": "text/html"})
    assert answer.status_code == 400
    assert b"CONDASTORE_ALLOWED_HOSTS" in answer.content
    assert b"host name" in answer.content


def test_a_refused_token_is_a_whole_problem(client: Client, db: None) -> None:
    answer = client.get("/api/whoami", headers={"Authorization": "Bearer cs-wrong"})
    assert answer.status_code == 401
    requested = {"title", "status", "code", "detail", "where", "hint", "details"}
    assert set(answer.json()) == requested


@pytest.mark.parametrize(
    ("method", "status", "content", "length"),
    [
        ("get", 304, b"", None),
        ("get", 204, b"", None),
        ("head", 200, b"", None),
        ("head", 200, b"1234", "4"),
        ("get", 200, b"", "0"),
    ],
)
def test_no_answer_without_a_body_says_that_the_resource_is_empty(
    method: str, status: int, content: bytes, length: str | None
) -> None:
    def view(request: HttpRequest) -> HttpResponse:
        answer = HttpResponse(content, status=status)
        answer["Content-Length"] = str(len(content))
        return answer

    request = getattr(RequestFactory(), method)("/channel/x")
    request.resolver_match = None
    answer: Any = middleware.RequestContext(view)(request)
    assert answer.headers.get("Content-Length") == length


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/admin/environments/build/1/change/", 403),
        ("/admin/nothing/", 404),
        ("/admin/environments/build/?_to_field=user", 400),
    ],
)
def test_what_django_refuses_is_no_error_of_ours_for_a_program(
    client: Client, db: None, path: str, status: int
) -> None:
    staff = factories.make_user("stan", superuser=status == 400)
    User.objects.filter(pk=staff.pk).update(is_staff=True)
    client.force_login(staff)
    answer = client.get(path, headers={"Accept": "application/json"})
    assert answer.status_code == status
    assert answer["Content-Type"] == "application/problem+json"


@pytest.mark.parametrize(("values", "status"), [({"groups": "1" * 40}, 400), ({"owner": "x"}, 200)])
def test_a_form_is_refused_whose_keys_no_database_has(
    client: Client, db: None, values: dict[str, str], status: int
) -> None:
    root = factories.make_user("root", superuser=True)
    client.force_login(root)
    answer = client.post(f"/admin/accounts/user/{root.pk}/change/", values)
    assert answer.status_code == status


def test_a_program_that_must_sign_in_again_is_sent_there(client: Client, db: None) -> None:
    client.force_login(factories.make_user("bob", password="x"))
    answer = client.get("/accounts/2fa/totp/activate/", headers={"Accept": "application/json"})
    assert answer.status_code == 302
    assert answer["Location"].startswith("/accounts/reauthenticate/")


def test_every_error_has_a_status_of_its_own_kind() -> None:
    of_many = {kind for kind in all_kinds() if issubclass(kind, errors.SpecificationError)}
    for kind in all_kinds() - {StoreError, errors.UnexpectedError} - of_many:
        assert 400 <= error_responses.status_of(kind("No.")) <= 503
        assert error_responses.status_of(kind("No.")) != 500, kind


def failing(error: Exception) -> Any:
    def view(request: HttpRequest) -> HttpResponse:
        raise error

    return view


def through(view: Any, path: str = "/page", **headers: str) -> Any:
    """The answer of `view` within StoreErrors, as Django calls it."""
    request = RequestFactory().get(path, headers=headers)
    request.user = None  # type: ignore[assignment]
    around = middleware.StoreErrors(view)
    try:
        return around(request)
    except Exception as error:
        return around.process_exception(request, error)


def test_a_browser_gets_a_page_and_a_program_problem_json() -> None:
    view = failing(errors.NotFoundError("There is no <b>such</b> thing."))
    page = through(view, Accept="text/html")
    assert page["Content-Type"].startswith("text/html")
    assert page.status_code == 404
    assert "There is no &lt;b&gt;such&lt;/b&gt; thing." in page.content.decode()
    assert through(view, Accept="application/json")["Content-Type"] == "application/problem+json"
    api = through(view, path="/api/x", Accept="text/html")
    assert api["Content-Type"] == "application/problem+json"


def test_our_own_fault_shows_no_internals(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR):
        answer = through(failing(KeyError("secret-value")), path="/api/x")
    assert answer.status_code == 500
    assert b"secret-value" not in answer.content
    assert "secret-value" in caplog.text


def test_an_address_that_leads_nowhere(client: Client, db: None) -> None:
    page = client.get("/nowhere", headers={"Accept": "text/html"})
    assert (page.status_code, page["Location"]) == (302, "/login/?next=/nowhere")
    client.force_login(User.objects.create_user("alice"))
    page = client.get("/nowhere", headers={"Accept": "text/html"})
    assert (page.status_code, page["Content-Type"]) == (404, "text/html; charset=utf-8")
    api = client.get("/api/nowhere")
    assert api["Content-Type"] == "application/problem+json"


def test_a_body_is_refused_by_its_length_unread(client: Client, settings: Any, db: None) -> None:
    settings.MAX_REQUEST_BYTES = 10
    answer = client.post("/api/token", "x" * 11, content_type="application/json")
    assert (answer.status_code, answer.json()["code"]) == (413, "too-large")
    assert answer.json()["details"] == {"limit": 10}
    client.defaults["CONTENT_LENGTH"] = "strange"


def test_a_body_that_hides_its_length_is_refused_too(settings: Any, db: None) -> None:
    settings.DATA_UPLOAD_MAX_MEMORY_SIZE = 10
    answer = Client().post("/api/token", "x" * 11, content_type="application/json")
    assert (answer.status_code, answer.json()["code"]) == (413, "too-large")


@pytest.mark.django_db(transaction=True)
def test_the_same_holds_where_everything_is_asynchronous(settings: Any) -> None:
    settings.MAX_REQUEST_BYTES = 10

    async def ask() -> list[Any]:
        client = AsyncClient()
        body = "x" * 11
        return [
            await client.post("/api/token", body, content_type="application/json"),
            await client.get("/healthz"),
            await client.get("/api/envs/a/b/current/explicit.txt"),
        ]

    large, alive, missing = asyncio.run(ask())
    assert large.status_code == 413
    assert (alive.status_code, alive.content) == (200, b"ok\n")
    assert missing.status_code == 404
    assert missing["Content-Type"] == "application/problem+json"
    assert missing["X-Request-ID"]


QUERY = "{ namespaces(first: 1) { edges { node { id } } } }"
MUTATION = """mutation {
    createNamespace(name: "fresh") { ... on OperationError { code message hint } }
}"""


@pytest.mark.parametrize("behind", [True, False], ids=["migrations behind", "migrations applied"])
def test_a_missing_column_is_a_fault_of_ours_with_its_traceback(
    client: Client,
    db: None,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    behind: bool,
) -> None:
    monkeypatch.setattr(outages, "_pending", outages.PendingMigrations())
    client.force_login(factories.make_user("root", superuser=True))
    client.raise_request_exception = False
    with connection.cursor() as cursor:
        cursor.execute("ALTER TABLE environments_namespace RENAME COLUMN name TO former")
        if behind:
            cursor.execute(
                "DELETE FROM django_migrations WHERE id = "
                "(SELECT MAX(id) FROM django_migrations WHERE app = 'environments')"
            )
    answers = [
        client.post("/graphql", {"query": query}, content_type="application/json").json()
        for query in (QUERY, MUTATION)
    ]
    read, changed = answers[0]["errors"][0], answers[1]["data"]["createNamespace"]
    page = client.get("/", headers={"Accept": "text/html"})
    for code in (read["extensions"]["code"], changed["code"]):
        assert code == "internal-error", answers
    hints = [read["extensions"]["hint"], changed["hint"], page.content.decode()]
    assert not any("migrate" in hint for hint in hints), "no client learns what is not installed"
    assert page.status_code == 500
    logged = [record for record in caplog.records if record.levelname == "ERROR"]
    assert sum(bool(record.exc_info or "exc_info" in record.msg) for record in logged) == 3
    for_operators = [record for record in logged if "manage migrate" in str(record.msg)]
    assert len(for_operators) == (3 if behind else 0)
    with CaptureQueriesContext(connection) as queries:
        client.post("/graphql", {"query": QUERY}, content_type="application/json")
    assert not any("django_migrations" in one["sql"] for one in queries), "it is known already"
