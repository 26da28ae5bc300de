"""The Postgres server: reachable, and able to decode changes for Realtime."""

from __future__ import annotations

import re
import secrets

import psycopg
from psycopg import errors

from doctor.checks import containers
from doctor.checks.finding import Finding, check, failed, ok, skipped, warning
from doctor.checks.setup import Need, Setup, second_connection
from doctor.tls import refusal

OLDEST = 14
SPARE_CONNECTIONS = 12
"""Realtime v2.32.12 holds 5 connections of its own and 7 for a tenant with subscribers."""
LEAST_CONNECTIONS = 3
HELD_BYTES = 1 << 30
UNUSABLE_PLUGIN = re.compile(r"wal2json|output.plugin")
"""In every message of a server that has not got the plugin, cannot load it, or does not allow it."""
OURS = "supabase_realtime_%"
"""Slots of Realtime, by their names: slot_name of the tenant, and the broadcast slot of newer versions."""

LOGIN_REFUSALS = (
    (r"password authentication failed|no password supplied", "postgres-password-refused"),
    (r"too many clients|remaining connection slots", "connections-exhausted"),
    (r"database .* does not exist", "postgres-database-missing"),
    (r"the database system is", "postgres-starting"),
)
"""What Postgres says to a login, and the cause."""


@check("Postgres's container runs", needs=(Need.DOCKER,), after=(containers.network,))
def container(setup: Setup) -> Finding:
    if setup.external_database:
        return skipped("somebody else runs the server (postgres.external.host)")
    return containers.runs(setup, "postgres")


@check("Postgres takes connections and the login", needs=(Need.DATABASE,), after=(container,))
def reachable(setup: Setup) -> Finding:
    where = setup.where
    server = f"{where.get('host')}:{where.get('port', 5432)}"
    names = {
        "setting": "postgres.password",
        "role": where.get("user"),
        "database": where.get("dbname"),
        "container": setup.container_name("postgres"),
    }
    try:
        row = setup.row("SELECT current_user AS name, current_database() AS database")
    except psycopg.OperationalError as refused:
        # A failed connection carries no SQLSTATE (psycopg 3.3): there is only libpq's text.
        text = str(refused)
        seen = f"{server}: {(text.strip().splitlines() or ['no answer'])[0]}"
        for pattern, cause in LOGIN_REFUSALS:
            if re.search(pattern, text):
                return failed(cause, seen, **names)
        if tls := refusal(text, external=setup.external_database):
            return failed("postgres-tls-refused", f"{server}: {tls.seen}", advice=tls.cure)
        if "FATAL" in text:
            return failed("postgres-login-refused", seen)
        setting = "postgres.external.host" if setup.external_database else "postgres.host_port"
        return failed("postgres-unreachable", seen, setting=setting)
    return ok(f"{row['name']} on {server}, database {row['database']}")


@check("Postgres is new enough", needs=(Need.DATABASE,), after=(reachable,))
def version(setup: Setup) -> Finding:
    found = setup.row(
        "SELECT current_setting('server_version_num')::int AS number, current_setting('server_version') v"
    )
    if found["number"] < OLDEST * 10_000:
        return failed("postgres-version-unsupported", f"Postgres {found['v']}")
    return ok(f"Postgres {found['v']}")


@check("connections are left", needs=(Need.DATABASE,), after=(reachable,))
def connections(setup: Setup) -> Finding:
    found = setup.row(
        "SELECT (SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend') AS used, "
        "current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int AS most, "
        "(SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE ANY "
        "('{supabase_mt_realtime%,realtime_%}')) AS ours"
    )
    left = found["most"] - found["used"]
    seen = f"{found['used']} of {found['most']} connections in use, {found['ours']} of them Realtime's"
    if left < max(LEAST_CONNECTIONS, SPARE_CONNECTIONS - found["ours"]):
        return warning("connections-scarce", seen)
    return ok(seen)


@check("wal_level is logical", needs=(Need.DATABASE,), after=(reachable,))
def wal_level(setup: Setup) -> Finding:
    level = setup.row("SELECT current_setting('wal_level') AS level")["level"]
    seen = f"wal_level = {level}"
    return ok(seen) if level == "logical" else failed("wal-level-not-logical", seen)


@check("a replication slot is left, or Realtime has its own", needs=(Need.DATABASE,), after=(wal_level,))
def slots(setup: Setup) -> Finding:
    found = setup.row(
        "SELECT count(*) AS used, current_setting('max_replication_slots')::int AS most, "
        "count(*) FILTER (WHERE plugin = 'wal2json' AND database = current_database() AND active "
        "AND slot_name LIKE %(ours)s) AS ours, "
        "min(slot_name::text) FILTER (WHERE slot_name NOT LIKE %(ours)s) AS foreign "
        "FROM pg_replication_slots",
        {"ours": OURS},
    )
    seen = f"{found['used']} of {found['most']} replication slots in use, {found['ours']} of them Realtime's"
    if found["used"] >= found["most"] and not found["ours"]:
        return failed("replication-slots-exhausted", seen, slot=found["foreign"] or "<name>")
    return ok(seen)


@check("a WAL sender is left", needs=(Need.DATABASE,), after=(reachable,))
def senders(setup: Setup) -> Finding:
    found = setup.row(
        "SELECT count(*) AS used, current_setting('max_wal_senders')::int AS most FROM pg_stat_activity "
        "WHERE backend_type = 'walsender'"
    )
    seen = f"{found['used']} of {found['most']} WAL senders in use"
    return warning("wal-senders-exhausted", seen) if found["used"] >= found["most"] else ok(seen)


@check("wal2json decodes", needs=(Need.DATABASE,), after=(wal_level, slots))
def wal2json(setup: Setup) -> Finding:
    """Whether the server has the output plugin and a slot can be made.

    An active slot of Realtime, once made (it has a confirmed_flush_lsn then), proves both. Without one, a temporary
    slot of wal2json is made in a session that ends right after: no catalog says which plugins there are. It leaves
    nothing behind. Its name is this look's own, since the server has one set of names for all of its databases.

    Raises psycopg.Error for every other trouble, such as no connection for the slot's session.
    """
    active = setup.rows(
        "SELECT slot_name FROM pg_replication_slots WHERE plugin = 'wal2json' AND active AND database = "
        "current_database() AND confirmed_flush_lsn IS NOT NULL"
    )
    if active:
        return ok(f"slot {active[0]['slot_name']} is being read")
    try:
        with second_connection(setup) as connection:
            name = f"doctor_{secrets.token_hex(4)}"
            connection.execute("SELECT pg_create_logical_replication_slot(%s, 'wal2json', true)", [name])
    except errors.QueryCanceled:
        return _blocked(setup)
    except errors.ConfigurationLimitExceeded as full:
        return failed("replication-slots-exhausted", str(full.diag.message_primary), slot="<name>")
    except psycopg.Error as refused:
        message = refused.diag.message_primary or ""
        if UNUSABLE_PLUGIN.search(message):
            return failed("wal2json-missing", message)
        if isinstance(refused, errors.InsufficientPrivilege | errors.ReadOnlySqlTransaction):
            return skipped(f"no slot can be made to try wal2json: {message}")
        raise
    return ok("a temporary slot of wal2json was made, and is gone again")


def _blocked(setup: Setup) -> Finding:
    """A logical slot waits for every transaction that has written to end."""
    writers = setup.rows(
        "SELECT pid, application_name, extract(epoch FROM now() - xact_start)::int AS age FROM pg_stat_activity "
        "WHERE backend_xid IS NOT NULL AND xact_start IS NOT NULL ORDER BY xact_start LIMIT 1"
    )
    if not writers:
        return skipped("a temporary slot was not ready within 4 s")
    (writer,) = writers
    seen = f"a transaction of {writer['application_name'] or 'somebody'} is open for {writer['age']} s"
    return failed("slot-blocked-by-transaction", seen, pid=writer["pid"])


@check("no slot holds WAL back", needs=(Need.DATABASE,), after=(reachable,))
def wal_held(setup: Setup) -> Finding:
    limit = setup.row("SELECT current_setting('max_slot_wal_keep_size') AS size")["size"]
    rows = setup.rows(
        "SELECT slot_name, active, temporary, wal_status, pg_wal_lsn_diff(CASE WHEN pg_is_in_recovery() THEN "
        "pg_last_wal_replay_lsn() ELSE pg_current_wal_lsn() END, restart_lsn)::bigint AS held "
        "FROM pg_replication_slots ORDER BY held DESC NULLS LAST"
    )
    seen = f"max_slot_wal_keep_size = {limit}"
    for row in rows:
        idle = not row["active"] and not row["temporary"] and limit == "-1"
        if idle or row["wal_status"] in ("unreserved", "lost") or (row["held"] or 0) > HELD_BYTES:
            seen += f"; slot {row['slot_name']} ({'active' if row['active'] else 'inactive'}, {row['wal_status']})"
            seen += f" holds {(row['held'] or 0) >> 20} MiB"
            return warning("wal-held-back", seen, slot=row["slot_name"])
    return ok(f"{seen}; {len(rows)} slots hold {max((row['held'] or 0 for row in rows), default=0) >> 20} MiB")


@check("the user of Realtime is a superuser", needs=(Need.DATABASE,), after=(reachable,))
def superuser(setup: Setup) -> Finding:
    user = str(setup.where.get("user")) if setup.stack else "supabase_admin"
    rows = setup.rows("SELECT rolsuper FROM pg_roles WHERE rolname = %s", [user])
    if not rows:
        return skipped(f"there is no role {user}, and who Realtime logs in as is not known")
    if not rows[0]["rolsuper"]:
        return failed("user-not-superuser", f"{user} is no superuser", role=user)
    return ok(f"{user} is a superuser")
