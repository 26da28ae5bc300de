"""Kong in front of Realtime: the only part of the stack that other machines may reach."""

from __future__ import annotations

from typing import Any

import pulumi
import pulumi_docker as docker
import yaml

from components.network import LOOPBACK, StackNetwork, container_defaults, health_check
from components.realtime import PORT as REALTIME_PORT
from providers.container_readiness import ContainerReadiness
from providers.image import PinnedImage
from settings import ApiRole, GatewaySettings

PORT = 8000
STATUS_PORT = 8100
CONFIG_FILE = "/etc/kong/kong.yml"
PLUGINS = ("acl", "cors", "key-auth", "prometheus", "request-termination")
WEBSOCKET_TIMEOUT_MS = 24 * 60 * 60 * 1000
"""Kong closes a websocket that was idle for read_timeout; Realtime's clients send a heartbeat every 25 s anyway."""
STATUS = (
    'local s = ngx.socket.tcp() s:settimeout(2000) assert(s:connect("127.0.0.1", {port})) '
    's:send("GET /status HTTP/1.0\\r\\n\\r\\n") os.exit(s:receive():find(" 200 ") and 0 or 1)'
)
"""Asks the status listener with resty, which every image of Kong has, its command line being written for it;
curl is in none, wget not in all."""


def kong_config(settings: GatewaySettings, *, upstream: str, keys: dict[ApiRole, str]) -> dict[str, Any]:
    """Kong's declarative config, for format 2.1 and everything newer.

    The service url's path is put in front of what ``strip_path`` leaves: ``/realtime/v1/websocket`` becomes
    ``/socket/websocket``. With ``preserve_host: false`` the Host header is the upstream's name, whose first label
    Realtime takes for the tenant.
    """
    origin = f"http://{upstream}:{REALTIME_PORT}"
    key_auth = {"hide_credentials": False} | ({"anonymous": ApiRole.ANON.value} if settings.anonymous else {})
    guards = [
        {"name": "cors", "config": {"origins": list(settings.cors_origins), "credentials": False}},
        {"name": "key-auth", "config": key_auth},
        {"name": "acl", "config": {"allow": [role.value for role in keys], "hide_groups_header": True}},
    ]
    closed = {"name": "request-termination", "config": {"status_code": 403, "message": "closed by the gateway"}}
    return {
        "_format_version": "2.1",
        "consumers": [
            {"username": role.value, "keyauth_credentials": [{"key": key}], "acls": [{"group": role.value}]}
            for role, key in keys.items()
        ],
        "services": [
            {
                "name": "realtime-websocket",
                "url": f"{origin}/socket/",
                "read_timeout": WEBSOCKET_TIMEOUT_MS,
                "write_timeout": WEBSOCKET_TIMEOUT_MS,
                "connect_timeout": 5_000,
                "routes": [_route("realtime-websocket", "/realtime/v1/")],
                "plugins": guards,
            },
            {
                "name": "realtime-rest",
                "url": f"{origin}/api",
                "connect_timeout": 5_000,
                "routes": [_route("realtime-rest", "/realtime/v1/api")],
                "plugins": guards,
            },
            {
                "name": "realtime-management",
                "url": f"{origin}/api/tenants",
                "routes": [_route("realtime-management", "/realtime/v1/api/tenants", "/realtime/v1/api/openapi")],
                "plugins": [closed],
            },
        ],
        "plugins": [{"name": "prometheus"}],
    }


def _route(name: str, *paths: str) -> dict[str, Any]:
    return {"name": name, "paths": list(paths), "strip_path": True, "preserve_host": False}


def gateway_environment(settings: GatewaySettings) -> dict[str, str]:
    """Every environment variable of Kong."""
    return {
        "KONG_DATABASE": "off",
        "KONG_DECLARATIVE_CONFIG": CONFIG_FILE,
        "KONG_PROXY_LISTEN": f"0.0.0.0:{PORT}",
        "KONG_STATUS_LISTEN": f"0.0.0.0:{STATUS_PORT}",
        "KONG_ADMIN_LISTEN": "off",
        "KONG_PLUGINS": ",".join(PLUGINS),
        "KONG_NGINX_WORKER_PROCESSES": str(settings.workers),
        # Open websockets would hold a stopping Kong until it is killed.
        "KONG_NGINX_MAIN_WORKER_SHUTDOWN_TIMEOUT": "3s",
        "KONG_DNS_ORDER": "LAST,A,CNAME",
        # Docker's DNS says 600 s, which would keep the address of a replaced Realtime for as long.
        "KONG_DNS_VALID_TTL": "2",
        "KONG_DNS_STALE_TTL": "0",
        # The path without its query, which holds the client's key.
        "KONG_NGINX_HTTP_LOG_FORMAT": "keyless '$remote_addr [$time_local] $request_method $uri $status $bytes_sent'",
        "KONG_PROXY_ACCESS_LOG": "/dev/stdout keyless",
        "KONG_PROXY_ERROR_LOG": "/dev/stderr",
        "KONG_STATUS_ERROR_LOG": "/dev/stderr",
        # Below, nginx writes the whole request, its query too, beside each failure of the upstream, whose status the
        # access log has anyway.
        "KONG_LOG_LEVEL": "crit",
        # What belongs to no request, such as why Kong cannot start: nginx.lua (Kong 2.8.1) has a log of its own for it.
        "KONG_NGINX_MAIN_ERROR_LOG": "/dev/stderr error",
    }


def published_ports(settings: GatewaySettings) -> list[docker.ContainerPortArgs]:
    """The proxy where it is told to be; the status listener, which asks for no key, on loopback or nowhere."""
    ports = [docker.ContainerPortArgs(internal=PORT, external=settings.port, ip=settings.host)]
    if settings.status_port:
        ports.append(docker.ContainerPortArgs(internal=STATUS_PORT, external=settings.status_port, ip=LOOPBACK))
    return ports


class Gateway(pulumi.ComponentResource):
    """The address that clients are given: a key check, CORS, the routes to Realtime, and no management path.

    Resources: PinnedImage; docker.Container ``<name>``, after ``realtime``; another kong.yml replaces it, since Kong
    keeps the old one silently when a reloaded file is broken. ContainerReadiness.
    """

    container: docker.Container

    def __init__(
        self,
        name: str,
        *,
        settings: GatewaySettings,
        upstream: str,
        keys: dict[ApiRole, str],
        realtime: pulumi.Resource,
        stack: str,
        network: StackNetwork,
        opts: pulumi.ResourceOptions | None = None,
    ) -> None:
        super().__init__("supabase-realtime:index:Gateway", name, None, opts)
        config = yaml.safe_dump(kong_config(settings, upstream=upstream, keys=keys), sort_keys=False)
        image = PinnedImage("gateway-image", image=settings.image, opts=pulumi.ResourceOptions(parent=self))
        self.container = docker.Container(
            "gateway",
            name=name,
            hostname=name,
            image=image.reference,
            envs=[f"{key}={value}" for key, value in gateway_environment(settings).items()],
            uploads=[docker.ContainerUploadArgs(file=CONFIG_FILE, content=pulumi.Output.secret(config))],
            networks_advanced=[docker.ContainerNetworksAdvancedArgs(name=network.network.id)],
            ports=published_ports(settings),
            capabilities=docker.ContainerCapabilitiesArgs(drops=["ALL"]),
            healthcheck=health_check("resty", "-e", STATUS.format(port=STATUS_PORT)),
            stop_timeout=10,
            destroy_grace_seconds=10,
            **container_defaults(stack, image=settings.image, memory=settings.memory),
            opts=pulumi.ResourceOptions(
                parent=self,
                depends_on=[realtime],
                delete_before_replace=True,
                replace_on_changes=["healthcheck", "uploads"],
            ),
        )
        ContainerReadiness(
            "gateway-ready", container=self.container.id, timeout=120, opts=pulumi.ResourceOptions(parent=self)
        )
        self.register_outputs({"container_id": self.container.id})
