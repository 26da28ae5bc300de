"""The database objects that a program declares, made without the engine and without the postgresql provider.

``statements`` says in SQL what a resource makes on a server that has nothing of it yet; ``apply`` makes it. The
statements for the postgresql provider's resources are the provider's own (terraform-provider-postgresql, behind
pulumi-postgresql 3.18), those for this project's dynamic providers come from the providers' builders.
"""

from __future__ import annotations

import base64
import contextlib
import pickle
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from psycopg import sql

from plan.program import Resource
from providers import auth_schema, connection, roles, table_security
from rehearsal.migrations import migrate, refuse_transaction_statements

DYNAMIC = "pulumi-python:dynamic/index:"
MIGRATIONS = f"{DYNAMIC}ApplicationMigrations"
PROVIDER = "__provider"
"""Input of a dynamic resource that holds its pickled provider (pulumi.dynamic.dynamic, PROVIDER_KEY)."""
NOT_IN_THE_DATABASE = (
    "docker:",
    "pulumi:providers:",
    f"{DYNAMIC}ContainerReadiness",
    f"{DYNAMIC}ExternalServer",
    f"{DYNAMIC}NetworkAlias",
    f"{DYNAMIC}PinnedImage",
    f"{DYNAMIC}RealtimeSchema",
    f"{DYNAMIC}RealtimeTenant",
)
"""Beginnings of the types that make nothing in the application's database."""

Statement = sql.SQL | sql.Composed


class UnknownResourceError(Exception):
    """A resource whose effect on the database is not known here."""


def is_database_object(resource: Resource) -> bool:
    """Whether a resource makes something in the database.

    Raises UnknownResourceError for a type that is neither applied here nor known to make nothing.
    """
    if not resource.custom or resource.type.startswith(NOT_IN_THE_DATABASE):
        return False
    if resource.type not in BUILDERS:
        raise UnknownResourceError(
            f"{resource.type} {resource.name}: what it makes in the database is not known; "
            "teach it to rehearsal/applier.py, in BUILDERS or in NOT_IN_THE_DATABASE"
        )
    return True


def statements(resource: Resource, project: Path) -> list[Statement]:
    """What a resource makes in a database that has nothing of it yet; nothing for other resources.

    ``project`` is the folder in which the migrations' folder is found.
    """
    if not is_database_object(resource):
        return []
    return list(BUILDERS[resource.type](resource.values, project))


def _schema(inputs: Mapping[str, Any], _: Path) -> Iterator[Statement]:
    """postgresql/resource_postgresql_schema.go, createSchema and setSchemaOwner."""
    schema, owner = sql.Identifier(inputs["name"]), sql.Identifier(inputs["owner"])
    yield sql.SQL("CREATE SCHEMA IF NOT EXISTS {} AUTHORIZATION {}").format(schema, owner)
    yield sql.SQL("ALTER SCHEMA {} OWNER TO {}").format(schema, owner)


def _grant(inputs: Mapping[str, Any], _: Path) -> Iterator[Statement]:
    """postgresql/resource_postgresql_grant.go, createRevokeQuery and createGrantQuery.

    On a schema everything is revoked first, on tables what is granted alone.
    """
    role = sql.Identifier(inputs["role"])
    privileges = sql.SQL(", ").join(sql.SQL(privilege) for privilege in sorted(inputs["privileges"]))
    match inputs["objectType"]:
        case "schema":
            target = sql.SQL("SCHEMA {}").format(sql.Identifier(inputs["schema"]))
            revoked: sql.Composable = sql.SQL("ALL PRIVILEGES")
        case "table" if inputs.get("objects"):
            tables = (sql.Identifier(inputs["schema"], table) for table in sorted(inputs["objects"]))
            target = sql.SQL("TABLE {}").format(sql.SQL(", ").join(tables))
            revoked = privileges
        case other:
            raise UnknownResourceError(f"a Grant on {other} is not known; teach it to rehearsal/applier.py")
    yield sql.SQL("REVOKE {} ON {} FROM {}").format(revoked, target, role)
    yield sql.SQL("GRANT {} ON {} TO {}").format(privileges, target, role)


def _publication(inputs: Mapping[str, Any], _: Path) -> Iterator[Statement]:
    """postgresql/resource_postgresql_publication.go, resourcePostgreSQLPublicationCreate."""
    publication = sql.Identifier(inputs["name"])
    statement = sql.SQL("CREATE PUBLICATION {}").format(publication)
    if tables := inputs.get("tables"):
        names = (sql.Identifier(*table.split(".")) for table in sorted(tables))
        statement += sql.SQL(" FOR TABLE {}").format(sql.SQL(", ").join(names))
    if parameters := inputs.get("publishParams"):
        statement += sql.SQL(" WITH (publish = {})").format(", ".join(parameters))
    yield statement
    yield sql.SQL("ALTER PUBLICATION {} OWNER TO {}").format(publication, sql.Identifier(inputs["owner"]))


def _roles(inputs: Mapping[str, Any], _: Path) -> Iterator[Statement]:
    return (roles.create_role(role) for role in inputs["roles"])


def _auth_schema(inputs: Mapping[str, Any], _: Path) -> Iterator[Statement]:
    yield sql.SQL("CREATE SCHEMA auth")
    yield sql.SQL("GRANT USAGE ON SCHEMA auth TO PUBLIC")
    yield from (sql.SQL(auth_schema.definitions()[name].removesuffix(";")) for name in inputs["objects"])


def _migrations(inputs: Mapping[str, Any], project: Path) -> Iterator[Statement]:
    """The files as they are: their SQL is the application's."""
    folder = project / inputs["folder"]
    return (sql.SQL((folder / f"{name}.sql").read_text().rstrip().rstrip(";")) for name in sorted(inputs["files"]))


def _table_security(inputs: Mapping[str, Any], _: Path) -> Iterator[Statement]:
    new = table_security.LiveTable(
        row_security=False, force=False, replica_identity="default", policies=(), privileges={}, sequences=()
    )
    return table_security.statements(inputs, new)


def _handover(inputs: Mapping[str, Any], _: Path) -> Iterator[Statement]:
    yield sql.SQL("DROP PUBLICATION IF EXISTS {}").format(sql.Identifier(inputs["publication"]))


BUILDERS: dict[str, Callable[[Mapping[str, Any], Path], Iterator[Statement]]] = {
    "postgresql:index/schema:Schema": _schema,
    "postgresql:index/grant:Grant": _grant,
    "postgresql:index/publication:Publication": _publication,
    f"{DYNAMIC}DatabaseRoles": _roles,
    f"{DYNAMIC}AuthSchema": _auth_schema,
    MIGRATIONS: _migrations,
    f"{DYNAMIC}TableSecurity": _table_security,
    f"{DYNAMIC}PublicationHandover": _handover,
}


@contextlib.contextmanager
def connected_to(conninfo: str) -> Iterator[None]:
    """The providers of this process talk to this server, until the block ends."""
    connection.connect_to(conninfo)
    try:
        yield
    finally:
        connection.close()


def apply(resources: Iterable[Resource], project: Path, *, in_transaction: bool = False) -> Sequence[Resource]:
    """Make every database object, in the order given, on the server that the providers are connected to.

    A resource of the postgresql provider by its statements in one transaction, as the provider does it; a dynamic
    one by its own provider's ``create``. With ``in_transaction`` the migrations' files run in the transaction at hand,
    which yoyo, with a connection of its own, cannot see; nothing is made if one of them would end it. Answers with the
    resources that were made. Raises what Postgres or the provider raises; what was made before stays.
    """
    made = [resource for resource in resources if is_database_object(resource)]
    with contextlib.chdir(project):
        if in_transaction:
            for resource in made:
                if resource.type == MIGRATIONS:
                    refuse_transaction_statements(resource.values)
        for resource in made:
            if in_transaction and resource.type == MIGRATIONS:
                migrate(resource.values)
            elif PROVIDER in resource.inputs:
                _provider(resource).create({k: v for k, v in resource.values.items() if k != PROVIDER})
            else:
                with connection.transaction() as cursor:
                    for statement in statements(resource, project):
                        cursor.execute(statement)
    return made


def _provider(resource: Resource) -> Any:
    """The provider of a dynamic resource, as the engine's language host gets it: pickled by the program itself."""
    return pickle.loads(base64.b64decode(resource.values[PROVIDER]))  # noqa: S301 - from the program of this process
