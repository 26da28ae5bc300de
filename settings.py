"""The stack's settings: frozen models of every config key, the only place that reads config.

A key is ``supabase-realtime:<section>.<field>`` (``pulumi config set postgres.password …``), with the two
lists ``tables`` and ``migrations`` beside the sections. ``load`` validates all of it at once, before any
resource is declared, and reports every fault together: key, fault, cure.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from ipaddress import AddressValueError, IPv4Address
from typing import Annotated, Any, ClassVar, Self, TypeVar, get_args, get_origin

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_core import ErrorDetails

from realtime_versions import OLDEST, Version, environment_fault, image_version

NAMESPACE = "supabase-realtime"
DEVELOPMENT_STACK = "dev"
AES_128_KEY_BYTES = 16
NAME_BYTES = 63
"""Postgres cuts names off after this many bytes (NAMEDATALEN - 1)."""
LAST_INTEGER = 2_147_483_647
"""Postgres's integer, in which Realtime stores a tenant's limits."""
LAST_PORT = 65_535
EXPIRY_WARNING_DAYS = 60
"""How long before the keys end everybody is told."""
RSA_BITS = 2048
PRIVATE_KEY = "jwt.private_key"
"""The one secret that not every stack has: a default would not be encrypted, so Pulumi.yaml cannot call it one."""
LAST_SECOND = 99_999_999_999
"""In the year 5138: a greater number of seconds was meant as milliseconds."""

WELL_KNOWN_SECRETS = frozenset(
    {
        # Pulumi.dev.yaml
        "postgres-development-password",
        "development-jwt-secret-of-32-bytes-or-more",
        "development-secret-key-base-of-at-least-sixty-four-bytes-as-phoenix-wants-it",
        "development-management-api-secret-of-32-bytes",
        "development-metrics-secret-of-32-bytes-or-so",
        "development-16by",
        # supabase/supabase docker/.env.example and docker-compose.yml, copied everywhere
        "supabaserealtime",
        "postgres",
        "your-super-secret-and-long-postgres-password",
        "your-super-secret-jwt-token-with-at-least-32-characters-long",
        "super-secret-jwt-token-with-at-least-32-characters-long",
        "UpNVntn3cDxHJpq99YMc1T1AQgQpc8kfYTuRgBiYa15BLrx8etQoXz3gZv1/u2oq",
        # supabase/realtime docker-compose.yml and Makefile
        "dc447559-996d-4761-a306-f47a5eab1623",
        "1234567890123456",
        # supabase/cli internal/start/start.go
        "EAx3IQ/wRG1v47ZD4NE4/9RzBI8Jmil3x0yhcW4V2NHBP6c2iPIzwjofi2Ep4HIG",
    }
)
"""Secrets that anyone can read in a public repository: refused on every stack but the development one."""


class SettingsError(Exception):
    """Every fault found in the stack's config, one line each."""

    def __init__(self, faults: list[str]) -> None:
        self.faults = faults
        super().__init__(f"{len(faults)} fault(s) in the stack's config:\n" + "\n".join(f"  {f}" for f in faults))


class ApiRole(StrEnum):
    """The database roles that a JWT may name."""

    ANON = "anon"
    AUTHENTICATED = "authenticated"
    SERVICE_ROLE = "service_role"


SUBSCRIBING_ROLES = (ApiRole.ANON, ApiRole.AUTHENTICATED)
"""Roles of people. service_role bypasses row level security and is left out of every policy."""


class Command(StrEnum):
    """What a policy applies to, in the words of CREATE POLICY … FOR."""

    ALL = "all"
    SELECT = "select"
    INSERT = "insert"
    UPDATE = "update"
    DELETE = "delete"

    @property
    def privileges(self) -> tuple[str, ...]:
        """The table privileges a role needs before a policy for this command can let it do anything."""
        if self is Command.ALL:
            return ("SELECT", "INSERT", "UPDATE", "DELETE")
        return (self.value.upper(),)


class JwtAlgorithm(StrEnum):
    """How the keys are signed: with a secret that Realtime shares (HS256), or with a private key of which it gets
    the public half."""

    HS256 = "HS256"
    ES256 = "ES256"
    RS256 = "RS256"


class Event(StrEnum):
    """What a publication publishes, in the words of CREATE PUBLICATION … WITH (publish = …)."""

    INSERT = "insert"
    UPDATE = "update"
    DELETE = "delete"


class ReplicaIdentity(StrEnum):
    """What the old record of an UPDATE or DELETE holds: the primary key (default), or every column (full)."""

    DEFAULT = "default"
    FULL = "full"
    NOTHING = "nothing"


class SslMode(StrEnum):
    """What a connection to Postgres asks of TLS, in the words of libpq's sslmode, as far as all of ours know them."""

    DISABLE = "disable"
    REQUIRE = "require"
    VERIFY_CA = "verify-ca"
    VERIFY_FULL = "verify-full"

    @property
    def verifies(self) -> bool:
        """Whether the server's certificate is compared with a CA's."""
        return self in (SslMode.VERIFY_CA, SslMode.VERIFY_FULL)


def _not_empty(text: str) -> str:
    if not text.strip():
        raise ValueError("is empty; give it a value, or remove the key to use the default")
    return text


_IMAGE = re.compile(
    r"(?:[A-Za-z0-9.-]+(?::\d+)?/)?"  # registry
    r"[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*)*"
    r"(?P<tag>:\w[\w.-]{0,127})?(?P<digest>@sha256:[0-9a-f]{64})?",
    re.ASCII,
)
"""The grammar of github.com/distribution/reference, with the sha256 digests that registries use."""


def _image(reference: str) -> str:
    parts = _IMAGE.fullmatch(reference)
    if parts is None:
        raise ValueError(f"{reference!r} is not an image reference; write it like supabase/realtime:v2.32.12")
    if not parts["tag"] and not parts["digest"]:
        raise ValueError(f"{reference!r} has no tag; pin one, like {reference}:v1.2.3, so that every run is the same")
    return reference


def _identifier(text: str) -> str:
    if not re.fullmatch(r"[a-z_][a-z0-9_]{0,62}", text):
        raise ValueError(
            f"{text!r} is not a plain Postgres identifier; "
            "use lower-case letters, digits and underscores, 63 at most, no leading digit"
        )
    return text


def _policy_name(name: str) -> str:
    if not name.strip():
        raise ValueError("is empty; name the policy")
    if (length := len(name.encode())) > NAME_BYTES:
        raise ValueError(f"is {length} bytes long, and Postgres keeps {NAME_BYTES} of a name; shorten it")
    return name


def _secret_of(minimum: int) -> Callable[[SecretStr], SecretStr]:
    def check(secret: SecretStr) -> SecretStr:
        length = len(secret.get_secret_value().encode())
        if length < minimum:
            raise ValueError(f"is {length} bytes long, needs at least {minimum}; `make secrets` generates one")
        return secret

    return check


def _sixteen_bytes(secret: SecretStr) -> SecretStr:
    length = len(secret.get_secret_value().encode())
    if length != AES_128_KEY_BYTES:
        raise ValueError(
            f"is {length} bytes long, must be exactly {AES_128_KEY_BYTES} (AES-128); `make secrets` generates one"
        )
    return secret


def _address(host: str) -> str:
    try:
        IPv4Address(host)
    except AddressValueError:
        raise ValueError(f"{host!r} is not an IPv4 address; use 127.0.0.1, or 0.0.0.0 for every interface") from None
    return host


def _origin(origin: str) -> str:
    parts = re.fullmatch(r"https?://[a-z0-9](?:[a-z0-9.-]*[a-z0-9])?(?::(?P<port>\d{1,5}))?", origin, re.ASCII)
    if origin != "*" and (parts is None or not 0 < int(parts["port"] or 1) <= LAST_PORT):
        raise ValueError(
            f"{origin!r} is not an origin; write scheme://host[:port] in lower case without a path, or * for all"
        )
    return origin


def _server(host: str) -> str:
    if host and not re.fullmatch(r"[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?", host, re.ASCII):
        raise ValueError(f"{host!r} is neither a host name nor an IPv4 address; write it without scheme and port")
    return host


def is_loopback(host: str) -> bool:
    """Whether a host is the machine itself, and so inside a container that container."""
    return host == "localhost" or host.startswith("127.")


def _seconds(moment: int) -> int:
    if moment > LAST_SECOND:
        raise ValueError("is thousands of years ahead; write seconds since 1970, not milliseconds")
    return moment


def _distinct_roles(roles: tuple[ApiRole, ...]) -> tuple[ApiRole, ...]:
    if len(set(roles)) != len(roles):
        raise ValueError("names a role twice; name each once")
    return roles


def _version(text: str | None) -> str | None:
    return None if text is None else str(Version.parse(text))


def _variable(text: str) -> str:
    name, equals, _ = text.partition("=")
    if not equals or not re.fullmatch(r"[A-Z][A-Z0-9_]*", name):
        raise ValueError("is not a variable; write it like TENANT_CACHE_EXPIRATION_IN_MS=10000")
    return text


def _some(values: tuple[Any, ...]) -> tuple[Any, ...]:
    if not values:
        raise ValueError("is empty; name at least one")
    return values


def _none_if_empty(text: Any) -> Any:
    """A key declared in Pulumi.yaml must have a default or be set, so there the empty text says none."""
    return None if text == "" else text


Image = Annotated[str, AfterValidator(_image)]
Identifier = Annotated[str, AfterValidator(_identifier)]
Port = Annotated[int, Field(ge=1, le=LAST_PORT)]
Positive = Annotated[int, Field(ge=1, le=LAST_INTEGER)]
Secret32 = Annotated[SecretStr, AfterValidator(_secret_of(32))]
Address = Annotated[str, AfterValidator(_address)]
Origin = Annotated[str, AfterValidator(_origin)]
Server = Annotated[str, AfterValidator(_server)]
Roles = Annotated[tuple[ApiRole, ...], AfterValidator(_distinct_roles)]
Expression = Annotated[str, AfterValidator(_not_empty)]
Variable = Annotated[str, AfterValidator(_variable)]


class Section(BaseModel):
    """A group of config keys with a common first word."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=False, hide_input_in_errors=True)


class ExternalPostgres(Section):
    """A database server that somebody else runs and this stack uses."""

    host: Server = Field("", description="Host of a Postgres that is there already, instead of one of the stack's own.")
    port: Port = Field(5432, description="Port of the external Postgres.")
    sslmode: SslMode = Field(
        SslMode.VERIFY_FULL, description="TLS to the external Postgres: disable, require, verify-ca or verify-full."
    )
    ca_file: Annotated[Expression | None, BeforeValidator(_none_if_empty)] = Field(
        None, description="PEM file with the CA of the external Postgres's certificate, for verify-ca and verify-full."
    )
    address_in_network: Server = Field(
        "", description="Host of the external Postgres as containers reach it, where that is another than here."
    )

    @property
    def container_host(self) -> str:
        """The host as Realtime's container reaches it."""
        return self.address_in_network or (HOST_GATEWAY if is_loopback(self.host) else self.host)


HOST_GATEWAY = "host.docker.internal"
"""The name that Docker's own manual gives to the machine, as a container sees it."""

HOSTS_OF_CONTAINERS = frozenset(
    {"localhost", "ip6-localhost", "ip6-loopback", "ip6-localnet", "ip6-mcastprefix", "ip6-allnodes", "ip6-allrouters"}
)
"""The names that Docker writes into every container's /etc/hosts (moby, libnetwork/etchosts/etchosts.go)."""


def _none_without_host(external: Any) -> Any:
    """None when no external server is named; a key that would need one is a fault."""
    if not isinstance(external, Mapping) or external.get("host"):
        return external
    default = {name: info.default or "" for name, info in ExternalPostgres.model_fields.items()}
    if idle := [name for name, value in external.items() if str(value).removesuffix(".0") != str(default[name])]:
        raise ValueError(
            f"has {' and '.join(idle)} but no host; `pulumi config set postgres.external.host <host>`, "
            f"or remove {'it' if len(idle) == 1 else 'them'}"
        )
    return None


class PostgresSettings(Section):
    """The database server: one that this stack runs, or an external one, and how to log in to it."""

    image: Image = Field("supabase/postgres:15.8.1.085", description="Image of Postgres 15 with wal2json.")
    host_port: Port = Field(54322, description="Port of Postgres on this machine's loopback.")
    database: Identifier = Field("postgres", description="Database that holds the tables, and Realtime's own schemas.")
    user: Identifier = Field("supabase_admin", description="Superuser that owns Realtime's schemas.")
    password: Annotated[SecretStr, AfterValidator(_secret_of(8))] = Field(description="Password of postgres.user.")
    memory: Annotated[int, Field(ge=128)] = Field(1024, description="Memory limit of the container, MiB.")
    protect: bool = Field(False, description="Keep the data volume when the stack is destroyed.")
    external: Annotated[ExternalPostgres | None, BeforeValidator(_none_without_host)] = None

    OF_THE_CONTAINER: ClassVar[tuple[str, ...]] = ("image", "host_port", "memory", "protect")
    """What says nothing of an external server."""


class RealtimeSettings(Section):
    """The Realtime server and its one tenant."""

    image: Image = Field("supabase/realtime:v2.32.12", description="Image of Supabase Realtime.")
    version: Annotated[str | None, BeforeValidator(_none_if_empty), AfterValidator(_version)] = Field(
        None, description="Version of realtime.image where its tag is none; empty for what the tag says."
    )
    tenant: str = Field(
        "supabase-realtime", description="Tenant, and the network alias through which the gateway names it."
    )
    host_port: Port = Field(4001, description="Port of Realtime on this machine's loopback, for its management API.")
    db_enc_key: Annotated[SecretStr, AfterValidator(_sixteen_bytes)] = Field(
        description="Key of the tenant's stored secrets: exactly 16 bytes."
    )
    secret_key_base: Annotated[SecretStr, AfterValidator(_secret_of(64))] = Field(
        description="Phoenix's secret_key_base: at least 64 bytes."
    )
    api_jwt_secret: Secret32 = Field(description="Secret of the management API; never the same as jwt.secret.")
    metrics_jwt_secret: Secret32 = Field(description="Secret of the token that reads /metrics.")
    max_concurrent_users: Positive = Field(200, description="Tenant limit: connected clients.")
    max_events_per_second: Positive = Field(100, description="Tenant limit: messages a second.")
    max_bytes_per_second: Positive = Field(100_000, description="Tenant limit: bytes a second.")
    max_channels_per_client: Positive = Field(100, description="Tenant limit: channels of one client.")
    max_joins_per_second: Positive = Field(100, description="Tenant limit: channel joins a second.")
    poll_interval_ms: Annotated[int, Field(ge=1, le=60_000)] = Field(
        25, description="How often Realtime polls the replication slot, milliseconds."
    )
    poll_max_changes: Positive = Field(100, description="Changes read from the replication slot at one poll.")
    rlimit_nofile: Annotated[int, Field(ge=1024, le=1_048_576)] = Field(10_000, description="Open files of Realtime.")
    memory: Annotated[int, Field(ge=256)] = Field(
        512, description="Memory limit of the container, MiB; it is killed below about 170."
    )
    environment: tuple[Variable, ...] = Field(
        (), description="More environment variables of Realtime, NAME=value, that its version knows; no secrets."
    )

    @property
    def release(self) -> Version | None:
        """The version that realtime.version or the image's tag says; None when neither does."""
        return Version.parse(self.version) if self.version else image_version(self.image)

    @field_validator("tenant")
    @classmethod
    def _tenant_is_a_host_label(cls, tenant: str) -> str:
        if not re.fullmatch(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", tenant):
            raise ValueError(
                f"{tenant!r} is not a DNS label, and Realtime takes the tenant from the first label of the Host "
                "header; use lower-case letters, digits and hyphens, 63 at most, a letter or digit at both ends"
            )
        if tenant.isdigit():
            raise ValueError(f"{tenant!r} is all digits, which as a host name is an IPv4 address; add a letter")
        if tenant in HOSTS_OF_CONTAINERS:
            raise ValueError(
                f"{tenant!r} is in every container's /etc/hosts, so that the gateway would not find Realtime by it; "
                "take another name"
            )
        if tenant == "realtime-dev":
            raise ValueError("'realtime-dev' is the tenant that Realtime's own seed deletes and remakes; take another")
        return tenant


class GatewaySettings(Section):
    """Kong in front of Realtime."""

    image: Image = Field("kong:2.8.1", description="Image of Kong gateway.")
    host: Address = Field("127.0.0.1", description="Address of this machine that the gateway listens on.")
    port: Port = Field(8000, description="Port of the gateway: what clients connect to.")
    anonymous: bool = Field(False, description="Let requests without a valid key through to Realtime's own JWT check.")
    cors_origins: tuple[Origin, ...] = Field(("*",), description="Origins that browsers may call from.")
    status_port: Annotated[int, Field(ge=0, le=LAST_PORT)] = Field(
        0, description="Port of Kong's status and metrics on this machine's loopback; 0 for none."
    )
    workers: Annotated[int, Field(ge=1, le=64)] = Field(1, description="Kong's nginx worker processes.")
    memory: Annotated[int, Field(ge=128)] = Field(256, description="Memory limit of the container, MiB.")

    @field_validator("cors_origins")
    @classmethod
    def _some_origin(cls, origins: tuple[str, ...]) -> tuple[str, ...]:
        if not origins:
            raise ValueError("is empty, so no browser could connect; name the origins, or * for all")
        return origins


class JwtSettings(Section):
    """The keys that clients present."""

    secret: Secret32 = Field(description="Secret that signs the anon and service_role keys, HS256.")
    algorithm: JwtAlgorithm = Field(
        default=JwtAlgorithm.HS256, description="What signs the keys: HS256 jwt.secret, ES256 or RS256 jwt.private_key."
    )
    private_key: Annotated[SecretStr | None, BeforeValidator(_none_if_empty)] = Field(
        default=None, description="PEM of the private key that signs the keys, a secret; empty with HS256."
    )
    issued_at: Annotated[int, Field(ge=0), AfterValidator(_seconds)] = Field(
        1_767_225_600, description="When the keys were issued, seconds since 1970; fixed, so that keys never change."
    )
    lifetime_days: Annotated[int, Field(ge=1, le=36_500)] = Field(
        3650, description="How long the keys are valid, days."
    )

    @property
    def expires_at(self) -> datetime:
        """When the anon and service_role keys end."""
        return datetime.fromtimestamp(self.issued_at, UTC) + timedelta(days=self.lifetime_days)


class Policy(Section):
    """A row level security policy, in the words of CREATE POLICY."""

    name: Annotated[str, AfterValidator(_policy_name)]
    command: Command
    roles: Annotated[Roles, AfterValidator(_some)]
    using: Expression | None = None
    check: Expression | None = None
    permissive: bool = True

    @model_validator(mode="after")
    def _expressions_fit_the_command(self) -> Self:
        if self.command is Command.INSERT and self.using is not None:
            raise ValueError("has `using` on INSERT, which Postgres refuses; write it as `check`")
        if self.command in (Command.SELECT, Command.DELETE) and self.check is not None:
            raise ValueError(f"has `check` on {self.command.upper()}, which Postgres refuses; write it as `using`")
        if self.command is Command.INSERT and self.check is None:
            raise ValueError("has no `check`, so every row may be inserted; write check: 'true' if that is meant")
        if self.command is not Command.INSERT and self.using is None:
            raise ValueError("has no `using`, so every row is in reach; write using: 'true' if that is meant")
        return self


class Table(Section):
    """A table that Realtime publishes and who may do what with its rows.

    ``read`` and ``write`` are the short form; ``policies`` says it in full. From either come the policies,
    the privileges and the membership in the publication.
    """

    table: str
    read: Roles = ()
    write: Roles = ()
    policies: tuple[Policy, ...] = ()
    publish: bool = True
    events: Annotated[tuple[Event, ...], AfterValidator(_some)] = (Event.INSERT, Event.UPDATE, Event.DELETE)
    replica_identity: ReplicaIdentity = ReplicaIdentity.DEFAULT
    force: bool = Field(False, description="Apply row level security to the table's owner as well.")
    exclusive: bool = Field(True, description="Undeclared policies are drift, and `up` drops them.")

    RESERVED_SCHEMAS: ClassVar[frozenset[str]] = frozenset({"_realtime", "realtime", "information_schema"})

    @field_validator("table")
    @classmethod
    def _qualified(cls, table: str) -> str:
        schema, dot, name = table.partition(".")
        if not dot:
            raise ValueError(f"{table!r} has no schema; write it like public.{table}")
        for part in (schema, name):
            _identifier(part)
        if schema in cls.RESERVED_SCHEMAS or schema.startswith("pg_"):
            raise ValueError(f"{table!r} is in a schema of the server's own; declare tables of your application")
        return table

    @field_validator("read", "write")
    @classmethod
    def _service_role_needs_no_policy(cls, roles: tuple[ApiRole, ...]) -> tuple[ApiRole, ...]:
        if ApiRole.SERVICE_ROLE in roles:
            raise ValueError("names service_role, which bypasses row level security and needs no policy; leave it out")
        return roles

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.policies and (self.read or self.write):
            raise ValueError("has `policies` beside `read` or `write`; say it in one of the two forms")
        if (self.read or self.write) and len(self.name) + len("_select") > NAME_BYTES:
            raise ValueError(
                f"has a name too long for the short form, which adds _select to it: Postgres keeps {NAME_BYTES} bytes; "
                "write `policies` with names of your own"
            )
        names = [policy.name for policy in self.policies]
        if repeated := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"has two policies named {', '.join(repeated)}; Postgres wants distinct names on a table")
        if len(set(self.events)) != len(self.events):
            raise ValueError("lists an event twice in `events`; name each once")
        if self.publish and not self.readers:
            raise ValueError(
                "is published but no subscribing role can select it, so every subscription would be silent; "
                "add `read: [authenticated]` or a SELECT policy, or set `publish: false`"
            )
        return self

    @property
    def schema_name(self) -> str:
        return self.table.partition(".")[0]

    @property
    def name(self) -> str:
        return self.table.partition(".")[2]

    @property
    def row_policies(self) -> tuple[Policy, ...]:
        """Every policy of the table, the short form written out."""
        return self.policies or tuple(self._short_form())

    def _short_form(self) -> Iterator[Policy]:
        if self.read:
            yield Policy(name=f"{self.name}_select", command=Command.SELECT, roles=self.read, using="true")
        if self.write:
            yield Policy(name=f"{self.name}_insert", command=Command.INSERT, roles=self.write, check="true")
            yield Policy(
                name=f"{self.name}_update", command=Command.UPDATE, roles=self.write, using="true", check="true"
            )
            yield Policy(name=f"{self.name}_delete", command=Command.DELETE, roles=self.write, using="true")

    @property
    def privileges(self) -> dict[ApiRole, tuple[str, ...]]:
        """The table privileges of each API role, as the permissive policies ask for them."""
        granted: dict[ApiRole, set[str]] = {role: set() for role in ApiRole}
        for policy in self.row_policies:
            if policy.permissive:
                for role in policy.roles:
                    granted[role].update(policy.command.privileges)
        granted[ApiRole.SERVICE_ROLE] = set(Command.ALL.privileges)
        return {role: tuple(p for p in Command.ALL.privileges if p in granted[role]) for role in ApiRole}

    @property
    def readers(self) -> tuple[ApiRole, ...]:
        """The roles of people that some permissive SELECT policy lets read."""
        return tuple(role for role in SUBSCRIBING_ROLES if "SELECT" in self.privileges[role])


ROTATION = "rotation"
"""Config key of the rotation that is under way, written by ``python -m deploy rotate``, encrypted."""


class PendingRotation(Section):
    """A secret on its way from one value to the next, from before the first step until after the last."""

    key: str = Field(description="Config key of the secret.")
    previous: SecretStr = Field(description="Its value before, which opens what has not got the next one yet.")
    next: SecretStr = Field(description="Its value afterwards.")

    def recorded(self) -> str:
        """What is written to the config: JSON with both values, to be encrypted."""
        return json.dumps(
            {
                "key": self.key,
                "previous": self.previous.get_secret_value(),
                "next": self.next.get_secret_value(),
            }
        )


def _pending_rotation(value: Any) -> Any:
    """The record as the config has it. Its fault never says its text, which holds secrets."""
    if not isinstance(value, str):
        return value
    try:
        pending = PendingRotation.model_validate_json(value)
    except ValidationError:
        pending = None
    if pending is None or pending.key not in (*secret_keys(), PRIVATE_KEY):
        raise ValueError(
            f"is no record of a rotation; find out which secrets are in force (`make doctor`), then `pulumi config rm "
            f"{ROTATION}`"
        )
    return pending


class Settings(Section):
    """The whole config of one stack."""

    stack: str
    postgres: PostgresSettings
    realtime: RealtimeSettings
    gateway: GatewaySettings
    jwt: JwtSettings
    tables: tuple[Table, ...] = Field((), description="Tables that Realtime publishes, and who may read and write.")
    migrations: Annotated[Expression | None, BeforeValidator(_none_if_empty)] = Field(
        None, description="Folder of the application's own SQL, run in order; empty for none."
    )
    rotation: Annotated[PendingRotation | None, BeforeValidator(_pending_rotation)] = None

    @property
    def name(self) -> str:
        """First part of the name of every Docker object of the stack."""
        return f"{NAMESPACE}-{self.stack}"

    @property
    def published(self) -> list[str]:
        """The tables of the publication, by name."""
        return sorted(table.table for table in self.tables if table.publish)


SECTIONS: dict[str, type[Section]] = {
    "postgres": PostgresSettings,
    "realtime": RealtimeSettings,
    "gateway": GatewaySettings,
    "jwt": JwtSettings,
}
IMAGE_VARIABLES = {
    "POSTGRES_IMAGE": "postgres.image",
    "REALTIME_IMAGE": "realtime.image",
    "KONG_IMAGE": "gateway.image",
}
"""Environment variables that override an image for one run."""

SectionT = TypeVar("SectionT", bound=Section)


def fields(model: type[Section], prefix: str = "") -> Iterator[tuple[str, type[Section], str]]:
    """Every field of a section by its key after the section's name, and the model that has it."""
    for name, info in model.model_fields.items():
        inner = next((part for part in (info.annotation, *get_args(info.annotation)) if _is_section(part)), None)
        if inner is None:
            yield f"{prefix}{name}", model, name
        else:
            yield from fields(inner, f"{prefix}{name}.")


def _is_section(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, Section)


FIELDS = {section: {key: (model, name) for key, model, name in fields(root)} for section, root in SECTIONS.items()}


def _put(document: dict[str, Any], field: str, value: Any) -> None:
    """Set a field by its key; ``external.host`` is the entry ``host`` of an entry ``external``."""
    *outer, name = field.split(".")
    for part in outer:
        document = document.setdefault(part, {})
    document[name] = value


def load(
    config: Mapping[str, Any],
    *,
    stack: str,
    environ: Mapping[str, str],
    now: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> Settings:
    """The settings in a stack's config.

    ``config`` maps full keys to values as Pulumi hands them over: text, or JSON text for arrays.
    Keys of other namespaces are passed over. Raises SettingsError with every fault at once.
    """
    keys = {k.partition(":")[2]: v for k, v in config.items() if k.partition(":")[0] == NAMESPACE}
    overrides = {key: variable for variable, key in IMAGE_VARIABLES.items() if environ.get(variable)}
    if keys.get("postgres.external.host"):
        overrides.pop("postgres.image", None)
    keys |= {key: environ[variable] for key, variable in overrides.items()}
    document: dict[str, Any] = {"stack": stack} | {name: {} for name in SECTIONS}
    faults: list[str] = []
    for key, value in sorted(keys.items()):
        section, _, field = key.partition(".")
        if section in SECTIONS and field in FIELDS[section]:
            _put(document[section], field, _parsed(*FIELDS[section][field], value))
        elif key in ("tables", "migrations", ROTATION):
            document[key] = _parsed(Settings, key, value)
        else:
            faults.append(_unknown_key(key))
    settings: Settings | None = None
    try:
        settings = Settings.model_validate(document)
    except ValidationError as invalid:
        faults += [_fault(error, overrides=overrides) for error in invalid.errors()]
    if settings is not None:
        faults += _cross_faults(settings, now())
    if faults or settings is None:
        raise SettingsError(faults)
    return settings


def load_section(section: str, model: type[SectionT], get: Callable[[str], Any]) -> SectionT:
    """One section alone, for code outside the program that is handed the stack's config (a dynamic provider)."""
    present: dict[str, Any] = {}
    for field, owner, name in fields(model):
        if (value := get(f"{NAMESPACE}:{section}.{field}")) is not None:
            _put(present, field, _parsed(owner, name, value))
    try:
        return model.model_validate(present)
    except ValidationError as invalid:
        raise SettingsError([_fault(error, section) for error in invalid.errors()]) from None


def _parsed(model: type[Section], field: str, value: Any) -> Any:
    """Pulumi hands arrays over as JSON text."""
    if isinstance(value, str) and get_origin(model.model_fields[field].annotation) is tuple:
        try:
            return json.loads(value)
        except json.JSONDecodeError:
            return value
    return value


def _unknown_key(key: str) -> str:
    section, _, field = key.partition(".")
    if section == "postgres" and field.removeprefix("external.") in ("user", "password", "database"):
        own = f"postgres.{field.removeprefix('external.')}"
        return (
            f"{NAMESPACE}:{key}: is not a setting; it is {own}, whoever runs the server: "
            f"`pulumi config rm {key}`, then set {own}"
        )
    if section in SECTIONS and (not field or any(known.startswith(f"{field}.") for known in FIELDS[section])):
        return (
            f"{NAMESPACE}:{key}: holds a whole section, but every setting is a flat key; "
            f"`pulumi config rm {key}`, then `pulumi config set {key}.<name> <value>` without --path"
        )
    if section in SECTIONS:
        cure = f"{section} has: {', '.join(FIELDS[section])}"
    else:
        cure = f"the sections are {', '.join(SECTIONS)}, and the keys tables and migrations"
    return f"{NAMESPACE}:{key}: is not a setting; {cure}, or remove it with `pulumi config rm {key}`"


def _path(location: tuple[int | str, ...], section: str | None = None) -> str:
    path = section or ""
    for part in location:
        path += f"[{part}]" if isinstance(part, int) else f".{part}" if path else part
    return path


_NOT_WHOLE = "is not a whole number; write digits only"
_NOT_BOOLEAN = "is neither true nor false; write one of the two"
_NOT_A_LIST = "is not a list; write it as a YAML list, like {list}"
_NOT_A_MAPPING = "is not a mapping; write it as {mapping}"
_MESSAGES = {
    "bool_parsing": _NOT_BOOLEAN,
    "bool_type": _NOT_BOOLEAN,
    "enum": "is not one of {expected}; use one of these",
    "extra_forbidden": "is not a setting; a {kind} has: {fields}",
    "greater_than_equal": "is below {ge}, the lowest value allowed; raise it",
    "int_from_float": _NOT_WHOLE,
    "int_parsing": _NOT_WHOLE,
    "int_parsing_size": _NOT_WHOLE,
    "int_type": _NOT_WHOLE,
    "less_than_equal": "is above {le}, the highest value allowed; lower it",
    "model_type": _NOT_A_MAPPING,
    "string_type": "is not text; put it in quotes",
    "tuple_type": _NOT_A_LIST,
    "value_error": "{error}",
}
"""Pydantic's kinds of error in the words of this config: fault, then cure."""


def _fault(error: ErrorDetails, section: str | None = None, overrides: Mapping[str, str] | None = None) -> str:
    """One line of a pydantic error: key, fault, cure. Never the value of a secret.

    ``overrides`` names the environment variable that a key's value came from.
    """
    path = _path(error["loc"], section)
    if error["type"] == "missing":
        message = _missing(path)
    elif error["type"] in _MESSAGES:
        in_policy = "policies[" in path
        words = {
            "kind": "policy" if in_policy else "table",
            "fields": ", ".join((Policy if in_policy else Table).model_fields),
            "mapping": POLICY_EXAMPLE if in_policy else TABLE_EXAMPLE,
            "list": _list_example(path),
        }
        message = _MESSAGES[error["type"]].format_map(words | error.get("ctx", {}))
    else:
        message = f"{error['msg'][0].lower()}{error['msg'][1:]}; correct its value"
    if overrides and path in overrides:
        return f"{overrides[path]} (environment, instead of {NAMESPACE}:{path}): {message}"
    return f"{NAMESPACE}:{path}: {message}"


TABLE_EXAMPLE = "{table: public.wells, read: [anon]}"
POLICY_EXAMPLE = "{name: read_all, command: select, roles: [anon], using: 'true'}"


def _list_example(path: str) -> str:
    examples = {
        "tables": f"[{TABLE_EXAMPLE}]",
        "policies": f"[{POLICY_EXAMPLE}]",
        "events": "[insert, update]",
        "cors_origins": "[https://app.example.com]",
        "environment": "[TENANT_CACHE_EXPIRATION_IN_MS=10000]",
    }
    return examples.get(path.rpartition(".")[2], "[anon, authenticated]")


def _missing(path: str) -> str:
    section, _, field = path.partition(".")
    if section not in SECTIONS:
        return "is missing; add it"
    model, name = FIELDS[section][field]
    info = model.model_fields[name]
    if info.annotation is SecretStr:
        generator, command = "`make secrets` generates it, or ", f"pulumi config set --secret {path} <value>"
    else:
        generator, command = "", f"pulumi config set {path} <value>"
    return f"is missing; {generator}`{command}` ({info.description})"


def _cross_faults(settings: Settings, now: datetime) -> list[str]:
    """Faults that only two keys together show, or a key and the time."""
    faults = (
        *_external_faults(settings.postgres),
        *_secret_faults(settings),
        *_port_faults(settings),
        *_expiry_faults(settings.jwt, now),
        *_signing_faults(settings.jwt),
        *_version_faults(settings.realtime),
    )
    return [f"{NAMESPACE}:{key}: {message}" for key, message in (*faults, *_table_faults(settings.tables))]


def _external_faults(postgres: PostgresSettings) -> Iterator[tuple[str, str]]:
    external = postgres.external
    if external is None:
        return
    for field in PostgresSettings.OF_THE_CONTAINER:
        if getattr(postgres, field) != PostgresSettings.model_fields[field].default:
            yield (
                f"postgres.{field}",
                f"is for a Postgres that this stack runs, and postgres.external.host names {external.host}; "
                f"`pulumi config rm postgres.{field}`, or `pulumi config rm postgres.external.host`",
            )
    if external.sslmode.verifies and external.ca_file is None:
        yield (
            "postgres.external.ca_file",
            f"is missing, and sslmode {external.sslmode} compares the server's certificate with it; set it to the "
            "file with the CA's certificate that whoever runs the server gives out",
        )
    if external.ca_file is not None and not external.sslmode.verifies:
        yield (
            "postgres.external.ca_file",
            f"is set, and sslmode {external.sslmode} compares no certificate with it; set postgres.external.sslmode to "
            "verify-full, or remove the file",
        )
    if is_loopback(external.address_in_network):
        yield (
            "postgres.external.address_in_network",
            f"is {external.address_in_network}, which in a container is the container; name the server as containers "
            f"reach it: its DNS name, or {HOST_GATEWAY} for this machine",
        )


def _secret_faults(settings: Settings) -> Iterator[tuple[str, str]]:
    first: dict[str, str] = {}
    for key, secret in sorted(_secrets(settings), key=lambda item: item[0] != "jwt.secret"):
        if (other := first.setdefault(secret, key)) != key:
            opens = (key, other) == ("realtime.api_jwt_secret", "jwt.secret")
            harm = ", so that the public anon key would open the management API" if opens else ""
            yield key, f"equals {other}{harm}; `make secrets` generates another"
        if settings.stack != DEVELOPMENT_STACK and secret in WELL_KNOWN_SECRETS:
            yield key, "is a development secret that anyone can read; `make secrets` generates one for this stack"


def _port_faults(settings: Settings) -> Iterator[tuple[str, str]]:
    first: dict[int, str] = {}
    own = () if settings.postgres.external else (("postgres.host_port", settings.postgres.host_port),)
    for key, port in (
        *own,
        ("realtime.host_port", settings.realtime.host_port),
        ("gateway.port", settings.gateway.port),
        ("gateway.status_port", settings.gateway.status_port),
    ):
        if not port:
            continue
        if (other := first.setdefault(port, key)) != key:
            yield key, f"is {port}, which {other} uses already; give each its own port"


def _signing_faults(jwt: JwtSettings) -> Iterator[tuple[str, str]]:
    key, algorithm = PRIVATE_KEY, jwt.algorithm
    if algorithm is JwtAlgorithm.HS256:
        if jwt.private_key is not None:
            yield key, f"is set, and jwt.algorithm is HS256, which does not use it; `pulumi config rm {key}`"
    elif jwt.private_key is None:
        yield key, f"is missing, and {algorithm} signs with it; `make secrets` generates it"
    elif (fault := _private_key_fault(algorithm, jwt.private_key.get_secret_value())) is not None:
        yield key, f"{fault}; `pulumi config rm {key}`, then `make secrets` generates one"


def _private_key_fault(algorithm: JwtAlgorithm, pem: str) -> str | None:
    """Why a private key cannot sign with an algorithm (RFC 7518, 3.3 and 3.4); None when it can."""
    from cryptography.exceptions import UnsupportedAlgorithm  # noqa: PLC0415 - most stacks have no private key
    from cryptography.hazmat.primitives.asymmetric import ec, rsa  # noqa: PLC0415
    from cryptography.hazmat.primitives.serialization import load_pem_private_key  # noqa: PLC0415

    try:
        key = load_pem_private_key(pem.encode(), password=None)
    except (TypeError, ValueError, UnsupportedAlgorithm):
        return "is not a private key in PEM without a passphrase"
    if algorithm is JwtAlgorithm.ES256:
        fits = isinstance(key, ec.EllipticCurvePrivateKey) and isinstance(key.curve, ec.SECP256R1)
        return None if fits else "is not a key of curve P-256, which ES256 signs with"
    fits = isinstance(key, rsa.RSAPrivateKey) and key.key_size >= RSA_BITS
    return None if fits else f"is not an RSA key of {RSA_BITS} bits or more, which RS256 signs with"


def _expiry_faults(jwt: JwtSettings, now: datetime) -> Iterator[tuple[str, str]]:
    if jwt.expires_at <= now:
        yield (
            "jwt.lifetime_days",
            f"ended the keys on {jwt.expires_at:%Y-%m-%d}, which is past; raise jwt.issued_at or jwt.lifetime_days",
        )
    if datetime.fromtimestamp(jwt.issued_at, UTC) > now:
        yield "jwt.issued_at", "is in the future; use a moment that has passed"


def _version_faults(realtime: RealtimeSettings) -> Iterator[tuple[str, str]]:
    said, release = image_version(realtime.image), realtime.release
    if said is not None and release != said:
        yield (
            "realtime.version",
            f"is {release}, and the tag of realtime.image says {said}; remove it with `pulumi config rm "
            "realtime.version`, which is for images whose tag says nothing",
        )
    elif release is not None and release < OLDEST:
        key = "realtime.image" if said is not None else "realtime.version"
        yield key, f"is Realtime {release}, and {OLDEST} is the oldest that this stack can run; take that or newer"
    first: dict[str, int] = {}
    for number, variable in enumerate(realtime.environment):
        name, key = variable.partition("=")[0], f"realtime.environment[{number}]"
        if (other := first.setdefault(name, number)) != number:
            yield key, f"sets {name}, which realtime.environment[{other}] sets already; keep one"
        elif fault := environment_fault(name, release):
            yield key, fault


def _table_faults(tables: tuple[Table, ...]) -> Iterator[tuple[str, str]]:
    first: dict[str, int] = {}
    events: tuple[Event, ...] | None = None
    for number, table in enumerate(tables):
        if (other := first.setdefault(table.table, number)) != number:
            yield f"tables[{number}].table", f"{table.table!r} is declared already as tables[{other}]; keep one"
        if table.publish:
            if events is not None and set(table.events) != set(events):
                yield (
                    f"tables[{number}].events",
                    "differs from another table's, and Postgres keeps one list of events for a whole publication; "
                    "make them the same on every published table",
                )
            events = events or table.events


def _secrets(settings: Settings) -> Iterator[tuple[str, str]]:
    for section in SECTIONS:
        model: Section = getattr(settings, section)
        for field, value in model:
            if isinstance(value, SecretStr):
                yield f"{section}.{field}", value.get_secret_value()


def secret_keys() -> tuple[str, ...]:
    """The config keys whose values are secrets."""
    return tuple(
        f"{section}.{field}"
        for section, model in SECTIONS.items()
        for field, info in model.model_fields.items()
        if info.annotation is SecretStr
    )
