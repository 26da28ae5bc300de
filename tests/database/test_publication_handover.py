"""PublicationHandover: an existing publication gives way to the declared one, unless somebody would be cut off."""

from __future__ import annotations

import pytest

from providers.connection import DatabaseError
from providers.publication_handover import PublicationHandoverProvider
from tests.database.conftest import Connection
from tests.database.engine import Engine

DECLARED = {"publication": "supabase_realtime", "tables": ["public.pumps", "public.wells"], "undeclared_extent": []}


@pytest.fixture
def engine() -> Engine:
    return Engine(PublicationHandoverProvider())


@pytest.fixture(autouse=True)
def tables(admin: Connection) -> None:
    for table in ("wells", "pumps", "payroll"):
        admin.execute(f"CREATE TABLE public.{table} (id int PRIMARY KEY)".encode())


def publications(admin: Connection) -> list[str]:
    return [name for (name,) in admin.execute("SELECT pubname FROM pg_publication ORDER BY 1")]


def test_without_a_publication_there_is_nothing_to_hand_over(engine: Engine, admin: Connection) -> None:
    assert engine.up(DECLARED) == "create"
    assert publications(admin) == []


@pytest.mark.parametrize(
    "existing",
    [
        pytest.param("", id="empty, as the image makes it"),
        pytest.param("FOR TABLE public.wells", id="some of the declared tables"),
        pytest.param("FOR TABLE public.wells, public.pumps", id="all of them, left by an earlier stack"),
        pytest.param("FOR TABLE public.wells WHERE (id > 3)", id="with a row filter"),
    ],
)
def test_a_publication_of_declared_tables_gives_way(existing: str, engine: Engine, admin: Connection) -> None:
    admin.execute(f"CREATE PUBLICATION supabase_realtime {existing}".encode())
    assert engine.up(DECLARED) == "create"
    assert publications(admin) == []


@pytest.mark.parametrize(
    ("existing", "undeclared"),
    [
        ("FOR TABLE public.wells, public.payroll", "public.payroll"),
        ("FOR ALL TABLES", "public.payroll"),
        ("FOR TABLES IN SCHEMA public", "public.payroll"),
    ],
)
def test_a_publication_of_anything_else_is_refused_and_left_alone(
    existing: str, undeclared: str, engine: Engine, admin: Connection
) -> None:
    admin.execute(f"CREATE PUBLICATION supabase_realtime {existing}".encode())
    with pytest.raises(DatabaseError) as refused:
        engine.up(DECLARED)
    assert f"supabase_realtime exists and publishes {undeclared}, which `tables` does not declare" in str(refused.value)
    assert "ALTER PUBLICATION supabase_realtime DROP TABLE" in str(refused.value)
    assert publications(admin) == ["supabase_realtime"]


def test_other_publications_are_left_alone(engine: Engine, admin: Connection) -> None:
    admin.execute("CREATE PUBLICATION analytics FOR TABLE public.payroll")
    admin.execute("CREATE PUBLICATION supabase_realtime")
    engine.up(DECLARED)
    assert publications(admin) == ["analytics"]


def test_it_happens_once(engine: Engine, admin: Connection) -> None:
    """What becomes of the publication afterwards is the Publication resource's business."""
    engine.up(DECLARED)
    admin.execute("CREATE PUBLICATION supabase_realtime FOR TABLE public.wells, public.pumps")
    assert engine.up(DECLARED) == "same"
    assert engine.drift(DECLARED) == {}
    assert publications(admin) == ["supabase_realtime"]


def test_another_list_of_tables_hands_nothing_over_again(engine: Engine, admin: Connection) -> None:
    engine.up(DECLARED)
    admin.execute("CREATE PUBLICATION supabase_realtime FOR TABLE public.wells")
    assert engine.up(DECLARED | {"tables": ["public.wells"]}) == "same"
    assert publications(admin) == ["supabase_realtime"]


def test_another_publication_is_handed_over(engine: Engine, admin: Connection) -> None:
    engine.up(DECLARED)
    admin.execute("CREATE PUBLICATION other")
    assert engine.up(DECLARED | {"publication": "other"}) == "replace"
    assert publications(admin) == []


def test_destroying_the_stack_leaves_the_publication_to_its_own_resource(engine: Engine, admin: Connection) -> None:
    engine.up(DECLARED)
    admin.execute("CREATE PUBLICATION supabase_realtime")
    engine.destroy()
    assert publications(admin) == ["supabase_realtime"]
