"""Why a committed row does not reach a subscriber: asked of Postgres, reading only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from psycopg import sql
from psycopg.errors import InsufficientPrivilege, UndefinedColumn, UndefinedTable
from psycopg.rows import dict_row

from doctor.api_role import become
from doctor.catalog import Connection, Table
from doctor.failures import REALTIME_LOG, UP
from doctor.rendering import by_key

PUBLICATION = "supabase_realtime"
PUBLISHED = """
    SELECT p.pubinsert, t.tablename IS NOT NULL
    FROM pg_publication p
    LEFT JOIN pg_publication_tables t ON t.pubname = p.pubname AND t.schemaname = %s AND t.tablename = %s
    WHERE p.pubname = %s
"""
SLOTS = """
    SELECT m.most, s.slot_name IS NOT NULL AS used, s.active_pid AS holder,
           s.active_pid IS NOT NULL AND s.confirmed_flush_lsn IS NOT NULL AS held,
           s.plugin = 'wal2json' AND s.database = current_database() AS ours,
           extract(epoch FROM clock_timestamp() - a.state_change)::float AS idle
    FROM (SELECT current_setting('max_replication_slots')::int AS most) m
    LEFT JOIN pg_replication_slots s ON true
    LEFT JOIN pg_stat_activity a ON a.pid = s.active_pid
"""
POLL_INTERVAL = """
    SELECT max((settings ->> 'poll_interval_ms')::float) / 1000 FROM _realtime.extensions
    WHERE type = 'postgres_cdc_rls' AND settings ->> 'poll_interval_ms' ~ '^[0-9]+$'
"""
IDLE_INTERVALS = 5
"""So many intervals lie between two polls while nothing happens (v2.129.8, replication_poller.ex; v2.32.12: one)."""
DEAD_AFTER_SECONDS = 5
"""A holder of the slot that is idle for longer is the session of a Realtime that was killed, unless it polls rarely:
then it is one that has missed a poll."""
RARELY_SECONDS = 1
"""Polls that are further apart are worth a word when an event does not come."""


@dataclass(frozen=True)
class Slots:
    """The server's replication slots, as far as Realtime is concerned; ``holders`` are its sessions' process ids."""

    held: bool
    idle_seconds: float
    used: int
    most: int
    dead_after: float = DEAD_AFTER_SECONDS
    holders: tuple[int, ...] = ()

    @property
    def reading(self) -> bool:
        """Whether a session that is alive reads changes."""
        return self.held and self.idle_seconds <= self.dead_after


async def silence(connection: Connection, table: Table, key: Sequence[str], claims: Mapping[str, object]) -> str:
    """The likely cause of an event that did not come, the row still being there: the first thing wrong on its path.

    ``claims`` are those of the subscriber's key.
    """
    return (
        await decoding(connection)
        or await _publication(connection, table)
        or await _security(connection, table, key, claims)
        or await _slot(connection)
        or await _rare_polls(connection)
        or f"Realtime reads its replication slot but sent nothing in time; {REALTIME_LOG}"
    )


async def _publication(connection: Connection, table: Table) -> str | None:
    found = await (await connection.execute(PUBLISHED, (table.schema, table.name, PUBLICATION))).fetchone()
    if found is None:
        return f"the publication {PUBLICATION} is gone; {UP}"
    inserts, member = found
    if not member:
        return f"{table} is not in the publication {PUBLICATION}; {UP}"
    return None if inserts else f"the publication {PUBLICATION} does not publish inserts; {UP}"


async def _security(
    connection: Connection, table: Table, key: Sequence[str], claims: Mapping[str, object]
) -> str | None:
    """Whether the subscriber's role sees the row, as Realtime asks it (realtime.apply_rls)."""
    query = sql.SQL("SELECT EXISTS (SELECT FROM {} WHERE {})").format(table.quoted, by_key(table))
    try:
        async with connection.transaction(force_rollback=True):
            await become(connection, claims)
            row = await (await connection.execute(query, tuple(key))).fetchone()
    except InsufficientPrivilege:
        return f"{claims['role']} lacks the privilege SELECT on {table}; {UP}"
    if row is not None and not row[0]:
        return f"row level security: no SELECT policy of {table} lets {claims['role']} see the row; {UP}"
    return None


async def slots(connection: Connection) -> Slots:
    """Whether a session of Realtime's holds its wal2json slot in this database, and how many slots are left."""
    async with connection.cursor(row_factory=dict_row) as cursor:
        rows = await (await cursor.execute(SLOTS)).fetchall()
    held = [row for row in rows if row["ours"] and row["held"]]
    idle = min((row["idle"] or 0.0 for row in held), default=0.0)
    return Slots(
        held=bool(held),
        idle_seconds=idle,
        used=sum(row["used"] for row in rows),
        most=rows[0]["most"],
        dead_after=await _dead_after(connection, idle),
        holders=tuple(sorted(row["holder"] for row in held)),
    )


async def idle_poll_seconds(connection: Connection) -> float:
    """How far apart the polls of a Realtime are to which nothing happens, by the settings of its tenants.

    0 where it keeps them in another database, or there are none yet.
    """
    try:
        async with connection.transaction():
            row = await (await connection.execute(POLL_INTERVAL)).fetchone()
    except (UndefinedTable, UndefinedColumn, InsufficientPrivilege):
        return 0.0
    return IDLE_INTERVALS * (row[0] or 0.0) if row is not None else 0.0


async def _dead_after(connection: Connection, idle: float) -> float:
    """Asked only for a holder that seems dead."""
    if idle <= DEAD_AFTER_SECONDS:
        return DEAD_AFTER_SECONDS
    return max(DEAD_AFTER_SECONDS, 2 * await idle_poll_seconds(connection))


def without_reader(found: Slots) -> str:
    """The likely cause when Realtime says that changes flow and reads none."""
    if found.held:
        return (
            f"the replication slot is held by a session that has been idle for {found.idle_seconds:.0f} s, of a "
            "Realtime that was killed; the new one ends it after a few tries, so try again in half a minute"
        )
    if found.used >= found.most:
        return f"all {found.most} replication slots are in use, so that Realtime cannot make its own; drop unused ones"
    return f"wal2json is missing, or Postgres was restarted and Realtime has not come back to it; {REALTIME_LOG}"


async def decoding(connection: Connection) -> str | None:
    """What keeps the server from decoding anything at all, None when nothing does."""
    row = await (await connection.execute("SELECT current_setting('wal_level')")).fetchone()
    if row is not None and row[0] != "logical":
        return f"wal_level is {row[0]}, so that nothing can be decoded; set wal_level = logical and restart Postgres"
    return None


async def _rare_polls(connection: Connection) -> str | None:
    seconds = await idle_poll_seconds(connection)
    if seconds < RARELY_SECONDS:
        return None
    return (
        f"Realtime polls its replication slot as rarely as every {seconds:.0f} s while nothing happens, so that the "
        "event may still come; lower realtime.poll_interval_ms, or wait longer"
    )


async def _slot(connection: Connection) -> str | None:
    found = await slots(connection)
    return None if found.reading else "Realtime does not read a replication slot: " + without_reader(found)
