"""What would make a load test fail for reasons of limits, looked at before it starts."""

from __future__ import annotations

import ipaddress
import math
import resource
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from urllib.parse import urlsplit

import psycopg
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from doctor.catalog import Connection
from doctor.checks.setup import Setup
from doctor.outputs import Outputs

MOST_CLIENTS = 20_000
"""One address of loopback has 28,232 ports to connect from (net.ipv4.ip_local_port_range)."""
MOST_INSERTS = 200_000
MOST_DELIVERIES = 1_000_000_000
"""Clients × inserts, each of which takes a bit of memory."""
OWN_FILES = 128
"""Files that this process opens beside the sockets of the clients."""
REALTIME_FILES = 512
"""Files that Realtime opens beside the sockets of its clients, generously."""
SHARE_OF_JOINS = 0.8
"""Realtime refuses joins once their average over the last minute reaches the limit (v2.32.12, rate_counter.ex)."""
UNKNOWN_JOINS_PER_SECOND = 100
"""The default of Realtime (TENANT_MAX_JOINS_PER_SECOND)."""
LIMITS = "SELECT max_concurrent_users, max_joins_per_second FROM _realtime.tenants WHERE external_id = %s"


class CannotLoadError(Exception):
    """The load test cannot be started; the message is one line with the cure."""


class Size(BaseModel):
    """How much load: clients, inserts a second, seconds."""

    model_config = ConfigDict(frozen=True)

    clients: int = Field(ge=1, le=MOST_CLIENTS)
    rate: float = Field(ge=0.1, le=1000, allow_inf_nan=False)
    seconds: float = Field(ge=1, le=3600, allow_inf_nan=False)

    @property
    def inserts(self) -> int:
        """Inserts in all, at least one."""
        return max(1, math.floor(self.rate * self.seconds))


def sized(*, clients: int, rate: float, seconds: float) -> Size:
    """The size, within its bounds. Raises CannotLoadError that names the argument."""
    try:
        size = Size(clients=clients, rate=rate, seconds=seconds)
    except ValidationError as invalid:
        faults = "; ".join(
            f"--{error['loc'][0]}: {error['msg'][0].lower()}{error['msg'][1:]}, not {error['input']}"
            for error in invalid.errors()
        )
        raise CannotLoadError(faults) from None
    if size.inserts > MOST_INSERTS:
        raise CannotLoadError(
            f"--rate × --seconds: {size.inserts} inserts are more than the {MOST_INSERTS} allowed; lower one of them"
        )
    if size.clients * size.inserts > MOST_DELIVERIES:
        raise CannotLoadError(
            f"--clients × --rate × --seconds: {size.clients * size.inserts} events are more than the "
            f"{MOST_DELIVERIES} that are counted in memory; lower one of them"
        )
    return size


def only_loopback(outputs: Outputs, addresses: Iterable[str], *, allowed: Collection[str]) -> None:
    """Raises CannotLoadError when the load would go to another machine than this one.

    ``addresses`` are URLs. A host is allowed by naming it in ``allowed``.
    """
    hosts = {urlsplit(address).hostname or address for address in addresses} | {outputs.database.host}
    for host in sorted(hosts):
        if not _is_loopback(host) and host not in allowed:
            raise CannotLoadError(
                f"{host} is not this machine, and a load test can bring a server down and writes rows into its "
                f"database; if you may do that to {host}, say so: --allow-remote {host}"
            )


def _is_loopback(host: str) -> bool:
    if host == "localhost" or host.startswith("/"):  # a folder of Unix sockets
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def raise_open_files(clients: int) -> str | None:
    """Makes room for the sockets: raises the soft limit of open files up to the hard one. What it did, in words.

    Raises CannotLoadError when the hard limit is too low.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = clients + OWN_FILES
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return None
    if hard != resource.RLIM_INFINITY and hard < needed:
        raise CannotLoadError(
            f"--clients: {clients} clients need {needed} open files, and this process may open {hard} at most; raise "
            "the hard limit (`ulimit -Hn` in a root shell, nofile in /etc/security/limits.conf, LimitNOFILE of a "
            "systemd unit) or lower --clients"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
    return f"open files: raised the soft limit of this process from {soft} to {needed}"


@dataclass(frozen=True)
class TenantLimits:
    """The tenant's limits that a load test runs into, as the database has them; None when not known.

    Realtime v2.32.12 and v2.129.8 count what clients send into max_events_per_second, and no change of the database
    (message_dispatcher.ex and replication_poller.ex of postgres_cdc_rls count db_events, which no limit looks at).
    """

    max_concurrent_users: int | None = None
    max_joins_per_second: int | None = None

    @property
    def paced_joins(self) -> float:
        """How many subscribers may join a second without being refused."""
        return SHARE_OF_JOINS * (self.max_joins_per_second or UNKNOWN_JOINS_PER_SECOND)


async def tenant_limits(connection: Connection, tenant: str) -> TenantLimits:
    """The limits of the tenant; empty when there is none, or Realtime keeps them in another database."""
    try:
        async with connection.transaction():
            row = await (await connection.execute(LIMITS, (tenant,))).fetchone()
    except (psycopg.errors.UndefinedTable, psycopg.errors.UndefinedColumn, psycopg.errors.InsufficientPrivilege):
        return TenantLimits()
    return TenantLimits(*row) if row is not None else TenantLimits()


def within(limits: TenantLimits, setup: Setup, clients: int) -> None:
    """Raises CannotLoadError when the tenant or Realtime's container would refuse some of the clients."""
    users = limits.max_concurrent_users
    if users is not None and clients > users:
        raise CannotLoadError(
            f"--clients: {clients} is more than the tenant's max_concurrent_users, {users}; "
            f"`pulumi config set realtime.max_concurrent_users {clients}` and `pulumi up`, or lower --clients"
        )
    realtime = setup.config.realtime if setup.config else None
    if realtime is not None and clients + REALTIME_FILES > realtime.rlimit_nofile:
        needed = clients + REALTIME_FILES
        raise CannotLoadError(
            f"--clients: {clients} need about {needed} open files of Realtime, which may open "
            f"{realtime.rlimit_nofile}; `pulumi config set realtime.rlimit_nofile {needed}` and `pulumi up`, "
            "or lower --clients"
        )
