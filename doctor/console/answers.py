"""What the console's API answers: JSON, server-sent events, and errors with their cure."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import psycopg
from psycopg import errors
from starlette.responses import Response

from doctor.catalog import UnusableTableError
from doctor.database import failure_of, first_line
from doctor.outputs import Outputs

BLOCKED = "something holds a lock, or the server is overloaded; look at pg_stat_activity"


class RefusedError(Exception):
    """What was asked for is not to be had. ``status`` is that of the HTTP answer."""

    def __init__(self, status: int, error: str, cure: str | None = None) -> None:
        self.status = status
        self.error = error
        self.cure = cure
        super().__init__(error)


def refusal_of(outputs: Outputs, failed: psycopg.Error) -> RefusedError:
    """What Postgres's error is to whoever asked: 400 a value, 403 the role, 409 the table, 503 the database."""
    words = failed.diag.message_primary or first_line(failed)
    match failed:
        case errors.InsufficientPrivilege():
            return RefusedError(403, words)
        case psycopg.DataError():
            return RefusedError(400, words)
        case errors.QueryCanceled() | errors.LockNotAvailable():
            return RefusedError(503, words, BLOCKED)
        case psycopg.OperationalError() | psycopg.InterfaceError():
            failure = failure_of(outputs, failed)
            return RefusedError(503, f"{failure.waited_for}: {failure.seen}", failure.likely)
    return RefusedError(409, words, failed.diag.message_detail)


def unusable(unfit: UnusableTableError) -> RefusedError:
    """What is the matter with a table, and the cure, which its message ends with."""
    error, _, cure = str(unfit).rpartition("; ")
    return RefusedError(409, error or cure, cure if error else None)


def answer(content: Mapping[str, Any], status: int = 200) -> Response:
    """An answer of the API."""
    return json_text(json.dumps(content, ensure_ascii=False), status)


def json_text(text: str, status: int = 200) -> Response:
    """An answer whose JSON is written already."""
    return Response(text, status, media_type="application/json")


def event(name: str, content: Mapping[str, Any]) -> str:
    """A server-sent event."""
    return f"event: {name}\ndata: {json.dumps(content, ensure_ascii=False)}\n\n"


def iso(moment: datetime) -> str:
    """A moment in UTC with milliseconds, the rest cut off as Realtime does with a commit_timestamp."""
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").removesuffix("+00:00") + "Z"
