"""The kong.yml of each stack: which request reaches Realtime, as what, and which does not."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from settings import ApiRole
from tests.program.recorder import ANON_KEY, SERVICE_ROLE_KEY, Program, variables

ORIGINS = {
    "dev": ["*"],
    "staging": ["https://staging.example.com", "http://localhost:3000"],
    "prod": ["https://wells.example.com"],
}


@pytest.fixture
def kong(program: Program) -> dict[str, Any]:
    """The declarative config that the gateway is started with."""
    (upload,) = program["Container gateway"].inputs["uploads"]
    assert upload["file"] == variables(program["Container gateway"])["KONG_DECLARATIVE_CONFIG"]
    config: dict[str, Any] = yaml.safe_load(upload["content"].value)
    return config


def matched(kong: dict[str, Any], path: str) -> tuple[dict[str, Any], dict[str, Any], str]:
    """Service, route and path prefix that Kong takes for a request: the longest prefix wins."""
    candidates = [
        (service, route, prefix)
        for service in kong["services"]
        for route in service["routes"]
        for prefix in route["paths"]
        if path.startswith(prefix)
    ]
    return max(candidates, key=lambda candidate: len(candidate[2]))


def forwarded(kong: dict[str, Any], path: str) -> str:
    """The URL that Kong calls for a client's path: the service's, and what strip_path leaves (path_handling v0)."""
    service, route, prefix = matched(kong, path)
    assert route["strip_path"] is True
    rest = path.removeprefix(prefix)
    return str(service["url"]).rstrip("/") + "/" + rest.removeprefix("/") if rest else str(service["url"])


@pytest.mark.parametrize(
    ("path", "url"),
    [
        # What supabase-js, realtime-js and realtime-py ask for, and what Realtime serves.
        ("/realtime/v1/websocket", "http://supabase-realtime:4000/socket/websocket"),
        ("/realtime/v1/longpoll", "http://supabase-realtime:4000/socket/longpoll"),
        ("/realtime/v1/api/broadcast", "http://supabase-realtime:4000/api/broadcast"),
    ],
)
def test_a_clients_path_becomes_one_that_realtime_serves(path: str, url: str, kong: dict[str, Any]) -> None:
    assert forwarded(kong, path) == url


def test_realtime_is_called_by_the_tenants_name_whatever_host_the_client_used(kong: dict[str, Any]) -> None:
    """Realtime takes the first label of the Host header for the tenant."""
    for service in kong["services"]:
        assert service["url"].startswith("http://supabase-realtime:4000/")
        assert [route["preserve_host"] for route in service["routes"]] == [False]


@pytest.mark.parametrize(
    "path",
    [
        "/realtime/v1/api/tenants",
        "/realtime/v1/api/tenants/supabase-realtime",
        "/realtime/v1/api/tenants/supabase-realtime/health",
        "/realtime/v1/api/openapi",
    ],
)
def test_the_management_api_is_closed(path: str, kong: dict[str, Any]) -> None:
    service, _, _ = matched(kong, path)
    assert service["plugins"] == [
        {"name": "request-termination", "config": {"status_code": 403, "message": "closed by the gateway"}}
    ]


@pytest.mark.parametrize("path", ["/", "/rest/v1/wells", "/realtime/v1", "/socket/websocket", "/api/tenants"])
def test_nothing_else_is_routed(path: str, kong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="empty"):
        matched(kong, path)


@pytest.mark.parametrize("path", ["/realtime/v1/websocket", "/realtime/v1/api/broadcast"])
def test_a_request_passes_cors_then_key_then_role(path: str, stack: str, kong: dict[str, Any]) -> None:
    service, _, _ = matched(kong, path)
    anonymous = {"anonymous": "anon"} if stack == "dev" else {}
    assert service["plugins"] == [
        {"name": "cors", "config": {"origins": ORIGINS[stack], "credentials": False}},
        {"name": "key-auth", "config": {"hide_credentials": False, **anonymous}},
        {"name": "acl", "config": {"allow": ["anon", "service_role"], "hide_groups_header": True}},
    ]


def test_the_consumers_are_the_two_keys_each_in_the_group_of_its_role(kong: dict[str, Any]) -> None:
    assert kong["consumers"] == [
        {"username": "anon", "keyauth_credentials": [{"key": ANON_KEY}], "acls": [{"group": "anon"}]},
        {
            "username": "service_role",
            "keyauth_credentials": [{"key": SERVICE_ROLE_KEY}],
            "acls": [{"group": "service_role"}],
        },
    ]


def test_an_anonymous_consumer_is_one_that_exists(dev: Program) -> None:
    """Kong answers 500 to everybody when `anonymous` names nobody, and `kong config parse` does not see it."""
    config = yaml.safe_load(dev["Container gateway"].inputs["uploads"][0]["content"].value)
    (key_auth,) = {
        plugin["config"]["anonymous"]
        for service in config["services"]
        for plugin in service["plugins"]
        if plugin["name"] == "key-auth"
    }
    assert key_auth in {consumer["username"] for consumer in config["consumers"]}
    assert key_auth == ApiRole.ANON


def test_an_idle_websocket_stays_open_for_a_day(kong: dict[str, Any]) -> None:
    service, _, _ = matched(kong, "/realtime/v1/websocket")
    assert (service["read_timeout"], service["write_timeout"]) == (86_400_000, 86_400_000)


def test_a_realtime_that_does_not_answer_is_given_up_after_seconds(kong: dict[str, Any]) -> None:
    for path in ("/realtime/v1/websocket", "/realtime/v1/api/broadcast"):
        service, _, _ = matched(kong, path)
        assert service["connect_timeout"] == 5_000


def test_the_format_is_one_that_kong_2_and_3_read(kong: dict[str, Any]) -> None:
    assert kong["_format_version"] == "2.1"
    assert set(kong) == {"_format_version", "consumers", "services", "plugins"}


def test_every_plugin_that_is_used_is_loaded(kong: dict[str, Any], program: Program) -> None:
    used = {plugin["name"] for service in kong["services"] for plugin in service["plugins"]}
    used |= {plugin["name"] for plugin in kong["plugins"]}
    assert ",".join(sorted(used)) == variables(program["Container gateway"])["KONG_PLUGINS"]
