"""The console's HTTP API and its page."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import psycopg
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp

from doctor.catalog import Table, UnusableTableError
from doctor.checks.setup import Setup
from doctor.console import rows
from doctor.console.access import Access, Guard
from doctor.console.answers import RefusedError, answer, iso, json_text, refusal_of, unusable
from doctor.console.checks import Examinations
from doctor.console.flow import Flow
from doctor.console.identity import Identities, role_of
from doctor.console.made_rows import MadeRows
from doctor.console.streams import Streams
from doctor.outputs import PublishedTable
from settings import SUBSCRIBING_ROLES

STATIC = Path(__file__).parent / "static"
UNBUILT = "the page is not built: `make web` builds it"
LONGEST_BODY = 1 << 20
"""Bytes of the values of a row."""


class Console:
    """What the console of a stack answers. ``name`` is the stack's, ``lifetime`` that of a token, in seconds."""

    def __init__(self, setup: Setup, *, name: str, lifetime: int, static: Path = STATIC) -> None:
        assert setup.outputs is not None, "the console is one of a stack"
        self.setup = setup
        self.outputs = setup.outputs
        self.name = name
        self.static = static
        self._files = StaticFiles(directory=static, check_dir=False)
        self.streams = Streams()
        self.identities = Identities(setup, lifetime)
        self.made = MadeRows(self.outputs)
        self.examinations = Examinations(setup, self.streams)
        self.flowing = Flow(self.outputs, self.streams)

    def app(self, access: Access) -> ASGIApp:
        """The application, with its guard around it."""
        return Guard(
            Starlette(
                routes=[
                    Route("/", self.page),
                    Route("/api/stack", self.stack),
                    Route("/api/token", self.token),
                    Route("/api/rows", self.read, methods=["GET"]),
                    Route("/api/rows", self.insert, methods=["POST"]),
                    Route("/api/rows", self.change, methods=["PATCH"]),
                    Route("/api/rows", self.delete, methods=["DELETE"]),
                    Route("/api/checks", self.checks),
                    Route("/api/flow", self.flow),
                    Route("/{path:path}", self.file),
                ],
                exception_handlers={
                    RefusedError: self._refused,
                    psycopg.Error: self._refused,
                    UnusableTableError: self._refused,
                    HTTPException: self._refused,
                    Exception: self._broken,
                },
                max_body_size=LONGEST_BODY,
            ),
            access,
            self.outputs.url,
        )

    async def page(self, _: Request) -> Response:
        """GET /: the built page."""
        index = self.static / "index.html"
        return FileResponse(index) if index.is_file() else PlainTextResponse(f"503: {UNBUILT}\n", 503)

    async def file(self, request: Request) -> Response:
        """GET of anything else: a file of the built page."""
        if request.url.path.startswith("/api/") or not self.static.is_dir():
            raise HTTPException(404)
        return await self._files.get_response(self._files.get_path(request.scope), request.scope)

    async def stack(self, _: Request) -> Response:
        """GET /api/stack: what the page has to know."""
        tables = await rows.describe(self.outputs, self.outputs.tables)
        return answer(
            {
                "stack": self.name,
                "url": self.outputs.url,
                "tenant": self.outputs.tenant,
                "anon_key": self.outputs.anon_key,
                "anon_key_expires": iso(self.outputs.anon_key_expires),
                "roles": list(SUBSCRIBING_ROLES),
                "tables": [_described(table, found) for table, found in tables],
            }
        )

    async def token(self, request: Request) -> Response:
        """GET /api/token?role=…: a token for the page's own connection to Realtime."""
        token = self.identities.token(role_of(request.query_params.get("role")))
        return answer({"token": token.text, "role": token.role, "expires": iso(token.expires)})

    async def read(self, request: Request) -> Response:
        """GET /api/rows?table=…&role=…&after=…&limit=…: a page of rows as the role sees them."""
        asked = request.query_params
        page = await rows.read_page(
            self.outputs,
            rows.declared(self.outputs, asked.get("table")),
            self.identities.claims(role_of(asked.get("role"))),
            after=asked.get("after") or None,
            limit=_limit(asked.get("limit")),
        )
        return json_text(page.json())

    async def insert(self, request: Request) -> Response:
        """POST /api/rows: a test row."""
        body = await _body(request, {"table", "role", "values"})
        row, key = await self.made.insert(*self._who(body), _object(body, "values"))
        return json_text(f'{{"row":{row or "null"},"key":{key}}}', 201)

    async def change(self, request: Request) -> Response:
        """PATCH /api/rows: changes a test row."""
        body = await _body(request, {"table", "role", "key", "values"})
        row = await self.made.change(*self._who(body), _object(body, "key") or {}, _object(body, "values"))
        return json_text(f'{{"row":{row or "null"}}}')

    async def delete(self, request: Request) -> Response:
        """DELETE /api/rows: deletes a test row."""
        body = await _body(request, {"table", "role", "key"})
        await self.made.delete(*self._who(body), _object(body, "key") or {})
        return answer({"deleted": 1})

    async def checks(self, _: Request) -> Response:
        """GET /api/checks: an examination as it runs."""
        return _stream(self.examinations.stream())

    async def flow(self, _: Request) -> Response:
        """GET /api/flow: whether changes flow."""
        return _stream(self.flowing.stream())

    def _who(self, body: Mapping[str, Any]) -> tuple[PublishedTable, dict[str, Any]]:
        return rows.declared(self.outputs, body.get("table")), self.identities.claims(role_of(body.get("role")))

    async def _refused(self, request: Request, error: Exception) -> Response:
        match error:
            case RefusedError():
                refused = error
            case psycopg.Error():
                refused = refusal_of(self.outputs, error)
            case UnusableTableError():
                refused = unusable(error)
            case HTTPException():
                if not request.url.path.startswith("/api/"):
                    return PlainTextResponse(f"{error.status_code}: {error.detail}\n", error.status_code)
                refused = RefusedError(error.status_code, error.detail)
            case _:
                raise AssertionError(f"no answer is known for {type(error).__name__}")
        words = [None if text is None else self.setup.redacted(text) for text in (refused.error, refused.cure)]
        return answer({"error": words[0], "cure": words[1]}, refused.status)

    async def _broken(self, _: Request, error: Exception) -> Response:
        """A fault of the console's own, which Starlette then raises, so that the terminal has it."""
        return answer({"error": f"the console broke off: {type(error).__name__}", "cure": "its terminal says why"}, 500)


def _described(table: PublishedTable, found: Table | str) -> dict[str, Any]:
    columns = found.columns if isinstance(found, Table) else ()
    return {
        "schema": table.schema_name,
        "name": table.name,
        "read": list(table.read),
        "write": list(table.write),
        "events": list(table.events),
        "primary_key": list(found.primary_key) if isinstance(found, Table) else [],
        "columns": [{"name": column.name, "type": column.sql_type} for column in columns],
        "unusable": None if isinstance(found, Table) else found,
    }


def _stream(events: AsyncIterator[str]) -> Response:
    return StreamingResponse(events, media_type="text/event-stream")


def _limit(text: str | None) -> int:
    limit = rows.PAGE_ROWS if text is None else int(text) if text.isascii() and text.isdigit() else 0
    if not 1 <= limit <= rows.MOST_ROWS:
        raise RefusedError(400, f"limit: {text} is not a number of rows", f"1 to {rows.MOST_ROWS}")
    return limit


async def _body(request: Request, known: set[str]) -> dict[str, Any]:
    try:
        body = json.loads(await request.body())
    except ValueError:
        raise RefusedError(400, "the body is not JSON") from None
    if not isinstance(body, dict) or (unknown := set(body) - known):
        names = ", ".join(sorted(unknown)) if isinstance(body, dict) else type(body).__name__
        raise RefusedError(400, f"the body has {names}", f"send an object of {', '.join(sorted(known))}")
    return body


def _object(body: Mapping[str, Any], name: str) -> dict[str, Any] | None:
    found = body.get(name)
    if found is not None and not isinstance(found, dict):
        raise RefusedError(400, f"{name}: is not an object", "send {column: value}")
    return found
