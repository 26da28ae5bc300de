"""The Realtime server itself: listening, with its tables where it looks for them, its management API closed."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Any

import httpx

from doctor.checks import containers, database, postgres
from doctor.checks.finding import Finding, check, failed, ok, skipped, warning
from doctor.checks.logs import REALTIME_RUNNING, explain, tail
from doctor.checks.setup import HTTP_SECONDS, Need, Setup
from tokens import bearer_token

RECENT = timedelta(seconds=20)
"""Realtime tries again every 5 to 10 s what fails."""
SEARCH_PATH = re.compile(r"""search_path\s*(?:TO|=)\s*["']?(\w+)""", re.IGNORECASE)


@check(
    "Realtime's container runs",
    needs=(Need.DOCKER,),
    after=(containers.network, postgres.reachable, postgres.superuser, database.schemas),
)
def container(setup: Setup) -> Finding:
    return containers.runs(setup, "realtime")


@check("the gateway can find Realtime by the tenant's name", needs=(Need.DOCKER,), after=(container,))
def alias(setup: Setup) -> Finding:
    """Realtime's alias on the network is the tenant's name: by it the gateway calls, and by it Realtime knows whom."""
    running = setup.parts["realtime"]
    assert running is not None, "realtime.container fails without one"
    found = containers.endpoint(setup, running)
    aliases = [a for a in (found or {}).get("Aliases") or () if a != running.short_id]
    if setup.tenant not in aliases:
        seen = f"aliases of {running.name}: {', '.join(aliases) or 'none'}"
        return failed("alias-missing", seen, alias=setup.tenant)
    return ok(f"alias {setup.tenant}")


@check("Realtime answers /healthcheck", needs=(Need.REALTIME,), after=(container,))
def health(setup: Setup) -> Finding:
    name = setup.container_name("realtime")
    try:
        answer = setup.http.get(setup.at_realtime("/healthcheck"))
    except httpx.TransportError as unanswered:
        return failed("realtime-not-listening", f"{setup.realtime_url}: {words(unanswered)}", container=name)
    if answer.status_code != httpx.codes.OK:
        return failed("realtime-unhealthy", f"/healthcheck answers {answer.status_code}", container=name)
    return ok(f"{setup.realtime_url}/healthcheck answers 200")


@check("the tenants are where Realtime looks for them", needs=(Need.DATABASE,), after=(database.schemas,))
def search_path(setup: Setup) -> Finding:
    """Which schema Realtime's search_path leads to, and in which the tenants are."""
    homes = [
        row["schema"]
        for row in setup.rows(
            "SELECT n.nspname AS schema FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace "
            "WHERE c.relname = 'tenants' AND c.relkind = 'r' AND (SELECT count(*) FROM pg_attribute a "
            "WHERE a.attrelid = c.oid AND a.attname IN ('external_id', 'jwt_secret')) = 2 ORDER BY 1"
        )
    ]
    environment = setup.environment("realtime")
    if environment is not None:
        query = environment.get("DB_AFTER_CONNECT_QUERY")
        path = SEARCH_PATH.search(query or "")
        if path is None or path.group(1) != database.TENANTS:
            told = f"DB_AFTER_CONNECT_QUERY is {query!r}" if query else "no DB_AFTER_CONNECT_QUERY"
            return failed("search-path-wrong", f"{told}; tables of tenants are in {', '.join(homes) or 'no schema'}")
    if not homes:
        return failed(
            "tenant-tables-missing",
            "no schema has Realtime's table tenants",
            container=setup.container_name("realtime"),
        )
    if database.TENANTS not in homes:
        return failed("search-path-wrong", f"tenants are in schema {', '.join(homes)}, not in {database.TENANTS}")
    if others := [home for home in homes if home != database.TENANTS]:
        seen = f"tables of tenants are in {', '.join(homes)}"
        return warning("tenants-in-two-schemas", seen, schema=others[0])
    return ok(f"tenants are in schema {database.TENANTS}")


@check(
    "the anon key does not open the management API",
    needs=(Need.REALTIME, Need.KEY),
    after=(health,),
)
def management_closed(setup: Setup) -> Finding:
    try:
        answer = setup.http.get(
            setup.at_realtime("/api/tenants"),
            headers={"Authorization": f"Bearer {setup.key}"},
        )
    except httpx.TransportError as unanswered:
        return failed("realtime-not-listening", words(unanswered), container=setup.container_name("realtime"))
    if answer.is_success:
        return failed("management-api-open", "GET /api/tenants with the anon key answers 200")
    if answer.status_code >= httpx.codes.INTERNAL_SERVER_ERROR:
        return failed("management-api-secret-missing", f"GET /api/tenants answers {answer.status_code}")
    return ok(f"GET /api/tenants with the anon key answers {answer.status_code}")


@check("the management API takes its own secret", after=(management_closed, search_path, postgres.reachable))
def management_api(setup: Setup) -> Finding:
    name = setup.container_name("realtime")
    try:
        answer = ask_management(setup, f"/{setup.tenant}")
    except httpx.TimeoutException:
        seen = f"/healthcheck answers, and the management API does not within {HTTP_SECONDS:.0f} s"
        return failed("realtime-database-stalled", seen, container=name)
    if answer is None:
        return skipped(setup.config_reason)
    if answer.status_code == httpx.codes.FORBIDDEN:
        return failed("management-api-secret-differs", "the management API answers 403 to a token of its secret")
    if answer.status_code >= httpx.codes.INTERNAL_SERVER_ERROR:
        # It has its secret, or check management_closed would have failed, and looks for the tenant in its database.
        return failed("realtime-database-stalled", f"the management API answers {answer.status_code}", container=name)
    return ok(f"the management API answers {answer.status_code}")


@check("metrics can be read", after=(health,))
def metrics(setup: Setup) -> Finding:
    realtime = setup.config.realtime if setup.config else None
    if setup.realtime_url is None or realtime is None:
        return skipped(setup.config_reason)
    token = bearer_token(realtime.metrics_jwt_secret.get_secret_value())
    try:
        with setup.http.stream(
            "GET", setup.at_realtime("/metrics"), headers={"Authorization": f"Bearer {token}"}
        ) as answer:
            status = answer.status_code
    except httpx.TransportError as unanswered:
        return skipped(f"/metrics: {words(unanswered)}")
    if status != httpx.codes.OK:
        return warning("metrics-closed", f"/metrics answers {status}")
    return ok("/metrics answers 200")


@check("Realtime's log of late is without errors", needs=(Need.DOCKER,), after=(container,))
def log(setup: Setup) -> Finding:
    running = setup.parts["realtime"]
    assert running is not None, "realtime.container fails without one"
    explained = explain(tail(running, within=RECENT), REALTIME_RUNNING)
    if explained is None:
        return ok(f"no known error in the last {RECENT.total_seconds():.0f} s")
    names = {"container": setup.container_name("realtime"), **explained.names}
    return warning(explained.cause, f"of the last {RECENT.total_seconds():.0f} s: {explained.line}", **names)


def ask_management(setup: Setup, path: str, *, seconds: float = HTTP_SECONDS) -> httpx.Response | None:
    """The answer of GET /api/tenants<path> with a token of the management API's own secret; None without the secret.

    Raises httpx.TransportError.
    """
    realtime = setup.config.realtime if setup.config else None
    if setup.realtime_url is None or realtime is None:
        return None
    token = bearer_token(realtime.api_jwt_secret.get_secret_value())
    return setup.http.get(
        setup.at_realtime(f"/api/tenants{path}"), headers={"Authorization": f"Bearer {token}"}, timeout=seconds
    )


def words(error: Exception) -> str:
    """An error of the transport in a few words."""
    return " ".join(str(error).split())[:200] or type(error).__name__


def tenant_of(answer: httpx.Response) -> dict[str, Any]:
    """The data of an answer of the management API, empty when there is none."""
    try:
        document = answer.json()
    except ValueError:
        return {}
    data = document.get("data") if isinstance(document, dict) else None
    return data if isinstance(data, dict) else {}
