"""Many tables with four policies each, against as many empty resources."""

from __future__ import annotations

import shutil
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import docker
import psycopg
from psycopg import sql

from bench.measure import BenchError, Measured
from bench.projects import (
    PROGRAMS,
    STACK_LABEL,
    Project,
    comparison_project,
    development_config,
    remove_docker_objects,
    remove_volume,
    stack_project,
)
from bench.report import Result, against, ratio, seconds
from settings import Settings

ROUNDS = 3
SIZES = (10, 100, 500)
BOUND = 1.5
RESOURCES_A_TABLE = 1.2
READY_SECONDS = 180
POLL_SECONDS = 0.1
COMMANDS = ("up", "preview", "refreshed preview")
OURS, EMPTY = "tables", "empty resources"


class Key(NamedTuple):
    """What a time belongs to."""

    size: int
    program: str
    command: str


def run(work: Path, rounds: int) -> Result:
    """Alternate the two programs at every size, each from an empty state and on a database of its own."""
    taken: defaultdict[Key, list[Measured]] = defaultdict(list)
    resources: dict[tuple[int, str], int] = {}
    client = docker.from_env()
    config = development_config()
    for key in ("migrations", "tables"):
        config.pop(key, None)
    for number in range(rounds):
        for size in (0, *SIZES):
            folder = work / f"{number}-{size}"
            ours = stack_project(
                folder / "tables", program=PROGRAMS / "tables.py", config=config | {"bench:tables": size}
            )
            others = comparison_project(
                folder / "empty", program="empty_resources.py", config={"bench:resources": size}
            )
            settings = ours.settings()
            try:
                with postgres(client, settings):
                    make_tables(settings, size)
                    for program, project in ((OURS, ours), (EMPTY, others)):
                        for command in COMMANDS:
                            taken[Key(size, program, command)].append(_measured(project, command))
                        resources[size, program] = project.resources()
            finally:
                remove_volume(client, settings.name)
            shutil.rmtree(folder)
    return _result(rounds, taken, resources)


def _measured(project: Project, command: str) -> Measured:
    if command == "up":
        return project.up(memory=True)
    if command == "preview":
        return project.preview(memory=True)
    return project.refreshed_preview(memory=True)


@contextmanager
def postgres(client: docker.DockerClient, settings: Settings) -> Iterator[None]:
    """The stack's Postgres without the stack, until the block ends."""
    postgres = settings.postgres
    try:
        client.containers.run(
            postgres.image,
            detach=True,
            name=f"{settings.name}-postgres",
            labels={STACK_LABEL: settings.stack},
            ports={"5432/tcp": ("127.0.0.1", postgres.host_port)},
            environment={
                "POSTGRES_USER": postgres.user,
                "POSTGRES_PASSWORD": postgres.password.get_secret_value(),
                "POSTGRES_DB": postgres.database,
            },
        )
        deadline = time.monotonic() + READY_SECONDS
        while not _accepts(settings):
            if time.monotonic() > deadline:
                raise BenchError(f"Postgres does not answer after {READY_SECONDS} s")
            time.sleep(POLL_SECONDS)
        yield
    finally:
        remove_docker_objects(client, settings.stack)


def _connect(settings: Settings) -> psycopg.Connection[tuple[Any, ...]]:
    return psycopg.connect(
        host="127.0.0.1",
        port=settings.postgres.host_port,
        dbname=settings.postgres.database,
        user=settings.postgres.user,
        password=settings.postgres.password.get_secret_value(),
    )


def _accepts(settings: Settings) -> bool:
    try:
        _connect(settings).close()
    except psycopg.OperationalError:
        return False
    return True


def make_tables(settings: Settings, size: int) -> None:
    """The tables themselves, as an application's migrations would have made them."""
    with _connect(settings) as connection:
        for number in range(size):
            connection.execute(
                sql.SQL("CREATE TABLE {} (id bigint PRIMARY KEY, active boolean NOT NULL)").format(
                    sql.Identifier("public", f"table_{number:03}")
                )
            )
        # The image makes it, empty; PublicationHandover is not to be measured refusing or dropping it.
        connection.execute("DROP PUBLICATION IF EXISTS supabase_realtime")


def _result(rounds: int, taken: dict[Key, list[Measured]], resources: dict[tuple[int, str], int]) -> Result:
    def times(size: int, program: str, command: str) -> list[float]:
        return [measured.seconds for measured in taken[Key(size, program, command)]]

    def memory(size: int, program: str, command: str) -> str:
        return f"{max(measured.peak_mib for measured in taken[Key(size, program, command)]):.0f}"

    def beyond_none(size: int, program: str, command: str) -> list[float]:
        none = times(0, program, command)
        return [some - nothing for some, nothing in zip(times(size, program, command), none, strict=True)]

    rows = []
    for size in (0, *SIZES):
        for command in COMMANDS:
            ours, others = times(size, OURS, command), times(size, EMPTY, command)
            growth = ratio(beyond_none(size, OURS, command), beyond_none(size, EMPTY, command)) if size else None
            found = ratio(ours, others)
            rows.append(
                (
                    f"{size}, {command}",
                    f"{resources[size, OURS]} / {resources[size, EMPTY]}",
                    seconds(ours),
                    seconds(others),
                    f"{found:.2f}" if size == 0 else against(found, BOUND),
                    "" if growth is None else f"{growth:.2f}",
                    f"{memory(size, OURS, command)} / {memory(size, EMPTY, command)}",
                )
            )
    least, most = SIZES[0], SIZES[-1]
    a_table = (resources[most, OURS] - resources[least, OURS]) / (most - least)
    return Result(
        name="tables",
        command=f"python -m bench tables --rounds {rounds}",
        columns=(
            "tables, command",
            "resources: tables / empty",
            "tables, s",
            "empty resources, s",
            "ratio",
            "ratio without the fixed part",
            "peak memory, MiB",
        ),
        rows=tuple(rows),
        notes=(
            f"Resources a table: {against(a_table, RESOURCES_A_TABLE)}; "
            f"{resources[0, OURS]} resources are there without any table.",
        ),
    )
