"""Row level security of a table: read from the catalog, changed in one transaction.

The facts (``read_table``) are apart from the operations (``statements``), which are pure. Postgres stores an
expression in canonical form, so a live policy is compared with what the catalog answered right after the policy
was made, never with the text of the config.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import psycopg
import pulumi
from psycopg import sql
from pulumi.dynamic import CreateResult, DiffResult, ReadResult, Resource, UpdateResult

from providers.connection import Cursor, DatabaseError, DatabaseProvider, transaction

API_ROLES = ("anon", "authenticated", "service_role")
PUBLIC = "public"
REPLICA_IDENTITIES = {"d": "default", "f": "full", "n": "nothing", "i": "index"}
"""pg_class.relreplident."""
COMMANDS = {"*": "all", "r": "select", "a": "insert", "w": "update", "d": "delete"}
"""pg_policy.polcmd."""
EXPRESSIONS = ("using", "check")
DECLARED = (
    "schema",
    "table",
    "row_security",
    "force",
    "replica_identity",
    "exclusive",
    "policies",
    "privileges",
    "undeclared_privileges",
)
"""The inputs that are compared; ``privileges`` is what may stay, ``undeclared_privileges`` what was found beyond."""
MISSING = "missing_privileges"
"""Of the state, by role: what a refresh found to lack. There only while something does."""


@dataclass(frozen=True, kw_only=True)
class OwnedSequence:
    """The sequence of a serial or identity column."""

    schema: str
    name: str
    serial: bool
    """An INSERT draws its number with the role's own privilege; that of an identity column needs none."""
    privileges: Mapping[str, Sequence[str]]
    """By grantee, the API roles and PUBLIC."""

    @property
    def identifier(self) -> sql.Identifier:
        return sql.Identifier(self.schema, self.name)

    def __str__(self) -> str:
        return f"SEQUENCE {self.schema}.{self.name}"


@dataclass(frozen=True, kw_only=True)
class LiveTable:
    """What the catalog says of a table."""

    row_security: bool
    force: bool
    replica_identity: str
    policies: Sequence[Mapping[str, Any]]
    privileges: Mapping[str, Sequence[str]]
    """By grantee, the API roles and PUBLIC: privileges on the table, and on columns as ``SELECT (column)``."""
    sequences: Sequence[OwnedSequence]


FACTS = """
SELECT c.relrowsecurity AS row_security, c.relforcerowsecurity AS force, c.relreplident AS replica_identity,
  (
    SELECT coalesce(json_agg(policy ORDER BY policy.name), '[]')
    FROM (
        SELECT p.polname AS name, p.polcmd AS command, p.polpermissive AS permissive,
               ARRAY(SELECT CASE r WHEN 0 THEN 'public' ELSE pg_get_userbyid(r) END
                     FROM unnest(p.polroles) r ORDER BY 1) AS roles,
               pg_get_expr(p.polqual, p.polrelid) AS using, pg_get_expr(p.polwithcheck, p.polrelid) AS check
        FROM pg_policy p WHERE p.polrelid = c.oid
    ) policy
  ) AS policies,
  (
    SELECT coalesce(json_agg(ARRAY[grantee, privilege] ORDER BY grantee, privilege), '[]')
    FROM (
        SELECT CASE acl.grantee WHEN 0 THEN 'public' ELSE pg_get_userbyid(acl.grantee) END AS grantee,
               acl.privilege_type || acl.suffix AS privilege
        FROM (
            SELECT (aclexplode(c.relacl)).*, '' AS suffix
            UNION ALL
            SELECT (aclexplode(a.attacl)).*, ' (' || quote_ident(a.attname) || ')'
            FROM pg_attribute a WHERE a.attrelid = c.oid AND NOT a.attisdropped
        ) acl
    ) held
  ) AS privileges,
  (
    SELECT coalesce(json_agg(sequence ORDER BY sequence.schema, sequence.name), '[]')
    FROM (
        SELECT n.nspname AS schema, s.relname AS name, d.deptype = 'a' AS serial,
               (
                   SELECT coalesce(json_agg(ARRAY[held.grantee, held.privilege]
                                            ORDER BY held.grantee, held.privilege), '[]')
                   FROM (
                       SELECT CASE acl.grantee WHEN 0 THEN 'public' ELSE pg_get_userbyid(acl.grantee) END AS grantee,
                              acl.privilege_type AS privilege
                       FROM aclexplode(s.relacl) acl
                   ) held
               ) AS privileges
        FROM pg_depend d JOIN pg_class s ON s.oid = d.objid JOIN pg_namespace n ON n.oid = s.relnamespace
        WHERE d.classid = 'pg_class'::regclass AND d.refclassid = 'pg_class'::regclass AND d.deptype IN ('a', 'i')
          AND s.relkind = 'S' AND d.refobjid = c.oid
    ) sequence
  ) AS sequences
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = %s AND c.relname = %s AND c.relkind IN ('r', 'p')
"""
"""One statement: a stack may have hundreds of tables to look at. A serial column's sequence depends on it as ``a``,
an identity column's as ``i`` (https://www.postgresql.org/docs/15/catalog-pg-depend.html)."""


def read_table(cursor: Cursor, schema: str, table: str) -> LiveTable | None:
    """The facts of a table, None when there is no such table."""
    cursor.execute(FACTS, [schema, table])
    facts = cursor.fetchone()
    if facts is None:
        return None
    return LiveTable(
        row_security=facts["row_security"],
        force=facts["force"],
        replica_identity=REPLICA_IDENTITIES[facts["replica_identity"]],
        policies=[{**policy, "command": COMMANDS[policy["command"]]} for policy in facts["policies"]],
        privileges=_by_grantee(facts["privileges"]),
        sequences=[
            OwnedSequence(**{**sequence, "privileges": _by_grantee(sequence["privileges"])})
            for sequence in facts["sequences"]
        ],
    )


def _by_grantee(held: Sequence[tuple[str, str]]) -> dict[str, list[str]]:
    """The privileges of the API roles and PUBLIC."""
    privileges: dict[str, list[str]] = {}
    for grantee, privilege in held:
        if grantee in (*API_ROLES, PUBLIC):
            privileges.setdefault(grantee, []).append(privilege)
    return privileges


def _beyond(declared: Mapping[str, Sequence[str]], live: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """What is held on the table and not declared, by grantee."""
    beyond = {grantee: [p for p in held if p not in declared.get(grantee, ())] for grantee, held in live.items()}
    return {grantee: held for grantee, held in beyond.items() if held}


def inserting(declared: Mapping[str, Sequence[str]]) -> list[str]:
    """The roles that insert. They may do with the sequences what they hold: any number is theirs to write anyway."""
    return [role for role, held in declared.items() if "INSERT" in held]


def undeclared_privileges(declared: Mapping[str, Sequence[str]], live: LiveTable) -> dict[str, list[str]]:
    """What the API roles and PUBLIC hold beyond what is declared, on the table and on its sequences, by grantee."""
    beyond = _beyond(declared, live.privileges)
    for sequence in live.sequences:
        for grantee, held in sequence.privileges.items():
            if grantee not in inserting(declared):
                beyond.setdefault(grantee, []).extend(f"{privilege} ON {sequence}" for privilege in held)
    return beyond


def missing_privileges(declared: Mapping[str, Sequence[str]], live: LiveTable) -> dict[str, list[str]]:
    """What roles that insert lack on the sequences of serial columns, by role.

    What they lack on the table is the Grant resources' to see.
    """
    missing: dict[str, list[str]] = {}
    for sequence in live.sequences:
        for role in _lacking_usage(declared, sequence):
            missing.setdefault(role, []).append(f"USAGE ON {sequence}")
    return missing


def _lacking_usage(declared: Mapping[str, Sequence[str]], sequence: OwnedSequence) -> list[str]:
    if not sequence.serial:
        return []
    return [role for role in inserting(declared) if "USAGE" not in sequence.privileges.get(role, ())]


def _role(role: str) -> sql.Composable:
    return sql.SQL("PUBLIC") if role == PUBLIC else sql.Identifier(role)


def _sql(text: str) -> sql.SQL:
    """SQL of the config or the catalog: an expression, a key word that the settings know, a privilege of read_table."""
    return sql.SQL(text)


def create_policy(schema: str, table: str, policy: Mapping[str, Any]) -> sql.Composed:
    """CREATE POLICY."""
    statement = sql.SQL("CREATE POLICY {} ON {} AS {} FOR {} TO {}").format(
        sql.Identifier(policy["name"]),
        sql.Identifier(schema, table),
        sql.SQL("PERMISSIVE" if policy["permissive"] else "RESTRICTIVE"),
        _sql(policy["command"].upper()),
        sql.SQL(", ").join(_role(role) for role in policy["roles"]),
    )
    if policy.get("using") is not None:
        statement += sql.SQL(" USING ({})").format(_sql(policy["using"]))
    if policy.get("check") is not None:
        statement += sql.SQL(" WITH CHECK ({})").format(_sql(policy["check"]))
    return statement


def drop_policy(schema: str, table: str, name: str) -> sql.Composed:
    """DROP POLICY."""
    return sql.SQL("DROP POLICY {} ON {}").format(sql.Identifier(name), sql.Identifier(schema, table))


def revoke(schema: str, table: str, grantee: str, privileges: Sequence[str]) -> sql.Composed:
    """REVOKE of privileges on the table, or on columns: that of SELECT (column) leaves SELECT on the table alone."""
    return sql.SQL("REVOKE {} ON TABLE {} FROM {}").format(
        sql.SQL(", ").join(_sql(privilege) for privilege in privileges),
        sql.Identifier(schema, table),
        _role(grantee),
    )


def revoke_sequences(declared: Mapping[str, Sequence[str]], live: LiveTable) -> Iterator[sql.Composed]:
    """REVOKE of the sequences from whoever of the API roles and PUBLIC holds something and does not insert."""
    for sequence in live.sequences:
        if grantees := [grantee for grantee in sequence.privileges if grantee not in inserting(declared)]:
            yield sql.SQL("REVOKE ALL ON SEQUENCE {} FROM {}").format(
                sequence.identifier, sql.SQL(", ").join(_role(grantee) for grantee in grantees)
            )


def statements(declared: Mapping[str, Any], live: LiveTable) -> Iterator[sql.Composed]:
    """The statements that bring a live table to what is declared, to be run in one transaction.

    Policies are replaced as a whole: within the transaction nobody sees the table without them.
    """
    schema, table = declared["schema"], declared["table"]
    relation = sql.Identifier(schema, table)
    names = {policy["name"] for policy in declared["policies"]}
    for policy in live.policies:
        if declared["exclusive"] or policy["name"] in names:
            yield drop_policy(schema, table, policy["name"])
    for policy in declared["policies"]:
        yield create_policy(schema, table, policy)
    if not live.row_security:
        yield sql.SQL("ALTER TABLE {} ENABLE ROW LEVEL SECURITY").format(relation)
    if live.force != declared["force"]:
        yield sql.SQL("ALTER TABLE {} {} ROW LEVEL SECURITY").format(
            relation, sql.SQL("FORCE" if declared["force"] else "NO FORCE")
        )
    if live.replica_identity != declared["replica_identity"]:
        yield sql.SQL("ALTER TABLE {} REPLICA IDENTITY {}").format(relation, _sql(declared["replica_identity"].upper()))
    for grantee, beyond in _beyond(declared["privileges"], live.privileges).items():
        yield revoke(schema, table, grantee, beyond)
    yield from revoke_sequences(declared["privileges"], live)
    for sequence in live.sequences:
        if lacking := _lacking_usage(declared["privileges"], sequence):
            yield sql.SQL("GRANT USAGE ON SEQUENCE {} TO {}").format(
                sequence.identifier, sql.SQL(", ").join(_role(role) for role in lacking)
            )


def _present(policy: Mapping[str, Any]) -> dict[str, Any]:
    """The policy without what it does not say: the engine does not keep a null."""
    return {key: value for key, value in policy.items() if value is not None}


def _canonical(declared: Sequence[Mapping[str, Any]], made: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The expressions that the catalog stores otherwise than declared, by the policy's name."""
    by_name = {policy["name"]: policy for policy in made}
    rewritten = {
        policy["name"]: _present(
            {
                key: by_name[policy["name"]][key]
                for key in EXPRESSIONS
                if by_name[policy["name"]][key] != policy.get(key)
            }
        )
        for policy in declared
    }
    return {name: expressions for name, expressions in rewritten.items() if expressions}


def _observed(props: Mapping[str, Any], live: LiveTable) -> dict[str, Any]:
    """The inputs as the catalog says they are now: the declared text where nothing changed, the live one elsewhere.

    Starts from what the last change wrote, since ``policies`` itself may hold what an earlier refresh saw.
    """
    written = props.get("written", props["policies"])
    policies: list[dict[str, Any]] = []
    by_name = {policy["name"]: policy for policy in live.policies}
    declared_names = [policy["name"] for policy in written]
    for declared in written:
        found = by_name.get(declared["name"])
        if found is None:
            continue
        canonical = {**declared, **props["canonical"].get(declared["name"], {})}
        # The catalog keeps roles as a set.
        roles = declared["roles"] if sorted(declared["roles"]) == sorted(found["roles"]) else found["roles"]
        expressions = {k: declared.get(k) if found[k] == canonical.get(k) else found[k] for k in EXPRESSIONS}
        policies.append(_present({**found, "roles": roles, **expressions}))
    if props["exclusive"]:
        policies += [_present(policy) for policy in live.policies if policy["name"] not in declared_names]
    missing = missing_privileges(props["privileges"], live)
    return {
        "schema": props["schema"],
        "table": props["table"],
        "row_security": live.row_security,
        "force": live.force,
        "replica_identity": live.replica_identity,
        "exclusive": props["exclusive"],
        "policies": policies,
        "privileges": props["privileges"],
        "undeclared_privileges": undeclared_privileges(props["privileges"], live),
        **({MISSING: missing} if missing else {}),
    }


def _apply(props: Mapping[str, Any]) -> dict[str, Any]:
    schema, table = props["schema"], props["table"]
    with transaction() as cursor:
        live = read_table(cursor, schema, table)
        if live is None:
            raise DatabaseError(
                f"table {schema}.{table} is declared in `tables` and does not exist; "
                "create it in a file of `migrations`, or correct its name"
            )
        for statement in statements(props, live):
            try:
                cursor.execute(statement)
            except (psycopg.ProgrammingError, psycopg.DataError, psycopg.NotSupportedError) as refused:
                raise DatabaseError(
                    f"table {schema}.{table}: {refused.diag.message_primary}, says Postgres to "
                    f"`{statement.as_string(cursor)}`; correct it in `tables`. Nothing of the table was changed"
                ) from None
        made = read_table(cursor, schema, table)
        assert made is not None
    return {**{key: props[key] for key in DECLARED}, "canonical": _canonical(props["policies"], made.policies)}


class TableSecurityProvider(DatabaseProvider):
    def create(self, props: dict[str, Any]) -> CreateResult:
        return CreateResult(id_=f"{props['schema']}.{props['table']}", outs=_apply(props))

    def read(self, id_: str, props: dict[str, Any]) -> ReadResult:
        with transaction() as cursor:
            live = read_table(cursor, props["schema"], props["table"])
        if live is None:
            return ReadResult(id_="", outs={})
        observed = _observed(props, live)
        written = props.get("written", props["policies"])
        # Kept apart only while it differs: the engine writes the whole state at every step, and policies are most of
        # it.
        kept = {"canonical": props["canonical"]} | ({} if observed["policies"] == written else {"written": written})
        return ReadResult(id_=id_, outs={**observed, **kept}, inputs=observed)

    def diff(self, _id: str, _olds: dict[str, Any], _news: dict[str, Any]) -> DiffResult:
        replaces = [key for key in ("schema", "table") if _olds.get(key) != _news[key]]
        changed = MISSING in _olds or any(_olds.get(key) != _news[key] for key in DECLARED)
        return DiffResult(changes=changed, replaces=replaces)

    def update(self, _id: str, _olds: dict[str, Any], _news: dict[str, Any]) -> UpdateResult:
        return UpdateResult(outs=_apply(_news))

    def delete(self, _id: str, _props: dict[str, Any]) -> None:
        """Drops the declared policies and takes the privileges of the API roles away, those on its sequences too.

        Row level security stays on, so that a table without a stack is closed, not open.
        """
        with transaction() as cursor:
            live = read_table(cursor, _props["schema"], _props["table"])
            if live is None:
                return
            names = {policy["name"] for policy in _props["policies"]}
            for policy in live.policies:
                if policy["name"] in names:
                    cursor.execute(drop_policy(_props["schema"], _props["table"], policy["name"]))
            for grantee, held in _beyond({}, live.privileges).items():
                cursor.execute(revoke(_props["schema"], _props["table"], grantee, held))
            for statement in revoke_sequences({}, live):
                cursor.execute(statement)


class TableSecurity(Resource, module="index", name="TableSecurity"):
    """Who may see and change the rows of one table, applied in one transaction.

    Row level security on (and forced, if told), the policies, the replica identity, no privilege of an API role
    beyond the declared ones (default privileges of Supabase give anon all of them, TRUNCATE among them, which row
    level security does not stop), and USAGE on the sequences of serial columns for the roles that insert; the others
    hold nothing on the table's sequences.
    With ``exclusive``, policies that nobody declared are drift and are dropped by the next update.
    """

    policies: pulumi.Output[list[Mapping[str, Any]]]

    def __init__(
        self,
        name: str,
        *,
        schema: str,
        table: str,
        policies: Sequence[Mapping[str, Any]],
        privileges: Mapping[str, Sequence[str]],
        replica_identity: str = "default",
        force: bool = False,
        exclusive: bool = True,
        opts: pulumi.ResourceOptions | None = None,
    ) -> None:
        super().__init__(
            TableSecurityProvider(),
            name,
            {
                "schema": schema,
                "table": table,
                "row_security": True,
                "force": force,
                "replica_identity": replica_identity,
                "exclusive": exclusive,
                "policies": policies,
                "privileges": privileges,
                "undeclared_privileges": {},
            },
            opts,
        )
