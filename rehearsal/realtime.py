"""What a subscriber receives of a change, by the rules of Realtime itself.

They are those of the function realtime.apply_rls (supabase/realtime, migrations 20240618124746 for v2.32.12 and
20260709120000 for v2.129.8), which differ from plain row level security: an event may come without its columns, and
the deletion of a row is told to everybody.
"""

from __future__ import annotations

from dataclasses import dataclass

from rehearsal.catalog import Table
from rehearsal.trials import Outcome
from settings import Event

NO_PRIMARY_KEY = "Error 400: Bad Request, no primary key"
UNAUTHORIZED = "Error 401: Unauthorized"
FAILS = "Realtime fails, and loses the changes that it read together with this one, for"
"""An error in a policy ends the query that reads the replication slot, when the slot has moved on already (seen with
v2.32.12: pg_logical_slot_get_changes confirms what it read before apply_rls runs)."""


@dataclass(frozen=True, kw_only=True)
class Delivery:
    """Whether an event comes, and what is in it."""

    received: bool
    record: tuple[str, ...] = ()
    """Columns of the new record; a DELETE has none."""
    old_record: tuple[str, ...] = ()
    error: str | None = None
    """What the event says instead of columns."""
    reason: str = ""
    """Why it does not come."""


def delivery(table: Table, event: Event, role: str, visible: Outcome | None) -> Delivery:
    """What a subscriber of this role receives.

    ``visible`` is the outcome of Realtime's own question after the change (``trials.seen_by_realtime``), which is not
    asked about a table without primary key, nor about a deleted row.
    """
    if reason := _silence(table, event) or _blindness(table, event, role, visible):
        return Delivery(received=False, reason=reason)
    readable = table.privileges[role].select
    if event is Event.DELETE:
        told = set(table.primary_key) if table.row_security else set(table.identity_columns)
        old = tuple(name for name in table.identity_columns if name in told and name in readable)
        return Delivery(received=True, old_record=old)
    if error := _error(table, role):
        return Delivery(received=True, error=error)
    old = tuple(name for name in table.identity_columns if name in readable) if event is Event.UPDATE else ()
    return Delivery(received=True, record=readable, old_record=old)


def _silence(table: Table, event: Event) -> str:
    """Why nobody receives such an event of the table."""
    if not table.published:
        return "the table is not published"
    if event not in table.published:
        return f"the publication leaves out {event.value}"
    if event is not Event.INSERT and not table.identity_columns:
        return f"Postgres refuses the {event.value}: a published table needs a replica identity"
    return ""


def _error(table: Table, role: str) -> str | None:
    """What comes instead of the row's columns, to every subscriber of the role, whatever the policies say."""
    if not table.primary_key:
        return NO_PRIMARY_KEY
    return None if set(table.primary_key) <= set(table.privileges[role].select) else UNAUTHORIZED


def _blindness(table: Table, event: Event, role: str, visible: Outcome | None) -> str:
    """Why this subscriber does not receive the event."""
    if event is Event.DELETE or not table.row_security or _error(table, role):
        return ""
    assert visible is not None
    if visible.code is not None:
        return f"{FAILS} every subscriber of the stack: {visible.message}"
    return "" if visible.touched else "no SELECT policy shows the row to the subscriber"
