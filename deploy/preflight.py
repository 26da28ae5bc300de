"""What must be there before anything is touched: the images, free ports, and data that the images can use."""

from __future__ import annotations

import errno
import socket
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import docker
from docker.errors import APIError, ImageNotFound, NotFound

from deploy import docker_objects, state
from deploy.docker_objects import Container, Published, container_names, is_labelled
from deploy.errors import DeployError
from providers import connection
from providers.postgres_major import major_fault
from providers.realtime_schema import downgrade_fault
from settings import IMAGE_VARIABLES, Settings

ANY = frozenset({"0.0.0.0", "::", ""})  # noqa: S104 - compared, not bound


@dataclass(frozen=True)
class WantedPort:
    """A port that the stack will publish, and the config keys that choose it."""

    key: str
    host: str
    port: int


def images(settings: Settings) -> dict[str, str]:
    """The stack's images by the config key that names them, overrides of the environment included."""
    own = {} if settings.postgres.external else {"postgres.image": settings.postgres.image}
    return {
        **own,
        "realtime.image": settings.realtime.image,
        "gateway.image": settings.gateway.image,
    }


def wanted_ports(settings: Settings) -> list[WantedPort]:
    """The ports of this machine that the stack publishes."""
    own = [] if settings.postgres.external else [("postgres.host_port", settings.postgres.host_port)]
    wanted = [
        *(WantedPort(key, "127.0.0.1", port) for key, port in own),
        WantedPort("realtime.host_port", "127.0.0.1", settings.realtime.host_port),
        WantedPort("gateway.port", settings.gateway.host, settings.gateway.port),
        WantedPort("gateway.status_port", "127.0.0.1", settings.gateway.status_port),
    ]
    return [want for want in wanted if want.port]


def external_faults(settings: Settings, exported: Mapping[str, Any]) -> list[str]:
    """Everything that keeps an external Postgres from being used, in one text; nothing when all is well.

    The program asks the same at every preview and update; here it is asked before an image is pulled.
    """
    own = state.id_of(exported, state.CONTAINER, f"{settings.name}-postgres")
    server = state.inputs_of(exported, state.EXTERNAL_SERVER)
    external = settings.postgres.external
    if external is None:
        if server is None:
            return []
        return [
            f"postgres.external.host: is no longer set, and stack {settings.stack} was made on {server['host']}; "
            f"set it back, or `make destroy STACK={settings.stack}` first, which leaves that server as it is"
        ]
    if own is not None:
        return [
            f"postgres.external.host: is set, and stack {settings.stack} runs a Postgres of its own, whose data would "
            f"go with its container; move the data, then `make destroy STACK={settings.stack}`, then set it again"
        ]
    # Only a stack with an external server pays for these imports.
    from components.database import PUBLICATION  # noqa: PLC0415
    from components.external_postgres import external_faults  # noqa: PLC0415
    from components.realtime import SLOT  # noqa: PLC0415
    from providers.external_server import message, readiness_faults  # noqa: PLC0415
    from realtime_versions import replication_slots  # noqa: PLC0415

    if faults := external_faults(settings):
        return faults
    connection.connect_to(connection.conninfo(settings.postgres))
    try:
        faults = readiness_faults(
            external,
            slots=replication_slots(settings.realtime.release),
            slot=SLOT,
            publication=PUBLICATION,
            tables=settings.published,
            known=None if server is None else server["server"],
        )
    finally:
        connection.close()
    return [message(external, faults)] if faults else []


def fetch_images(client: docker.DockerClient, wanted: Mapping[str, str]) -> None:
    """Pull the images that this engine has not got. Raises DeployError naming each that cannot be pulled."""
    variables = {key: variable for variable, key in IMAGE_VARIABLES.items()}
    faults = []
    for key, image in wanted.items():
        try:
            client.images.get(image)
        except ImageNotFound:
            print(f"pulling {image}", file=sys.stderr, flush=True)
            try:
                client.images.pull(image)
            except APIError as refused:
                faults.append(
                    f"{key}: image {image} is not on this engine and cannot be pulled ({one_line(refused)}); check its "
                    f"name and the network, or name another with {variables[key]}=… or `pulumi config set {key} …`"
                )
    if faults:
        raise DeployError(*faults)


def one_line(refused: APIError) -> str:
    """The engine's own explanation, on one line."""
    return " ".join(str(refused.explanation or refused).split())


def port_faults(
    stack: str, wanted: Iterable[WantedPort], all_containers: Iterable[Container], *, local: bool
) -> list[str]:
    """One line for each wanted port that somebody else holds.

    What a container of the stack holds counts as free: it goes or stays with the stack. ``local`` says that the
    engine is on this machine, so that its ports can be tried.
    """
    faults = []
    running = [c for c in all_containers if c.published]
    for want in wanted:
        holders = [c for c in running if any(conflicts(want, held) for held in c.published)]
        other = [c for c in holders if not (c.name in container_names(stack) or is_labelled(c.labels, stack))]
        cure = f"or choose another with `pulumi config set {want.key} <port> --stack {stack}`"
        if other:
            faults.append(
                f"{want.key}: port {want.port} is held by container {other[0].name}; "
                f"stop it with `docker stop {other[0].name}`, {cure}"
            )
        elif local and not holders and (reason := bind_fault(want.host, want.port)):
            faults.append(
                f"{want.key}: port {want.port} cannot be had on {want.host} ({reason}); "
                f"`ss -ltnp 'sport = :{want.port}'` shows who holds it; end that, {cure}"
            )
    return faults


def upgrade_faults(client: docker.DockerClient, wanted: Settings) -> list[str]:
    """One line for each image that cannot use the data that there is.

    The program refuses them as well, at its preview; an update that has none would by then be under way.
    """
    found = [postgres_fault(client, wanted), realtime_fault(wanted)]
    return [fault for fault in found if fault is not None]


def postgres_fault(client: docker.DockerClient, wanted: Settings) -> str | None:
    """Why the Postgres image cannot read the stack's volume. Not asked of the image that runs on it."""
    if wanted.postgres.external is not None:
        return None
    name = f"{wanted.name}-postgres"
    try:
        client.volumes.get(name)
    except NotFound:
        return None
    image = client.images.get(wanted.postgres.image)
    running = next((c.id for c in docker_objects.containers(client) if c.name == name), None)
    if running is not None and client.containers.get(running).attrs["Image"] == image.id:
        return None
    return major_fault(client, image=wanted.postgres.image, volume=name)


def realtime_fault(wanted: Settings) -> str | None:
    """Why the version of Realtime cannot use the database. Not asked of a Postgres that does not answer: the
    update, which needs one that does, asks again."""
    if wanted.realtime.release is None:
        return None
    connection.connect_to(connection.conninfo(wanted.postgres))
    try:
        with connection.transaction() as cursor:
            return downgrade_fault(cursor, wanted.realtime.release)
    except connection.DatabaseError:
        return None
    finally:
        connection.close()


def conflicts(want: WantedPort, held: Published) -> bool:
    """Whether a published port and a wanted one cannot both be had."""
    return want.port == held.port and (want.host == held.ip or want.host in ANY or held.ip in ANY)


def bind_fault(host: str, port: int) -> str | None:
    """Why this machine does not let the port be opened; None when it does.

    A port below 1024 that only root may open is no fault: the Docker engine, which will open it, is root.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a port in TIME_WAIT is free
        try:
            probe.bind((host, port))
        except OSError as refused:
            return None if refused.errno == errno.EACCES else refused.strerror
    return None


def engine_is_local(client: docker.DockerClient) -> bool:
    """Whether the engine's ports are this machine's: it listens on a socket file, or on loopback."""
    address = urlsplit(str(client.api.base_url))
    return address.scheme.startswith("http+") or address.hostname in ("127.0.0.1", "localhost")
