"""The console lets in who has its token, answers no page but its own, and shows nothing that is secret."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from doctor.checks.setup import of_outputs
from tests.console import Served, served
from tests.database.test_probe_row import outputs_of

DOWN = "host=127.0.0.1 port=9 dbname=postgres user=nobody password=not-for-the-page"


@pytest.fixture(scope="module")
def console(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A console whose page is a placeholder, and whose database is down."""
    static = tmp_path_factory.mktemp("static")
    (static / "index.html").write_text("<!doctype html><title>the page</title>")
    (static / "assets").mkdir()
    (static / "assets" / "index-1a2b.js").write_text("export {}")
    setup = of_outputs(outputs_of(DOWN, ("public.wells", "anon", "anon")), stack=None, reason="no config in this test")
    with served(setup, static=static) as running:
        yield running


def test_the_printed_url_gives_a_cookie_that_only_this_server_gets_and_leads_to_the_page(console: Served) -> None:
    entry = console.visitor.get(console.access.url)
    assert (entry.status_code, entry.headers["location"]) == (303, "/")
    cookie = entry.headers["set-cookie"]
    assert cookie.startswith(f"console-{console.access.port}={console.access.token}; ")
    assert {"HttpOnly", "Path=/", "SameSite=strict"} <= set(cookie.split("; "))
    console.visitor.cookies.clear()
    assert "the page" in console.get("/").text


@pytest.mark.parametrize(
    "path", ["/", "/?token=wrong", "/?token=", "/?token=%C3%A9", "/assets/index-1a2b.js", "/nothing"]
)
def test_without_the_token_one_line_says_to_open_the_printed_url(console: Served, path: str) -> None:
    answer = console.visitor.get(path)
    assert answer.status_code == 403
    assert answer.text.splitlines() == [
        "403: the token of this console is missing or wrong; open the URL that the console printed when it started"
    ]


@pytest.mark.parametrize(
    "path", ["/api/stack", "/api/token?role=anon", "/api/rows", "/api/checks", "/api/flow", "/api/x"]
)
def test_without_the_token_the_api_answers_nothing(console: Served, path: str) -> None:
    for cookie in (None, "wrong"):
        headers = {} if cookie is None else {"Cookie": f"console-{console.access.port}={cookie}"}
        answer = console.visitor.get(path, headers=headers)
        assert answer.status_code == 403
        assert answer.json() == {
            "error": "the token of this console is missing or wrong",
            "cure": "open the URL that the console printed when it started",
        }


def test_the_token_is_another_one_at_every_start_and_long() -> None:
    from doctor.console.access import Access  # noqa: PLC0415

    tokens = {Access(1).token for _ in range(5)}
    assert len(tokens) == 5
    assert all(len(token) >= 43 for token in tokens)


def test_the_url_for_a_browsers_command_line_opens_once(console: Served) -> None:
    url = console.access.url_for_once()
    assert console.access.token not in url
    assert console.visitor.get(url).status_code == 303
    console.visitor.cookies.clear()
    assert console.visitor.get(url).status_code == 403


@pytest.mark.parametrize("host", ["attacker.example", "attacker.example:4747", "127.0.0.1.nip.example", "", "[::1]:80"])
def test_a_name_that_leads_here_is_not_answered(console: Served, host: str) -> None:
    for path in ("/", "/api/stack", f"/?token={console.access.token}"):
        answer = console.client.get(path, headers={"Host": host})
        assert answer.status_code == 400
        assert console.access.token not in answer.text + str(answer.headers)


def test_localhost_is_this_machine_too(console: Served) -> None:
    assert console.client.get("/", headers={"Host": f"localhost:{console.access.port}"}).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://attacker.example"},
        {"Origin": "http://127.0.0.1:8000"},
        {"Origin": "null"},
        {"Sec-Fetch-Site": "same-site"},
        {"Sec-Fetch-Site": "cross-site"},
    ],
)
def test_the_page_of_another_server_is_refused_though_the_browser_sends_the_cookie(
    console: Served, headers: dict[str, str]
) -> None:
    for method, path in (("GET", "/api/checks"), ("POST", "/api/rows"), ("DELETE", "/api/rows")):
        answer = console.client.request(method, path, headers=headers, json={})
        assert (answer.status_code, answer.json()["error"]) == (403, "asked by the page of another server")


def test_the_consoles_own_page_is_not(console: Served) -> None:
    own = {"Origin": f"http://127.0.0.1:{console.access.port}", "Sec-Fetch-Site": "same-origin"}
    assert console.client.post("/api/rows", headers=own, json={}).status_code == 404


@pytest.mark.parametrize("content_type", [None, "text/plain", "application/x-www-form-urlencoded"])
def test_a_write_says_that_it_is_json_which_a_form_cannot(console: Served, content_type: str | None) -> None:
    headers = {} if content_type is None else {"Content-Type": content_type}
    for method in ("POST", "PATCH", "DELETE"):
        answer = console.client.request(method, "/api/rows", content=b"{}", headers=headers)
        assert (answer.status_code, answer.json()["error"]) == (415, "the body is not JSON")


@pytest.mark.parametrize("path", ["/", "/api/stack", "/api/nothing", "/?token=wrong", "/assets/index-1a2b.js", "/x"])
def test_every_answer_has_the_headers(console: Served, path: str) -> None:
    for client in (console.client, console.visitor):
        headers = client.get(path).headers
        assert headers["content-security-policy"] == (
            "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; font-src 'self'; "
            "connect-src 'self' http://127.0.0.1:1 ws://127.0.0.1:1; "
            "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        )
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"
        assert "server" not in headers


def test_only_files_with_a_hash_in_their_name_are_kept_by_the_browser(console: Served) -> None:
    kept = {
        path: console.get(path).headers["cache-control"]
        for path in ("/", "/api/x", "/assets/no", "/assets/index-1a2b.js")
    }
    assert kept.pop("/assets/index-1a2b.js") == "public, max-age=31536000, immutable"
    assert set(kept.values()) == {"no-store"}
    assert console.visitor.get("/assets/index-1a2b.js").headers["cache-control"] == "no-store"


def test_files_beside_the_page_are_not_served(console: Served, tmp_path: Path) -> None:
    for path in ("/../app.py", "/%2e%2e/app.py", "/assets/..%2f..%2fapp.py", "//etc/passwd"):
        with httpx.Client(base_url=console.client.base_url, cookies=console.client.cookies, trust_env=False) as client:
            assert client.get(path).status_code == 404


def test_a_page_that_is_not_built_is_one_line_with_the_command(tmp_path: Path) -> None:
    with served(of_outputs(outputs_of(DOWN), stack=None), static=tmp_path / "none") as bare:
        answer = bare.get("/")
        assert (answer.status_code, answer.text) == (503, "503: the page is not built: `make web` builds it\n")
        assert bare.get("/assets/x.js").status_code == 404
        assert bare.get("/api/token", role="anon").status_code == 200, "the API answers"


def test_no_answer_holds_a_secret_of_the_stack(console: Served) -> None:
    outputs = console.console.outputs
    secrets = [outputs.service_role_key.get_secret_value(), "not-for-the-page", console.access.token]
    paths = [
        "/",
        "/api/stack",
        "/api/token?role=anon",
        "/api/token?role=authenticated",
        "/api/rows?table=public.wells&role=anon",
    ]
    for path in paths:
        text = console.get(path).text
        assert not [secret for secret in secrets if secret in text], path
    with console.client.stream("GET", "/api/checks") as checks:
        text = "".join(checks.iter_text())
    assert "event: done" in text
    assert not [secret for secret in secrets if secret in text]
    assert not re.search(r"eyJ[\w-]+\.[\w-]+\.", text)
