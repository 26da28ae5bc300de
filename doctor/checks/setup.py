"""What is examined: a stack of this program, or any Realtime set-up given by URL and DSN."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from enum import StrEnum
from functools import cached_property
from typing import Any, TypeVar

import docker
import httpx
import psycopg
import requests
from docker.errors import DockerException, NotFound
from docker.models.containers import Container
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.rows import DictRow, dict_row
from pydantic import BaseModel, ConfigDict, Field, SecretStr

from deploy.backend import choose
from deploy.docker_objects import IMAGE_LABEL
from deploy.errors import DeployError
from doctor.outputs import PROJECT, Outputs, PublishedTable, pulumi
from settings import (
    IMAGE_VARIABLES,
    NAMESPACE,
    GatewaySettings,
    JwtSettings,
    PostgresSettings,
    RealtimeSettings,
    Section,
    SettingsError,
    load_section,
)

CONNECT_SECONDS = 4
HTTP_SECONDS = 4.0
DOCKER_SECONDS = 5
CONFIG_SECONDS = 15
STATEMENT_TIMEOUT = "4s"
JWT = re.compile(r"eyJ[\w-]+\.[\w-]+\.[\w-]*")
SECRET_VARIABLE = re.compile(r"PASS|SECRET|KEY", re.IGNORECASE)

SectionT = TypeVar("SectionT", bound=Section)


class Need(StrEnum):
    """What a check needs of a setup to look at all."""

    DATABASE = "database"
    DOCKER = "docker"
    GATEWAY = "gateway"
    REALTIME = "realtime"
    KEY = "key"


class Config(BaseModel):
    """The sections of a stack's config that could be read; a section is None when a setting of it is at fault."""

    model_config = ConfigDict(frozen=True)

    postgres: PostgresSettings | None = None
    realtime: RealtimeSettings | None = None
    gateway: GatewaySettings | None = None
    jwt: JwtSettings | None = None
    docker_host: str | None = None
    """The address of the Docker engine, when it is not the environment's."""


class Setup(BaseModel):
    """One Realtime set-up and the connections to look at it, opened when first used. Close it, or use it with `with`.

    ``stack`` is None for a set-up that this program did not make; then what needs Docker or the config is skipped.
    ``tables`` empty: those of the publication. ``realtime_url`` is Realtime itself, without the gateway. ``config``
    is None when it could not be read; ``config_reason`` says why.
    """

    model_config = ConfigDict(frozen=True, ignored_types=(cached_property,))

    stack: str | None = None
    url: str | None = None
    tenant: str | None = None
    anon_key: SecretStr | None = None
    service_role_key: SecretStr | None = None
    dsn: SecretStr | None = None
    tables: tuple[PublishedTable, ...] = ()
    realtime_url: str | None = None
    config: Config | None = None
    config_reason: str = "this program did not make the set-up, so that its settings are not known"
    outputs: Outputs | None = Field(default=None, repr=False)

    def __enter__(self) -> Setup:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __copy__(self) -> Setup:
        """Without what was opened or worked out of it already: a copy may be of another server."""
        copied = super().__copy__()
        for name in set(copied.__dict__) - set(type(self).model_fields):
            del copied.__dict__[name]
        return copied

    def close(self) -> None:
        """Closes what was opened. The setup can be used again: it opens new connections."""
        opened = self.__dict__
        for name in ("connection", "http", "engine"):
            connection = opened.pop(name, None)
            if connection is not None:
                connection.close()
        for name in ("parts", "docker_reason", "network"):
            opened.pop(name, None)

    def lacks(self, need: Need) -> str | None:
        """Why a check with that need cannot look, None when it can."""
        match need:
            case Need.DATABASE:
                return None if self.dsn else "no DSN was given"
            case Need.DOCKER:
                return self.docker_reason
            case Need.GATEWAY:
                return None if self.url else "no URL was given"
            case Need.REALTIME:
                return None if self.realtime_url else "where Realtime listens, without the gateway, is not known"
            case Need.KEY:
                return None if self.anon_key else "no anon key was given"

    def at_gateway(self, path: str) -> str:
        """The URL of a path at the gateway."""
        assert self.url is not None, "what asks the gateway needs its URL"
        return self.url.rstrip("/") + path

    def at_realtime(self, path: str) -> str:
        """The URL of a path at Realtime itself."""
        assert self.realtime_url is not None, "what asks Realtime needs its URL"
        return self.realtime_url + path

    @property
    def key(self) -> str:
        """The anon key."""
        assert self.anon_key is not None, "what presents the anon key needs one"
        return self.anon_key.get_secret_value()

    # The database

    @property
    def where(self) -> dict[str, Any]:
        """The parameters of the DSN, the password too."""
        assert self.dsn is not None, "what asks the database needs a DSN"
        return dict(conninfo_to_dict(self.dsn.get_secret_value()))

    @cached_property
    def connection(self) -> psycopg.Connection[DictRow]:
        """A connection that reads only, autocommit. Raises psycopg.OperationalError."""
        assert self.dsn is not None, "what asks the database needs a DSN"
        return psycopg.connect(
            make_conninfo(
                self.dsn.get_secret_value(),
                connect_timeout=CONNECT_SECONDS,
                application_name="doctor",
                options=f"-c statement_timeout={STATEMENT_TIMEOUT} -c default_transaction_read_only=on",
            ),
            autocommit=True,
            row_factory=dict_row,
        )

    def rows(self, query: str, parameters: Sequence[Any] | Mapping[str, Any] | None = None) -> list[dict[str, Any]]:
        """The rows of a query. Raises psycopg.Error."""
        with self.connection.cursor() as cursor:
            return cursor.execute(query.encode(), parameters).fetchall()

    def row(self, query: str, parameters: Sequence[Any] | Mapping[str, Any] | None = None) -> dict[str, Any]:
        """The one row of a query that always has one."""
        (row,) = self.rows(query, parameters)
        return row

    # HTTP

    @cached_property
    def http(self) -> httpx.Client:
        return httpx.Client(timeout=HTTP_SECONDS, trust_env=False, follow_redirects=False)

    # Docker

    @cached_property
    def docker_reason(self) -> str | None:
        """Why containers cannot be looked at; None when they can."""
        if self.stack is None:
            return "this program did not make the set-up, so that its containers are not known"
        try:
            self.engine.ping()
        except (DockerException, requests.RequestException) as unreachable:
            return f"the Docker engine does not answer ({type(unreachable).__name__})"
        return None

    @cached_property
    def engine(self) -> docker.DockerClient:
        host = self.config.docker_host if self.config else None
        environ = {**os.environ, **({"DOCKER_HOST": host} if host else {})}
        return docker.from_env(timeout=DOCKER_SECONDS, environment=environ)

    @cached_property
    def network(self) -> str | None:
        """The id of the stack's network, None when it is gone."""
        with suppress(NotFound):
            found: str = self.engine.networks.get(f"{NAMESPACE}-{self.stack}").id
            return found
        return None

    @cached_property
    def parts(self) -> dict[str, Container | None]:
        """The stack's containers by part: postgres, realtime, gateway. None for one that does not exist."""
        return {part: self._container(part) for part in ("postgres", "realtime", "gateway")}

    def _container(self, part: str) -> Container | None:
        with suppress(NotFound):
            return self.engine.containers.get(self.container_name(part))
        return None

    @property
    def external_database(self) -> bool:
        """Whether somebody else runs the stack's Postgres."""
        return self.outputs is not None and self.outputs.database.external

    def container_name(self, part: str) -> str:
        """The name of a part's container; of a set-up that is not ours, the part."""
        return f"{NAMESPACE}-{self.stack}-{part}" if self.stack else part

    def environment(self, part: str) -> dict[str, str] | None:
        """The environment variables of a container, None when it cannot be looked at. Holds secrets."""
        if self.docker_reason is not None or (container := self.parts[part]) is None:
            return None
        return dict(entry.split("=", 1) for entry in container.attrs["Config"]["Env"] or () if "=" in entry)

    # Secrets

    @cached_property
    def secrets(self) -> frozenset[str]:
        """Every value that no report may show."""
        found: set[str] = set()
        for secret in (self.anon_key, self.service_role_key):
            if secret is not None:
                found.add(secret.get_secret_value())
        if self.dsn is not None:
            found.add(str(self.where.get("password") or ""))
        for _, section in self.config or ():
            if isinstance(section, Section):
                found |= {value.get_secret_value() for _, value in section if isinstance(value, SecretStr)}
        return frozenset(found)

    def redacted(self, text: str) -> str:
        """The text without the secrets that the doctor knows, and without anything that looks like a JWT."""
        for secret in sorted(self.secrets | self._environment_secrets(), key=len, reverse=True):
            if secret and secret not in self._public():
                text = text.replace(secret, "[secret]")
        return JWT.sub("[jwt]", text)

    def _environment_secrets(self) -> set[str]:
        """Of containers that were looked at already."""
        containers = self.__dict__.get("parts") or {}
        return {
            entry.partition("=")[2]
            for container in containers.values()
            if container is not None
            for entry in container.attrs["Config"]["Env"] or ()
            if SECRET_VARIABLE.search(entry.partition("=")[0])
        }

    def _public(self) -> set[str]:
        """Words that a weak password may equal: to hide them would hide half of the report."""
        where = self.where if self.dsn is not None else {}
        return {str(where.get(key)) for key in ("user", "dbname", "host")} | {str(self.tenant), "postgres", "true"}


def image_name(container: Container) -> str:
    """The image of a container as a person names it; one of the stack's, of a local image, has only its id for that."""
    config = container.attrs["Config"]
    image = str(config["Image"])
    return str((config["Labels"] or {}).get(IMAGE_LABEL, image)) if image.startswith("sha256:") else image


def of_outputs(outputs: Outputs, *, stack: str | None, config: Config | None = None, reason: str = "") -> Setup:
    """The set-up of a stack, by its outputs. ``reason`` says why there is no config."""
    database = outputs.database
    realtime = config.realtime if config else None
    return Setup(
        stack=stack,
        url=outputs.url,
        tenant=outputs.tenant,
        anon_key=SecretStr(outputs.anon_key),
        service_role_key=outputs.service_role_key,
        dsn=SecretStr(
            make_conninfo(
                **database.server,
                password=outputs.database_password.get_secret_value(),
            )
        ),
        tables=outputs.tables,
        realtime_url=f"http://127.0.0.1:{realtime.host_port}" if realtime else None,
        config=config,
        config_reason=reason,
        outputs=outputs,
    )


def read_config(stack: str, *, environ: Mapping[str, str] = os.environ) -> tuple[Config | None, str]:
    """The config of a stack, asked of the Pulumi CLI that the outputs come from; None with the reason without it.

    The outputs alone do not hold what the tenant's secrets are encrypted with, nor the secret of the management API.
    """
    try:
        backend = choose(PROJECT, stack, environ)
        command = [pulumi(PROJECT, environ), "config", "--json", "--show-secrets", "--non-interactive"]
        answer = subprocess.run(  # noqa: S603 - the CLI that `make up` used, without a shell
            [*command, "--stack", stack],
            cwd=PROJECT,
            env={**environ, **backend.environ},
            capture_output=True,
            text=True,
            timeout=CONFIG_SECONDS,
            check=True,
        )
    except DeployError as refused:
        return None, "; ".join(refused.faults)
    except (subprocess.SubprocessError, OSError) as failed:
        return None, f"the config of stack {stack} cannot be read ({type(failed).__name__})"
    values = {key: entry.get("value") for key, entry in json.loads(answer.stdout).items()}
    return config_of(values, environ=environ), "a setting of that section is at fault (`make preview` says which)"


def config_of(values: Mapping[str, Any], *, environ: Mapping[str, str]) -> Config:
    """The sections that are valid, of config values by their full keys, and the images that ``environ`` overrides."""
    overrides = {f"{NAMESPACE}:{key}": environ[v] for v, key in IMAGE_VARIABLES.items() if environ.get(v)}
    values = {**values, **overrides}

    def section(name: str, model: type[SectionT]) -> SectionT | None:
        try:
            return load_section(name, model, values.get)
        except SettingsError:
            return None  # the check that needs it is skipped, and says so

    return Config(
        postgres=section("postgres", PostgresSettings),
        realtime=section("realtime", RealtimeSettings),
        gateway=section("gateway", GatewaySettings),
        jwt=section("jwt", JwtSettings),
        docker_host=values.get("docker:host"),
    )


@contextmanager
def second_connection(setup: Setup) -> Iterator[psycopg.Connection[DictRow]]:
    """A connection of its own, ended afterwards, with what it made for itself: a temporary replication slot."""
    assert setup.dsn is not None, "what asks the database needs a DSN"
    with psycopg.connect(
        make_conninfo(
            setup.dsn.get_secret_value(),
            connect_timeout=CONNECT_SECONDS,
            application_name="doctor",
            options=f"-c statement_timeout={STATEMENT_TIMEOUT}",
        ),
        autocommit=True,
        row_factory=dict_row,
    ) as connection:
        yield connection
