"""The rows of a watch in the database, on one connection that is made again when it breaks."""

from __future__ import annotations

import asyncio
import random
import time
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import psycopg

from doctor.api_role import claims_of
from doctor.catalog import Connection, UnusableTableError
from doctor.database import CONNECT_SECONDS, RETRY_SECONDS, failure_of, first_line, hang_up, opened, password_refused
from doctor.failures import Cause, Failure, ProbeFailedError
from doctor.outputs import Outputs
from doctor.plan import Chosen, Written, choose, key_of, write
from doctor.removal import REMOVE_SECONDS, RowKeptError, by_hand, removed
from doctor.sample_row import sample_row
from doctor.silence import silence

ANSWER_SECONDS = 5.0
"""The whole of a round has so long; then the server hangs."""
STATEMENT_SECONDS = 4.0
"""The server itself ends a statement, or its wait for a lock, after so long, and says so."""


class DatabaseDownError(Exception):
    """The database cannot be reached, or does not do what it is asked now. ``failure`` says what was seen.

    With ``final`` trying again would not help, unless somebody changes something.
    """

    def __init__(self, failure: Failure, *, final: bool = False) -> None:
        self.failure = failure
        self.final = final
        super().__init__(str(failure))


class Rows:
    """Writes rows one after another, and removes them when they are done with."""

    def __init__(self, outputs: Outputs) -> None:
        self.outputs = outputs
        self._rng = random.SystemRandom()
        self._connection: Connection | None = None
        self._removable: deque[tuple[Written, bool]] = deque()

    async def choose(self) -> tuple[Chosen, list[str]]:
        """The table to use, and notes. Raises DatabaseDownError, and ProbeFailedError when no table will do."""
        async with self._reaching() as connection:
            found = await choose(connection, self.outputs, self._rng)
            await connection.rollback()
            return found

    async def write(self, chosen: Chosen) -> Written:
        """Inserts a row and does not commit it. Raises DatabaseDownError, also when the row is refused."""
        async with self._reaching() as connection:
            try:
                row = await sample_row(connection, chosen.table, self._rng)
                return await write(connection, chosen, row, self.outputs)
            except UnusableTableError as unfit:
                raise DatabaseDownError(_refused(str(unfit))) from None
            except ProbeFailedError as refused:
                raise DatabaseDownError(refused.failure) from None

    async def commit(self) -> None:
        """Commits the row just written. Raises DatabaseDownError, and then the row may be there or not."""
        async with self._reaching() as connection:
            await connection.commit()

    def discard(self, written: Written, *, committed: bool) -> None:
        """The row is done with. With ``committed`` false it is not known whether it was committed."""
        self._removable.append((written, committed))

    @property
    def removable(self) -> int:
        return len(self._removable)

    async def remove(self, chosen: Chosen) -> None:
        """Removes the rows that are done with. Raises DatabaseDownError, and ProbeFailedError when the database
        refuses to: then every further row would be one more left behind."""
        async with self._reaching() as connection:
            for _ in range(len(self._removable)):
                written, committed = self._removable[0]
                try:
                    gone = await removed(connection, chosen.table, written, committed=committed)
                except psycopg.OperationalError:
                    raise
                except (psycopg.Error, RowKeptError) as refused:
                    failure = _left_behind(
                        chosen, first_line(refused), by_hand(chosen.table, written, committed=committed)
                    )
                    raise ProbeFailedError(failure) from None
                if gone:
                    self._removable.popleft()
                else:
                    self._removable.rotate(-1)

    async def remove_all(self, chosen: Chosen) -> tuple[str, ...]:
        """Removes every row that is done with and ends the connection; tries for REMOVE_SECONDS.

        The statements for those that are left are the result, to be run by hand.
        """
        deadline = time.monotonic() + REMOVE_SECONDS
        try:
            while self._removable:
                try:
                    await self.remove(chosen)
                except DatabaseDownError:
                    if time.monotonic() >= deadline:
                        break
                except ProbeFailedError:
                    break
                if self._removable:
                    await asyncio.sleep(RETRY_SECONDS)
            return tuple(by_hand(chosen.table, written, committed=committed) for written, committed in self._removable)
        finally:
            await self.close()

    async def why(self, chosen: Chosen, written: Written) -> str:
        """The likely cause of a committed row's silence. Raises DatabaseDownError."""
        async with self._reaching() as connection:
            claims = claims_of(key_of(self.outputs, chosen.plan.subscriber))
            likely = await silence(connection, chosen.table, written.key, claims)
            await connection.rollback()
            return likely

    async def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.close()

    @asynccontextmanager
    async def _reaching(self) -> AsyncIterator[Connection]:
        """The connection, made if there is none. After whatever fails on it, it is ended, and nothing is committed.

        A server that hangs is hung up on: cancelling the task instead would make psycopg ask it, for ten seconds, to
        cancel the statement.
        """
        timer: asyncio.TimerHandle | None = None
        try:
            if self._connection is None:
                async with asyncio.timeout(ANSWER_SECONDS):
                    self._connection = await opened(self.outputs, CONNECT_SECONDS, STATEMENT_SECONDS)
            timer = asyncio.get_running_loop().call_later(ANSWER_SECONDS, hang_up, self._connection)
            yield self._connection
        except psycopg.Error as failed:
            await self.close()
            hung = timer is not None and timer.when() <= asyncio.get_running_loop().time()
            failure = _unanswered(self.outputs) if hung else failure_of(self.outputs, failed)
            raise DatabaseDownError(failure, final=password_refused(failed)) from None
        except TimeoutError:
            raise DatabaseDownError(_unanswered(self.outputs)) from None
        except BaseException:
            await self.close()
            raise
        finally:
            if timer is not None:
                timer.cancel()


def _unanswered(outputs: Outputs) -> Failure:
    database = outputs.database
    return Failure(
        cause=Cause.DATABASE,
        waited_for=f"an answer of database {database.name} at {database.host}:{database.port}",
        seen=f"none for {ANSWER_SECONDS:.0f} s",
        likely="Postgres hangs, or something holds a lock on the table; look at pg_stat_activity",
    )


def _refused(reason: str) -> Failure:
    return Failure(
        cause=Cause.NO_TABLE,
        waited_for="another row that the table takes",
        seen=reason,
        likely="the table or the rows it refers to were changed; start the watch again",
    )


def _left_behind(chosen: Chosen, reason: str, statement: str) -> Failure:
    return Failure(
        cause=Cause.LEFT_BEHIND,
        waited_for=f"the removal of the watch's row from {chosen.table}",
        seen=reason,
        likely=f"the database refuses the deletion; remove the row by hand: {statement}",
    )
