"""What the doctor says of a table whose rows Postgres keeps from its readers or writers."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import pytest
from pydantic import SecretStr

from doctor.checks import tables
from doctor.checks.finding import Finding, Status
from doctor.checks.setup import Setup
from doctor.outputs import PublishedTable
from settings import ApiRole
from tests.database.conftest import Connection

NOTES = PublishedTable(table="public.notes", read=(ApiRole.ANON,), write=(ApiRole.ANON,))
PUBLISHED = """
CREATE TABLE public.notes (id bigint, part integer, name text, PRIMARY KEY (id, part) INCLUDE (name));
ALTER TABLE public.notes ENABLE ROW LEVEL SECURITY;
GRANT SELECT, INSERT ON public.notes TO anon;
CREATE POLICY readable ON public.notes FOR SELECT TO anon USING (true);
CREATE POLICY writable ON public.notes FOR INSERT TO anon WITH CHECK (true);
CREATE PUBLICATION supabase_realtime FOR TABLE public.notes;
INSERT INTO public.notes VALUES (1, 1, 'first');
"""
numbers = itertools.count(1)


@pytest.fixture
def setup(database: str, admin: Connection) -> Iterator[Setup]:
    """A stack's table, published, with all that its reader and writer anon needs, and a row."""
    admin.execute(PUBLISHED.encode())
    with Setup(stack="any", dsn=SecretStr(database), tables=(NOTES,)) as opened:
        yield opened


@pytest.fixture
def group(admin: Connection, superuser: Connection) -> Iterator[str]:
    """A role of which anon is a member. Roles are the server's, not the database's."""
    name = f"readers_{next(numbers)}"
    superuser.execute(f"CREATE ROLE {name}; GRANT {name} TO anon".encode())
    try:
        yield name
    finally:
        admin.execute(f"DROP OWNED BY {name}".encode())
        superuser.execute(f"DROP ROLE {name}".encode())


Inheriting = Callable[[bool], None]


@pytest.fixture
def anon_inherits(superuser: Connection, group: str) -> Inheriting:
    """Gives anon the privileges of the group, or only the right to SET ROLE to it."""

    def inherits(yes: bool) -> None:
        # Of the membership, since Postgres 16: an attribute of the role anon would be of all of its memberships.
        superuser.execute(f"GRANT {group} TO anon WITH INHERIT {str(yes).upper()}".encode())

    return inherits


def seen_by_anon(acting_as: Callable[..., Connection]) -> int:
    return acting_as("anon").execute("SELECT id FROM public.notes").rowcount


def is_well(finding: Finding) -> None:
    assert finding.status is Status.OK, finding.seen


def fails(finding: Finding, cause: str, *words: str) -> None:
    assert (finding.status, finding.cause) == (Status.FAILED, cause), finding.seen
    assert all(word in finding.seen for word in words), finding.seen


def test_a_table_whose_reader_sees_rows_is_well(setup: Setup, acting_as: Callable[..., Connection]) -> None:
    assert seen_by_anon(acting_as) == 1
    for look in (tables.privileges, tables.select_policies, tables.insert_policies):
        is_well(look(setup))


def test_a_restrictive_policy_that_is_false_shuts_the_table(
    setup: Setup, admin: Connection, acting_as: Callable[..., Connection]
) -> None:
    admin.execute("CREATE POLICY shut ON public.notes AS RESTRICTIVE FOR SELECT USING (false)")
    assert seen_by_anon(acting_as) == 0
    finding = tables.select_policies(setup)
    fails(finding, "select-policy-false", "restrictive policy shut", "anon")
    assert finding.cure is not None
    assert "ALTER POLICY shut ON public.notes" in finding.cure
    is_well(tables.insert_policies(setup))


def test_a_restrictive_policy_for_everything_keeps_writers_out_too(setup: Setup, admin: Connection) -> None:
    admin.execute("CREATE POLICY shut ON public.notes AS RESTRICTIVE USING (false)")
    fails(tables.insert_policies(setup), "insert-policy-missing", "restrictive policy shut")


@pytest.mark.parametrize("policy", ["USING (id > 0)", "TO authenticated USING (false)", "FOR DELETE USING (false)"])
def test_a_restrictive_policy_that_may_let_rows_through_or_is_for_others_is_no_fault(
    setup: Setup, admin: Connection, acting_as: Callable[..., Connection], policy: str
) -> None:
    admin.execute(f"CREATE POLICY narrow ON public.notes AS RESTRICTIVE {policy}".encode())
    assert seen_by_anon(acting_as) == 1
    is_well(tables.select_policies(setup))


def test_a_restrictive_policy_alone_lets_nothing_through(setup: Setup, admin: Connection) -> None:
    admin.execute("DROP POLICY readable ON public.notes")
    admin.execute("CREATE POLICY narrow ON public.notes AS RESTRICTIVE FOR SELECT USING (true)")
    fails(tables.select_policies(setup), "select-policy-missing", "anon")


def test_permissive_policies_are_shut_only_when_all_are(
    setup: Setup, admin: Connection, acting_as: Callable[..., Connection]
) -> None:
    admin.execute("CREATE POLICY another ON public.notes FOR SELECT USING (false)")
    assert seen_by_anon(acting_as) == 1
    is_well(tables.select_policies(setup))
    admin.execute("ALTER POLICY readable ON public.notes USING (false)")
    assert seen_by_anon(acting_as) == 0
    fails(tables.select_policies(setup), "select-policy-false", "USING (false)")


def test_a_reader_without_the_whole_key_is_sent_no_column(setup: Setup, admin: Connection) -> None:
    admin.execute("REVOKE SELECT ON public.notes FROM anon")
    admin.execute("GRANT SELECT (name, id) ON public.notes TO anon")
    finding = tables.privileges(setup)
    fails(finding, "select-grant-missing", "anon lacks SELECT on part of the key of public.notes")
    admin.execute("GRANT SELECT (part) ON public.notes TO anon")
    is_well(tables.privileges(setup))


def test_a_reader_of_the_key_alone_is_sent_the_key(setup: Setup, admin: Connection) -> None:
    admin.execute("REVOKE SELECT ON public.notes FROM anon")
    admin.execute("GRANT SELECT (id, part) ON public.notes TO anon")
    is_well(tables.privileges(setup))


def test_a_foreign_table_of_which_nobody_may_read_the_key_is_a_fault(setup: Setup, admin: Connection) -> None:
    admin.execute("REVOKE SELECT ON public.notes FROM anon")
    admin.execute("GRANT SELECT (name) ON public.notes TO anon, authenticated")
    with Setup(dsn=setup.dsn) as foreign:
        fails(tables.privileges(foreign), "select-grant-missing", "id, part")
        admin.execute("GRANT SELECT ON public.notes TO authenticated")
        is_well(tables.privileges(foreign))


def test_a_policy_of_a_role_whose_privileges_the_reader_does_not_inherit_is_not_its_own(
    setup: Setup,
    admin: Connection,
    acting_as: Callable[..., Connection],
    group: str,
    anon_inherits: Inheriting,
) -> None:
    admin.execute(f"ALTER POLICY readable ON public.notes TO {group}".encode())
    anon_inherits(False)
    assert seen_by_anon(acting_as) == 0
    fails(tables.select_policies(setup), "select-policy-missing", "anon")
    anon_inherits(True)
    assert seen_by_anon(acting_as) == 1
    is_well(tables.select_policies(setup))
