"""A transaction on somebody's database that is rolled back, whatever is run in it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import psycopg
from psycopg.rows import DictRow

from providers.connection import Cursor

UNCOMMITTABLE = """
    CREATE TEMPORARY TABLE rehearsal_is_rolled_back (id int PRIMARY KEY) ON COMMIT DELETE ROWS;
    CREATE TEMPORARY TABLE rehearsal_has_no_commit (id int REFERENCES rehearsal_is_rolled_back)
"""


@contextlib.contextmanager
def undone(connection: psycopg.Connection[DictRow]) -> Iterator[Cursor]:
    """A cursor in a transaction that can only be rolled back, and after which the session writes nothing more."""
    # A statement that ends the transaction could be followed by others, each in a transaction of its own.
    connection.execute("SET default_transaction_read_only = on")
    connection.read_only = False
    with connection.transaction(force_rollback=True), connection.cursor() as cursor:
        forbid_commit(cursor)
        yield cursor


def forbid_commit(cursor: Cursor) -> None:
    """Let COMMIT and PREPARE TRANSACTION fail, and undo the transaction, as long as its temporary tables are there.

    Postgres refuses to empty a table at COMMIT to which another one refers that it does not empty
    (heap_truncate_check_FKs in src/backend/catalog/heap.c).
    """
    cursor.execute(UNCOMMITTABLE)


def number(cursor: Cursor) -> str | None:
    """Which transaction it is; None of one that has written nothing."""
    row = cursor.execute("SELECT CAST(pg_current_xact_id_if_assigned() AS text) AS number").fetchone()
    assert row is not None
    return row["number"] and str(row["number"])
