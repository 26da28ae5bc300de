"""The Postgres server of the stack, in a container with its data in a volume."""

from __future__ import annotations

from pathlib import Path

import pulumi
import pulumi_docker as docker

from components.external_postgres import DatabaseAddress
from components.network import LOOPBACK, StackNetwork, container_defaults, health_check, labels
from providers.container_readiness import ContainerReadiness
from providers.image import PinnedImage
from settings import PostgresSettings

SQL = Path(__file__).parent.parent / "sql"
FIRST_START = {"zz-realtime-1-server.sql": "bootstrap.sql", "zz-realtime-2-auth.sql": "auth.sql"}
"""Files of the image's init folder, run in order of their names: after migrate.sh, by which supabase/postgres makes
its roles and its publication."""
DATA_FOLDER = "/var/lib/postgresql/data"
KEY_FOLDER = "/etc/postgresql-custom"
"""Where supabase/postgres keeps pgsodium's root key; without it, what vault encrypted is lost with the container."""
CAPABILITIES = ["CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_SETGID", "CAP_SETUID"]
"""What the image's entrypoint needs to hand the volume over to user postgres and to become that user.

As the engine reports them: without the prefix, every refresh would want another container.
"""
PORT = 5432


class PostgresServer(pulumi.ComponentResource):
    """A Postgres that decodes changes for Realtime, reachable from the stack's network and from loopback.

    Healthy when it answers over TCP: during its first start it answers on its socket only, and restarts.

    Resources: docker.Volume ``<name>`` and ``<name>-keys``, which survive a replaced container and, when
    ``settings.protect``, the stack; PinnedImage, which raises ImageError when the image is of another major version
    than the volume's data; docker.Container ``<name>``; ContainerReadiness.
    """

    address: DatabaseAddress
    volume: docker.Volume
    container: docker.Container

    def __init__(
        self,
        name: str,
        *,
        settings: PostgresSettings,
        stack: str,
        network: StackNetwork,
        opts: pulumi.ResourceOptions | None = None,
    ) -> None:
        super().__init__("supabase-realtime:index:PostgresServer", name, None, opts)
        child_opts = pulumi.ResourceOptions(parent=self)
        self.address = DatabaseAddress(name, PORT)
        self.volume, keys = (
            docker.Volume(
                resource,
                name=volume,
                labels=[docker.VolumeLabelArgs(label=k, value=v) for k, v in labels(stack).items()],
                opts=pulumi.ResourceOptions.merge(
                    child_opts, pulumi.ResourceOptions(retain_on_delete=settings.protect)
                ),
            )
            for resource, volume in (("postgres-data", name), ("postgres-keys", f"{name}-keys"))
        )
        image = PinnedImage("postgres-image", image=settings.image, data_volume=self.volume.name, opts=child_opts)
        self.container = docker.Container(
            "postgres",
            name=name,
            hostname=name,
            image=image.reference,
            envs=pulumi.Output.secret(
                [
                    f"POSTGRES_USER={settings.user}",
                    f"POSTGRES_PASSWORD={settings.password.get_secret_value()}",
                    f"POSTGRES_DB={settings.database}",
                    f"PGDATA={DATA_FOLDER}",
                ]
            ),
            uploads=[
                docker.ContainerUploadArgs(
                    file=f"/docker-entrypoint-initdb.d/{file}", content=(SQL / source).read_text()
                )
                for file, source in FIRST_START.items()
            ],
            mounts=[
                docker.ContainerMountArgs(type="volume", source=self.volume.name, target=DATA_FOLDER),
                docker.ContainerMountArgs(type="volume", source=keys.name, target=KEY_FOLDER),
            ],
            networks_advanced=[docker.ContainerNetworksAdvancedArgs(name=network.network.id)],
            ports=[docker.ContainerPortArgs(internal=PORT, external=settings.host_port, ip=LOOPBACK)],
            capabilities=docker.ContainerCapabilitiesArgs(drops=["ALL"], adds=CAPABILITIES),
            shm_size=64,
            healthcheck=health_check("pg_isready", "-h", LOOPBACK, "-U", settings.user, "-d", settings.database),
            stop_timeout=60,
            destroy_grace_seconds=60,
            **container_defaults(stack, image=settings.image, memory=settings.memory),
            opts=pulumi.ResourceOptions.merge(
                child_opts,
                pulumi.ResourceOptions(
                    delete_before_replace=True,
                    replace_on_changes=["healthcheck"],
                    # Read at the first start alone: for another password, a replaced server would be an outage that
                    # changes nothing.
                    ignore_changes=["envs"],
                ),
            ),
        )
        ContainerReadiness("postgres-ready", container=self.container.id, timeout=180, opts=child_opts)
        self.register_outputs({"address": self.address.host, "container_id": self.container.id})
