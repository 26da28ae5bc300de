"""The publication, and who may read and write its tables: what decides between an event and silence."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from doctor.checks import database, postgres
from doctor.checks.finding import Finding, check, failed, ok, skipped, warning
from doctor.checks.setup import Need, Setup
from doctor.outputs import PublishedTable
from doctor.silence import PUBLICATION
from settings import SUBSCRIBING_ROLES, ApiRole, Event

NO_TABLES = "the set-up publishes no table"

TABLES = """
    SELECT n.nspname AS schema, c.relname AS name, c.relrowsecurity AS row_security, c.relreplident AS identity,
           EXISTS (SELECT FROM pg_index i WHERE i.indrelid = c.oid AND i.indisprimary) AS has_key,
           EXISTS (SELECT FROM pg_publication_tables t
                   WHERE t.pubname = %(publication)s AND t.schemaname = n.nspname AND t.tablename = c.relname)
               AS published
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE c.relkind IN ('r', 'p') AND n.nspname || '.' || c.relname = ANY(%(tables)s)
"""
PRIVILEGES = """
    SELECT r.role, has_schema_privilege(r.role, %(schema)s::regnamespace, 'USAGE') AS usage,
           has_table_privilege(r.role, %(table)s, 'SELECT') OR has_any_column_privilege(r.role, %(table)s, 'SELECT')
               AS select,
           (SELECT string_agg(a.attname, ', ' ORDER BY a.attnum) FROM pg_constraint k
            JOIN pg_attribute a ON a.attrelid = k.conrelid AND a.attnum = ANY(k.conkey)
            WHERE k.conrelid = %(table)s::regclass AND k.contype = 'p'
              AND NOT has_column_privilege(r.role, a.attrelid, a.attnum, 'SELECT')) AS hidden_key,
           has_table_privilege(r.role, %(table)s, 'INSERT') OR has_any_column_privilege(r.role, %(table)s, 'INSERT')
               AS insert,
           has_table_privilege(r.role, %(table)s, 'TRUNCATE') AS truncate,
           (SELECT min(s.oid::regclass::text) FROM pg_attrdef d
            JOIN pg_depend p ON p.classid = 'pg_attrdef'::regclass AND p.objid = d.oid
                            AND p.refclassid = 'pg_class'::regclass
            JOIN pg_class s ON s.oid = p.refobjid AND s.relkind = 'S'
            WHERE d.adrelid = %(table)s::regclass AND NOT has_sequence_privilege(r.role, s.oid, 'USAGE')) AS sequence
    FROM unnest(%(roles)s::text[]) AS r(role)
"""
POLICIES = """
    SELECT p.polname AS name, p.polcmd AS command, p.polpermissive AS permissive,
           pg_get_expr(p.polqual, p.polrelid) AS using, pg_get_expr(p.polwithcheck, p.polrelid) AS check
    FROM pg_policy p
    WHERE p.polrelid = %(table)s::regclass
      AND (0 = ANY(p.polroles) OR EXISTS (
          SELECT FROM unnest(p.polroles) AS named(oid)
          WHERE named.oid <> 0 AND pg_has_role(%(role)s, named.oid, 'USAGE')))
    ORDER BY p.polname
"""
"""A policy is for whoever has the privileges of a role that it names (Postgres 15, rowsecurity.c,
check_role_for_policy): membership alone, of a role with NOINHERIT, does not make it apply."""


@check("the publication exists", needs=(Need.DATABASE,), after=(postgres.reachable,))
def publication(setup: Setup) -> Finding:
    rows = setup.rows("SELECT puballtables FROM pg_publication WHERE pubname = %s", [PUBLICATION])
    names = ", ".join(table.table for table in setup.tables) or "<table>"
    if not rows:
        return failed("publication-missing", f"no publication {PUBLICATION}", table=names)
    return ok(f"{PUBLICATION}{' FOR ALL TABLES' if rows[0]['puballtables'] else ''}")


@check("the tables exist and are published", needs=(Need.DATABASE,), after=(publication,))
def published(setup: Setup) -> Finding:
    if not (tables := examined(setup)):
        if setup.stack is None:
            return failed("publication-empty", f"{PUBLICATION} publishes no table")
        return skipped(NO_TABLES)
    live = _live(setup)
    for table in tables:
        if table.table not in live:
            return failed("table-missing", f"no table {table.table}", table=table.table)
    for table in tables:
        if not live[table.table]["published"]:
            return failed("table-not-published", f"{PUBLICATION} is without {table.table}", table=table.table)
    return ok(", ".join(table.table for table in tables))


@check("the declared events are published", needs=(Need.DATABASE,), after=(publication,))
def events(setup: Setup) -> Finding:
    live = setup.row(
        "SELECT pubinsert AS insert, pubupdate AS update, pubdelete AS delete FROM pg_publication WHERE pubname = %s",
        [PUBLICATION],
    )
    wanted = {event for table in setup.tables for event in table.events} or set(Event)
    seen = f"publishes {', '.join(event for event in Event if live[event]) or 'nothing'}"
    if any(not live[event] for event in wanted):
        events = ", ".join(event for event in Event if event in wanted)
        report = failed if setup.tables else warning
        return report("events-not-published", seen, events=events)
    return ok(seen)


@check("the tables have a primary key", needs=(Need.DATABASE,), after=(published,))
def primary_key(setup: Setup) -> Finding:
    for table, live in _each(setup):
        if not live["has_key"]:
            return failed("table-without-primary-key", f"{table.table} has none", table=table.table)
    return _all_well(setup)


@check("the replica identity lets rows be updated and deleted", needs=(Need.DATABASE,), after=(primary_key,))
def replica_identity(setup: Setup) -> Finding:
    for table, live in _each(setup):
        changing = not table.events or Event.UPDATE in table.events or Event.DELETE in table.events
        if changing and live["identity"] == "n":
            return failed("replica-identity-nothing", f"{table.table}: replica identity nothing", table=table.table)
    return _all_well(setup)


@check("the roles may use the tables' schemas", needs=(Need.DATABASE,), after=(published, database.roles))
def schema_usage(setup: Setup) -> Finding:
    for table, _ in _each(setup):
        for row in _privileges(setup, table, {*table.read, *table.write}):
            if not row["usage"]:
                seen = f"{row['role']} lacks USAGE on schema {table.schema_name}"
                return failed("schema-usage-missing", seen, schema=table.schema_name, role=row["role"])
    return _all_well(setup)


@check("the roles hold the privileges", needs=(Need.DATABASE,), after=(schema_usage,))
def privileges(setup: Setup) -> Finding:
    """SELECT for who reads, INSERT and the sequences for who writes, TRUNCATE for nobody.

    Where nothing is declared, one role of people has to be able to select. Of a table without the privilege on every
    column of the primary key, Realtime sends `Error 401: Unauthorized` and no column (realtime.apply_rls, v2.32.12).
    """
    truncating = None
    for table, _ in _each(setup):
        rows = {row["role"]: row for row in _privileges(setup, table, set(SUBSCRIBING_ROLES))}
        missing = [role for role in table.read if not _selects(rows[role])]
        if setup.stack is None and not any(_selects(row) for row in rows.values()):
            missing = [ApiRole.ANON]
        if missing:
            seen = f"{missing[0]} lacks SELECT on {table.table}"
            if rows[missing[0]]["select"]:
                seen = f"{missing[0]} lacks SELECT on {rows[missing[0]]['hidden_key']} of the key of {table.table}"
            return failed("select-grant-missing", seen, table=table.table, role=missing[0])
        for role in table.write:
            if not rows[role]["insert"]:
                seen = f"{role} lacks INSERT on {table.table}"
                return failed("insert-grant-missing", seen, table=table.table, role=role)
            if sequence := rows[role]["sequence"]:
                seen = f"{role} lacks USAGE on sequence {sequence} of {table.table}"
                return failed("sequence-usage-missing", seen, sequence=sequence, role=role)
        truncating = truncating or next(((table, role) for role in rows if rows[role]["truncate"]), None)
    if truncating is not None:
        table, role = truncating
        return warning("truncate-granted", f"{role} holds TRUNCATE on {table.table}", table=table.table, role=role)
    return _all_well(setup)


@check("row level security is on", needs=(Need.DATABASE,), after=(published,))
def row_security(setup: Setup) -> Finding:
    for table, live in _each(setup):
        if not live["row_security"]:
            report = failed if setup.stack else warning
            return report("row-security-off", f"{table.table}: row level security is off", table=table.table)
    return _all_well(setup)


@check("a policy lets the readers see rows", needs=(Need.DATABASE,), after=(row_security, database.roles))
def select_policies(setup: Setup) -> Finding:
    for table, live in _each(setup):
        if not live["row_security"]:
            continue
        readers = table.read or (SUBSCRIBING_ROLES if setup.stack is None else ())
        blocked = [(role, why) for role in readers if (why := _blocked(setup, table, role, "r", "using"))]
        if blocked and (table.read or len(blocked) == len(readers)):
            role, (cause, policy) = blocked[0]
            seen = f"{table.table}: no SELECT policy for {role}"
            if policy is not None:
                kind = "policy" if policy["permissive"] else "restrictive policy"
                seen = f"{table.table}: {kind} {policy['name']} for {role} is USING (false)"
            return failed(cause, seen, table=table.table, role=role, policy=policy and policy["name"])
    return _all_well(setup)


@check("a policy lets the writers insert", needs=(Need.DATABASE,), after=(row_security, database.roles))
def insert_policies(setup: Setup) -> Finding:
    for table, live in _each(setup):
        for role in table.write if live["row_security"] else ():
            if blocked := _blocked(setup, table, role, "a", "check"):
                _, policy = blocked
                seen = f"{table.table}: no INSERT policy lets {role} write"
                if policy is not None and not policy["permissive"]:
                    seen = f"{table.table}: restrictive policy {policy['name']} for {role} lets no row be written"
                return failed("insert-policy-missing", seen, table=table.table, role=role)
    return _all_well(setup)


def examined(setup: Setup) -> tuple[PublishedTable, ...]:
    """The declared tables; where nothing is declared, those of the publication."""
    if setup.tables or setup.stack is not None or setup.dsn is None:
        return setup.tables
    rows = setup.rows(
        "SELECT schemaname || '.' || tablename AS name FROM pg_publication_tables WHERE pubname = %s ORDER BY 1",
        [PUBLICATION],
    )
    return tuple(PublishedTable(table=row["name"]) for row in rows if row["name"].count(".") == 1)


def _live(setup: Setup) -> dict[str, dict[str, Any]]:
    names = [table.table for table in examined(setup)]
    rows = setup.rows(TABLES, {"publication": PUBLICATION, "tables": names}) if names else []
    return {f"{row['schema']}.{row['name']}": row for row in rows}


def _each(setup: Setup) -> Iterator[tuple[PublishedTable, dict[str, Any]]]:
    if setup.dsn is not None:
        live = _live(setup)
        yield from ((table, live[table.table]) for table in examined(setup))


def _all_well(setup: Setup) -> Finding:
    names = [table.table for table in examined(setup)]
    return ok(", ".join(names)) if names else skipped(NO_TABLES)


def _privileges(setup: Setup, table: PublishedTable, roles: set[ApiRole]) -> list[dict[str, Any]]:
    if not roles:
        return []
    return setup.rows(
        PRIVILEGES,
        {
            "schema": _quoted(table.schema_name),
            "table": _qualified(table),
            "roles": [role.value for role in ApiRole if role in roles],
        },
    )


def _selects(privileges: Mapping[str, Any]) -> bool:
    """Whether Realtime sends the role rows of the table; a table without a key is another check's trouble."""
    return bool(privileges["select"]) and privileges["hidden_key"] is None


def _blocked(
    setup: Setup, table: PublishedTable, role: ApiRole, command: str, expression: str
) -> tuple[str, Mapping[str, Any] | None] | None:
    """None when the policies may let a row through; else the cause, and a policy that does not.

    One of the permissive policies has to let it through, and every restrictive one.
    """
    policies: list[Mapping[str, Any]] = [
        row
        for row in setup.rows(POLICIES, {"table": _qualified(table), "role": role.value})
        if row["command"] in (command, "*")
    ]
    permissive = [policy for policy in policies if policy["permissive"]]
    if not permissive:
        return "select-policy-missing", None
    # A policy without WITH CHECK uses its USING for new rows (CREATE POLICY, "Parameters").
    shut = [
        policy
        for policy in policies
        if (policy[expression] if policy[expression] is not None else policy["using"]) == "false"
    ]
    if restrictive := [policy for policy in shut if not policy["permissive"]]:
        return "select-policy-false", restrictive[0]
    return ("select-policy-false", shut[0]) if len(shut) == len(permissive) else None


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _qualified(table: PublishedTable) -> str:
    return f"{_quoted(table.schema_name)}.{_quoted(table.name)}"
