"""What Realtime expects to find in the database: roles, schemas, its own migrations."""

from __future__ import annotations

from doctor.checks import postgres
from doctor.checks.finding import Finding, check, failed, ok, warning
from doctor.checks.setup import Need, Setup, image_name
from realtime_versions import Version, image_version

ROLES = ("postgres", "anon", "authenticated", "service_role")
PEOPLE = ("anon", "authenticated")
TENANTS = "_realtime"
CHANGES = "realtime"
LAST_MIGRATION = {Version(2, 32, 12): 20240827160934, Version(2, 129, 8): 20260709120000}
"""The newest migration of a tenant's database, by version: lib/realtime/tenants/migrations.ex."""
FUNCTIONS = (
    "apply_rls",
    "list_changes",
    "is_visible_through_filters",
    "check_equality_op",
    "subscription_check_filters",
)

MIGRATIONS = "SELECT count(*) AS count, max(version) AS last FROM realtime.schema_migrations m"
MIGRATIONS_BESIDE_OWN = (
    MIGRATIONS + " WHERE NOT EXISTS (SELECT FROM _realtime.schema_migrations own WHERE own.version = m.version)"
)
"""Without those of Realtime's own tables, which a search_path to realtime once put beside those of the tenant."""


@check("the roles exist", needs=(Need.DATABASE,), after=(postgres.reachable,))
def roles(setup: Setup) -> Finding:
    found = {
        row["rolname"]: row
        for row in setup.rows(
            "SELECT rolname, rolbypassrls, rolsuper FROM pg_roles WHERE rolname = ANY(%s)", [list(ROLES)]
        )
    }
    for role in ROLES:
        if role not in found:
            return failed("role-missing", f"no role {role}; there are: {', '.join(found) or 'none of them'}", role=role)
    for role in PEOPLE:
        if found[role]["rolbypassrls"] or found[role]["rolsuper"]:
            held = "SUPERUSER" if found[role]["rolsuper"] else "BYPASSRLS"
            return failed("api-role-bypasses-rls", f"{role} has {held}", role=role)
    if not (found["service_role"]["rolbypassrls"] or found["service_role"]["rolsuper"]):
        return warning("service-role-without-bypassrls", "service_role has NOBYPASSRLS")
    return ok(", ".join(ROLES))


@check("the schemas exist", needs=(Need.DATABASE,), after=(postgres.reachable,))
def schemas(setup: Setup) -> Finding:
    rows = setup.rows("SELECT nspname FROM pg_namespace WHERE nspname = ANY(%s)", [[TENANTS, CHANGES]])
    found = {row["nspname"] for row in rows}
    if TENANTS not in found:
        return failed("schema-of-tenants-missing", f"no schema {TENANTS}")
    if CHANGES not in found:
        return failed("schema-realtime-missing", f"no schema {CHANGES}")
    return ok(f"{TENANTS}, {CHANGES}")


@check(
    "Realtime's migrations of the database have run", needs=(Need.DATABASE,), after=(schemas, roles, postgres.superuser)
)
def migrations(setup: Setup) -> Finding:
    """Whether what the tenant's migrations make in schema realtime is there, and of which version."""
    tables = setup.row(
        "SELECT to_regclass('realtime.schema_migrations') IS NOT NULL AS recorded, "
        "to_regclass('realtime.subscription') IS NOT NULL AS subscription, "
        "ARRAY(SELECT f FROM unnest(%s::text[]) f WHERE NOT EXISTS (SELECT FROM pg_proc p "
        "JOIN pg_namespace n ON n.oid = p.pronamespace WHERE n.nspname = 'realtime' AND p.proname = f)) AS missing",
        [list(FUNCTIONS)],
    )
    if not tables["recorded"]:
        return failed("tenant-migrations-missing", "no table realtime.schema_migrations")
    done = setup.row(MIGRATIONS_BESIDE_OWN if _own_migrations(setup) else MIGRATIONS)
    seen = f"{done['count']} migrations, the last is {done['last']}"
    if not done["count"]:
        return failed("tenant-migrations-missing", seen)
    missing = [f"function {name}" for name in tables["missing"]]
    if not tables["subscription"]:
        missing.insert(0, "table subscription")
    if missing:
        return failed("tenant-migrations-damaged", f"{seen}, and schema realtime lacks {', '.join(missing)}")
    image = _running_image(setup)
    known = image_version(image) if image else None
    newest = LAST_MIGRATION.get(known) if known else None
    if newest is not None and done["last"] > newest:
        return failed("database-newer-than-realtime", f"{seen}; that of {image} is {newest}")
    return ok(seen)


def _own_migrations(setup: Setup) -> bool:
    """Whether the list of the migrations of Realtime's own tables is where it belongs."""
    found = setup.row("SELECT to_regclass('_realtime.schema_migrations') IS NOT NULL AS there")
    return bool(found["there"])


def _running_image(setup: Setup) -> str | None:
    if setup.docker_reason is not None or (container := setup.parts["realtime"]) is None:
        return None
    return image_name(container)
