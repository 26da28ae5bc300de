"""The Realtime server and its tenant."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pulumi
import pulumi_docker as docker

from components.database import PUBLICATION, RealtimeDatabase
from components.external_postgres import DatabaseAddress
from components.network import LOOPBACK, StackNetwork, container_defaults, health_check
from providers.container_readiness import ContainerReadiness
from providers.image import PinnedImage
from providers.network_alias import NetworkAlias
from providers.realtime_schema import RealtimeSchema
from providers.tenant import LIMITS, RealtimeTenant
from realtime_versions import version_environment
from settings import HOST_GATEWAY, JwtSettings, PostgresSettings, RealtimeSettings
from tokens import public_keys, tenant_secret

PORT = 4000
SLOT = "supabase_realtime_replication_slot"
ANSWERS = ("curl", "-fsS", "--fail-early", *("-o", "/dev/null", f"http://127.0.0.1:{PORT}/healthcheck") * 3)
"""Several answers in a row: newer versions answer, restart, and answer again while they start."""
CA_FILE = "/tmp/postgres-ca.pem"  # noqa: S108 - inside the container
"""Written at each start, since a read-only container takes no upload."""
CA_VARIABLE = "POSTGRES_CA"
WITH_CA = (
    *("/usr/bin/tini", "-s", "-g", "--"),
    *("sh", "-c", f'printf %s "${CA_VARIABLE}" >{CA_FILE} && exec /app/run.sh "$@"', "run.sh"),
)
"""The image's entrypoint, tini and run.sh (Dockerfile, the same in v2.32.12 and v2.129.8), after writing CA_FILE."""
SERVER = "/app/bin/server"


def realtime_environment(
    settings: RealtimeSettings, *, postgres: PostgresSettings, address: DatabaseAddress
) -> dict[str, str]:
    """Every environment variable of Realtime, set for v2.32.12 and newer alike.

    The tenant's limits are repeated as the server's defaults. A tenant of its own is not seeded
    (SEED_SELF_HOST): the seed deletes and remakes its tenant at every start, and ours is RealtimeTenant.
    """
    return {
        "APP_NAME": "realtime",
        "PORT": str(PORT),
        "DB_HOST": address.host,
        "DB_PORT": str(address.port),
        "DB_USER": postgres.user,
        "DB_PASSWORD": postgres.password.get_secret_value(),
        "DB_NAME": postgres.database,
        "DB_AFTER_CONNECT_QUERY": "SET search_path TO _realtime",
        "DB_ENC_KEY": settings.db_enc_key.get_secret_value(),
        "API_JWT_SECRET": settings.api_jwt_secret.get_secret_value(),
        "METRICS_JWT_SECRET": settings.metrics_jwt_secret.get_secret_value(),
        "SECRET_KEY_BASE": settings.secret_key_base.get_secret_value(),
        "SEED_SELF_HOST": "false",
        "RLIMIT_NOFILE": str(settings.rlimit_nofile),
        # One node: no cluster to find. Since 2.46.2 the default strategy dies with Postgres.
        "CLUSTER_STRATEGIES": "DNS",
        "DNS_NODES": "''",
        # The image's default wants IPv6, which a Docker network has not got by default. Before LOG_LEVEL came
        # (2.33.69) Realtime logs at debug, which includes the tenant as it is PUT: its password and its JWT secret.
        # Time zones come from its image, which is read-only.
        "ERL_AFLAGS": "-proto_dist inet_tcp -logger level info -tzdata autoupdate disabled",
        **{f"TENANT_{limit.upper()}": str(getattr(settings, limit)) for limit in LIMITS},
        **version_environment(settings.release),
        **({"DB_SSL": "true"} if address.tls else {}),
        **_ca_environment(address),
        **dict(variable.split("=", 1) for variable in settings.environment),
    }


def _ca_environment(address: DatabaseAddress) -> dict[str, str]:
    if address.ca_file is None:
        return {}
    return {"DB_SSL_CA_CERT": CA_FILE, CA_VARIABLE: Path(address.ca_file).read_text()}


def _reaching(address: DatabaseAddress) -> dict[str, Any]:
    """Arguments of a container that calls an external database: the name of this machine, and a file with the CA."""
    arguments: dict[str, Any] = {}
    if address.host == HOST_GATEWAY:
        arguments["hosts"] = [docker.ContainerHostArgs(host=HOST_GATEWAY, ip="host-gateway")]
    if address.ca_file is not None:
        arguments |= {"entrypoints": WITH_CA, "command": [SERVER]}
    return arguments


class RealtimeServer(pulumi.ComponentResource):
    """Realtime with its one tenant, ready for the first subscriber.

    The server starts as soon as its schemas are there; its tenant waits for the whole database.

    Resources: PinnedImage; RealtimeSchema, which raises DatabaseError when the database has been migrated beyond what
    this version can use; docker.Container ``<name>``, on loopback for its management API; ContainerReadiness;
    NetworkAlias, the name of the tenant, under which the gateway calls; RealtimeTenant, which raises TenantError when
    it does not connect.
    """

    container: docker.Container
    tenant: RealtimeTenant

    def __init__(
        self,
        name: str,
        *,
        settings: RealtimeSettings,
        postgres: PostgresSettings,
        jwt: JwtSettings,
        address: DatabaseAddress,
        database: RealtimeDatabase,
        data: pulumi.Resource,
        stack: str,
        network: StackNetwork,
        opts: pulumi.ResourceOptions | None = None,
    ) -> None:
        super().__init__("supabase-realtime:index:RealtimeServer", name, None, opts)
        child_opts = pulumi.ResourceOptions(parent=self)
        environment = realtime_environment(settings, postgres=postgres, address=address)
        image = PinnedImage("realtime-image", image=settings.image, opts=child_opts)
        schema = RealtimeSchema(
            "realtime-schema",
            realtime_version=str(settings.release or ""),
            opts=pulumi.ResourceOptions.merge(
                child_opts, pulumi.ResourceOptions(depends_on=database.schemas, deleted_with=data)
            ),
        )
        self.container = docker.Container(
            "realtime",
            name=name,
            hostname=name,
            image=image.reference,
            envs=pulumi.Output.secret([f"{key}={value}" for key, value in environment.items()]),
            **_reaching(address),
            networks_advanced=[
                docker.ContainerNetworksAdvancedArgs(name=network.network.id, aliases=[settings.tenant])
            ],
            ports=[docker.ContainerPortArgs(internal=PORT, external=settings.host_port, ip=LOOPBACK)],
            ulimits=[
                docker.ContainerUlimitArgs(name="nofile", soft=settings.rlimit_nofile, hard=settings.rlimit_nofile)
            ],
            read_only=True,
            tmpfs={"/tmp": "rw,mode=1777,size=64m"},  # noqa: S108 - inside the container
            healthcheck=health_check(*ANSWERS),
            stop_timeout=10,
            destroy_grace_seconds=10,
            **container_defaults(stack, image=settings.image, memory=settings.memory),
            opts=pulumi.ResourceOptions.merge(
                child_opts,
                pulumi.ResourceOptions(
                    depends_on=[schema], delete_before_replace=True, replace_on_changes=["healthcheck"]
                ),
            ),
        )
        alias = NetworkAlias(
            "alias", container=self.container.id, network=network.network.id, alias=settings.tenant, opts=child_opts
        )
        ready = ContainerReadiness("realtime-ready", container=self.container.id, timeout=120, opts=child_opts)
        self.tenant = RealtimeTenant(
            "tenant",
            external_id=settings.tenant,
            jwt_secret=pulumi.Output.secret(tenant_secret(jwt)),
            public_keys=public_keys(jwt),
            limits={limit: getattr(settings, limit) for limit in LIMITS},
            database={
                "db_host": address.host,
                "db_port": str(address.port),
                "db_name": postgres.database,
                "db_user": postgres.user,
                "db_password": pulumi.Output.secret(postgres.password.get_secret_value()),
            },
            poll_interval_ms=settings.poll_interval_ms,
            poll_max_changes=settings.poll_max_changes,
            publication=PUBLICATION,
            slot_name=SLOT,
            ssl_enforced=address.tls,
            server=self.container.id,
            opts=pulumi.ResourceOptions.merge(
                child_opts, pulumi.ResourceOptions(depends_on=[database, alias, ready], deleted_with=data)
            ),
        )
        self.register_outputs({"container_id": self.container.id, "tenant": self.tenant.external_id})
