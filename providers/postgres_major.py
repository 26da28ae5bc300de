"""Whether a Postgres image can read the data of a volume: each major version has a format of its own."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import docker

ASK = 'cat /volume/PG_VERSION; postgres --version 2>/dev/null || echo "(PostgreSQL) ${PG_MAJOR:-unknown}"'
"""Two lines: the volume's major version, and the image's. Every image of Postgres has a shell and cat."""


class Majors(NamedTuple):
    """Major versions; None for a volume without data, and for an image that does not tell."""

    volume: int | None
    image: int | None


def parsed(answer: str) -> Majors:
    """What ASK answered."""
    volume, _, image = answer.strip().partition("\n")
    server = re.search(r"\(PostgreSQL\) (\d+)", image)
    return Majors(int(volume) if volume.isdigit() else None, int(server[1]) if server else None)


def majors(client: docker.DockerClient, *, image: str, volume: str) -> Majors:
    """The major versions of an existing volume's data and of an image, by a container that reads the volume.

    It is not started on a volume without data. It has the volume's labels, by which one that was cut off is found
    among the stack's left-overs.
    """
    from docker.errors import NotFound  # noqa: PLC0415
    from docker.types import Mount  # noqa: PLC0415

    container = client.containers.create(
        image,
        entrypoint=["sh", "-c", ASK],
        command=[],
        user="0",
        network_mode="none",
        labels=client.volumes.get(volume).attrs["Labels"] or {},
        mounts=[Mount("/volume", volume, type="volume", read_only=True, no_copy=True)],
    )
    try:
        container.get_archive("/volume/PG_VERSION")
        container.start()
        container.wait()
        return parsed(container.logs(stderr=False).decode())
    except NotFound:
        return Majors(None, None)
    finally:
        container.remove(force=True)


def major_fault(client: docker.DockerClient, *, image: str, volume: str) -> str | None:
    """Why the image must not be started on the volume, with the cure; None when it may, or does not tell."""
    found = majors(client, image=image, volume=volume)
    if found.volume is None or found.image is None or found.volume == found.image:
        return None
    return (
        f"postgres.image: {image} is Postgres {found.image}, and the data in volume {volume} is of Postgres "
        f"{found.volume}, which it cannot read; set postgres.image back to one of Postgres {found.volume}, or dump "
        f"the data and restore it into a stack of Postgres {found.image} (docs/upgrade.md)"
    )
