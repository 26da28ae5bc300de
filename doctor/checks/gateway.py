"""The gateway: its routes as they reach Realtime, its key check, CORS, and the paths that it closes."""

from __future__ import annotations

import io
import tarfile
from contextlib import suppress
from typing import Any

import httpx
import yaml
from docker.errors import NotFound

from doctor.checks import containers, keys, realtime
from doctor.checks.finding import Finding, check, failed, ok, skipped, warning
from doctor.checks.handshake import Answer, handshake
from doctor.checks.setup import Need, Setup
from doctor.failures import KONG_NO_KEY, KONG_NO_ROUTE, KONG_WRONG_GROUP, KONG_WRONG_KEY, told

CONFIG_FILE = "/etc/kong/kong.yml"
SOCKET = "/realtime/v1/websocket"
REST = "/realtime/v1/api"
UNKNOWN_KEY = "a-key-that-nobody-has"
SHORTEST_IDLE_SECONDS = 61
"""Kong's default of 60 s is what closes the tabs that browsers slow down."""
DEFAULT_READ_TIMEOUT_MS = 60_000
ANY_ORIGIN = "https://doctor.example"
MANAGEMENT_PATHS = (f"{REST}/tenants", f"{REST}/openapi")

UPSTREAM = {502: "upstream-refused", 503: "upstream-unresolved", 504: "upstream-timeout"}


@check("the gateway's container runs", needs=(Need.DOCKER,), after=(containers.network,))
def container(setup: Setup) -> Finding:
    return containers.runs(setup, "gateway")


@check("the gateway answers", needs=(Need.GATEWAY,), after=(container,))
def reachable(setup: Setup) -> Finding:
    try:
        answer = setup.http.get(setup.at_gateway("/"))
    except httpx.TimeoutException:
        return failed("gateway-hangs", f"{setup.url}: no answer")
    except httpx.TransportError as refused:
        return failed("gateway-unreachable", f"{setup.url}: {realtime.words(refused)}")
    return ok(f"{setup.url} answers {answer.status_code}{_server(answer)}")


@check(
    "a websocket opens through the gateway",
    needs=(Need.GATEWAY, Need.KEY),
    after=(reachable, keys.websocket, realtime.alias, keys.expiry),
)
def websocket(setup: Setup) -> Finding:
    """With the anon key, as a browser opens it. What answers, and how, tells where the path breaks."""
    answer = handshake(setup.at_gateway(SOCKET), key=setup.key)
    if answer.accepted:
        return ok(f"{SOCKET} opens")
    seen = f"{SOCKET} answers {answer.words}"
    if answer.status is None:
        return failed("gateway-hangs", seen)
    return _refused(setup, answer, seen)


def _refused(setup: Setup, answer: Answer, seen: str) -> Finding:
    by_message = {
        KONG_WRONG_KEY: "key-unknown-to-gateway",
        KONG_NO_KEY: "key-not-looked-for",
        KONG_WRONG_GROUP: "consumer-not-allowed",
        KONG_NO_ROUTE: "route-missing",
        "An unexpected error occurred": "anonymous-consumer-missing",
    }
    tenants = _tenants(setup)
    for message, cause in by_message.items():
        if answer.message.startswith(message):
            return failed(cause, seen, tenants=tenants)
    if answer.status in UPSTREAM:
        return failed(UPSTREAM[answer.status], seen)
    if answer.status == httpx.codes.NOT_FOUND and answer.message != "Tenant not found":
        return failed("route-path-wrong", seen + _route(setup))
    if answer.status in (httpx.codes.FORBIDDEN, httpx.codes.NOT_FOUND, httpx.codes.UNAUTHORIZED):
        if setup.realtime_url is not None and setup.tenant is not None:
            # Asked directly for the tenant, Realtime took the same key: what differs through the gateway is the host.
            return failed("route-preserves-host", seen + _route(setup))
        return failed("realtime-refuses-websocket", seen, tenants=tenants)
    return failed("websocket-error", seen, status=answer.status)


@check("the gateway's key check does what it should with a wrong key", needs=(Need.GATEWAY,), after=(websocket,))
def wrong_key(setup: Setup) -> Finding:
    return _without_key(setup, UNKNOWN_KEY, "a wrong key")


@check("the gateway's key check does what it should without a key", needs=(Need.GATEWAY,), after=(websocket,))
def no_key(setup: Setup) -> Finding:
    return _without_key(setup, None, "no key")


def _without_key(setup: Setup, key: str | None, what: str) -> Finding:
    answer = handshake(setup.at_gateway(SOCKET), key=key)
    seen = f"{what}: {answer.words}"
    if answer.status is None:
        return failed("gateway-hangs", seen)
    if answer.status >= httpx.codes.INTERNAL_SERVER_ERROR and answer.from_gateway:
        return failed("anonymous-consumer-missing", seen)
    declared = setup.config.gateway.anonymous if setup.config and setup.config.gateway else None
    passed = not answer.from_gateway
    if passed and declared is not True:
        report = failed if declared is False else warning
        return report("gateway-lets-everybody-in", f"{seen}, which is Realtime's answer")
    if not passed and declared:
        return failed("gateway-refuses-anonymous", seen)
    return ok(f"{seen}, from {'Realtime' if passed else 'the gateway'}")


@check("browsers may connect: the CORS preflight", needs=(Need.GATEWAY,), after=(websocket,))
def cors(setup: Setup) -> Finding:
    declared = setup.config.gateway.cors_origins if setup.config and setup.config.gateway else ()
    origin = next((origin for origin in declared if origin != "*"), ANY_ORIGIN)
    try:
        answer = setup.http.options(
            setup.at_gateway(f"{REST}/broadcast"),
            headers={
                "Origin": origin,
                "Access-Control-Request-Method": "POST",
                "Access-Control-Request-Headers": "apikey,content-type",
            },
        )
    except httpx.TransportError as unanswered:
        return failed("gateway-hangs", f"preflight: {realtime.words(unanswered)}")
    allowed = answer.headers.get("Access-Control-Allow-Origin")
    seen = f"preflight from {origin}: {answer.status_code}, Access-Control-Allow-Origin {allowed or 'missing'}"
    if not answer.is_success:
        return failed("cors-missing", seen)
    if allowed not in ("*", origin):
        return failed("cors-origin-refused", seen) if declared else ok(seen)
    return ok(seen)


@check("the REST API is reached through the gateway", needs=(Need.GATEWAY, Need.KEY), after=(websocket,))
def rest(setup: Setup) -> Finding:
    try:
        answer = setup.http.get(setup.at_gateway(f"{REST}/ping"), headers={"apikey": setup.key})
    except httpx.TransportError as unanswered:
        return failed("gateway-hangs", f"{REST}/ping: {realtime.words(unanswered)}")
    seen = f"{REST}/ping answers {answer.status_code} {told(answer.text)}".strip()
    return ok(seen) if answer.is_success else failed("rest-route-wrong", seen)


@check("the management API is closed at the gateway", needs=(Need.GATEWAY, Need.KEY), after=(reachable,))
def management_closed(setup: Setup) -> Finding:
    key = setup.key
    answers = []
    for path in MANAGEMENT_PATHS:
        try:
            answer = setup.http.get(setup.at_gateway(path), headers={"apikey": key, "Authorization": f"Bearer {key}"})
        except httpx.TransportError as unanswered:
            return failed("gateway-hangs", f"{path}: {realtime.words(unanswered)}")
        seen = f"{path} answers {answer.status_code}"
        if path == MANAGEMENT_PATHS[0] and answer.is_success:
            return failed("management-api-open", f"{seen} to the anon key")
        if "X-Kong-Upstream-Latency" in answer.headers or answer.is_success:
            report = failed if setup.stack else warning
            return report("management-paths-open", f"{seen}, which is Realtime's answer", path=path)
        answers.append(seen)
    return ok(", ".join(answers))


@check("idle websockets stay open", needs=(Need.DOCKER,), after=(container,))
def idle_timeout(setup: Setup) -> Finding:
    """The read_timeout of the websocket's service: seen from outside it would take as long as it lasts."""
    if (text := _kong_file(setup)) is None:
        return skipped(setup.docker_reason or "the gateway's declarative file cannot be read")
    try:
        services = _services(text)
    except UnusableKongFileError as unusable:
        # The gateway runs, or check container would have failed: on what it read before.
        return warning("gateway-config-invalid", f"the declarative file as it is now: {unusable}")
    for service in services:
        if "/socket" in str(service.get("url", "")):
            seconds = service.get("read_timeout") or DEFAULT_READ_TIMEOUT_MS
            if not isinstance(seconds, int):
                seen = f"read_timeout of service {service.get('name')} in the declarative file is no whole number"
                return warning("gateway-config-invalid", seen)
            seconds /= 1000
            seen = f"read_timeout of service {service.get('name')} is {seconds:.0f} s"
            if seconds < SHORTEST_IDLE_SECONDS:
                return warning("idle-timeout-short", seen, seconds=f"{seconds:.0f}")
            return ok(seen)
    return skipped("no service with a path /socket in the gateway's declarative file")


class UnusableKongFileError(Exception):
    """Kong's declarative file is not what Kong reads; the message says where, without a word of the file."""


def _kong_file(setup: Setup) -> bytes | None:
    """Kong's declarative file, out of its container. Holds the keys. None when there is none to be read."""
    if setup.docker_reason is not None or (running := setup.parts["gateway"]) is None:
        return None
    try:
        stream, _ = running.get_archive(
            (setup.environment("gateway") or {}).get("KONG_DECLARATIVE_CONFIG", CONFIG_FILE)
        )
        with tarfile.open(fileobj=io.BytesIO(b"".join(stream))) as archive:
            member = archive.next()
            file = archive.extractfile(member) if member else None
            return file.read() if file else None
    except (NotFound, tarfile.TarError):
        return None


def _services(text: bytes) -> list[dict[str, Any]]:
    """The services in a declarative file. Raises UnusableKongFileError."""
    try:
        document = yaml.safe_load(text)
    except yaml.YAMLError as error:
        # Its own message quotes the line, which may hold a key.
        mark = getattr(error, "problem_mark", None)
        raise UnusableKongFileError("no YAML" + (f" in line {mark.line + 1}" if mark else "")) from None
    if not isinstance(document, dict):
        raise UnusableKongFileError("no mapping, which begins with _format_version")
    return _mappings(document.get("services"))


def _mappings(entries: object) -> list[dict[str, Any]]:
    """The entries of a list in the file that are mappings; whatever else somebody wrote there is not Kong's either."""
    return [entry for entry in entries if isinstance(entry, dict)] if isinstance(entries, list) else []


def _route(setup: Setup) -> str:
    """The websocket's service and route as the gateway has them, as evidence."""
    with suppress(UnusableKongFileError):
        for service in _services(_kong_file(setup) or b""):
            for route in _mappings(service.get("routes")):
                paths = [str(path) for path in route.get("paths") or ()]
                if any(SOCKET.startswith(path) for path in paths):
                    switches = ", ".join(f"{name} {route.get(name)}" for name in ("strip_path", "preserve_host"))
                    return f"; service {service.get('url')}, path {', '.join(paths)}, {switches}"
    return ""


def _tenants(setup: Setup) -> str:
    if setup.dsn is None:
        return "SELECT external_id FROM _realtime.tenants"
    rows = setup.rows("SELECT external_id FROM _realtime.tenants ORDER BY 1")
    return ", ".join(row["external_id"] for row in rows) or "there is none"


def _server(answer: httpx.Response) -> str:
    server = answer.headers.get("Server")
    return f", {server}" if server else ""
