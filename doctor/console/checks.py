"""The checks of the doctor as they run, one examination at a time."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import closing, suppress

from doctor.checks.finding import Finding
from doctor.checks.setup import Setup
from doctor.console.answers import event
from doctor.console.hops import HOPS
from doctor.console.streams import END, Items, Streams
from doctor.examination import CHECKS, Examination, findings

TITLES = {check.id: check.title for check in CHECKS}


class Examinations:
    """Examines a setup for each stream in turn."""

    def __init__(self, setup: Setup, streams: Streams) -> None:
        self.setup = setup
        self.streams = streams
        self._waiting: deque[Items] = deque()
        self._running: _Running | None = None

    async def stream(self) -> AsyncIterator[str]:
        """The events of an examination, which starts when those before it have ended, and ends when nobody reads it."""
        with self.streams.opened() as items:
            self._waiting.append(items)
            self._advance()
            try:
                yield ": the examination begins\n\n"
                while (item := await items.get()) is not END:
                    match item:
                        case Finding():
                            told = item.model_dump(mode="json")
                            yield event("finding", told | {"title": TITLES[item.check], "hop": HOPS[item.check]})
                        case Examination():
                            told = {"root": item.root, "exit_status": item.exit_status, "seconds": item.seconds}
                            yield event("done", told)
                            return
                        case Exception():
                            words = f"the examination broke off: {type(item).__name__}"
                            yield event("error", {"error": words, "cure": "the console's terminal has the reason"})
                            raise item
            finally:
                with suppress(ValueError):
                    self._waiting.remove(items)
                if self._running is not None and self._running.items is items:
                    self._running.stop()

    def _advance(self) -> None:
        if self._running is None and self._waiting:
            self._running = _Running(self.setup, self._waiting.popleft(), self._ended)
            self._running.start()

    def _ended(self) -> None:
        self._running = None
        self._advance()


class _Running(threading.Thread):
    """An examination in a thread of its own, which the end of the process does not wait for: a check may take 8 s."""

    def __init__(self, setup: Setup, items: Items, ended: Callable[[], None]) -> None:
        super().__init__(name="examination", daemon=True)
        self.setup = setup
        self.items = items
        self._ended = ended
        self._loop = asyncio.get_running_loop()
        self._unwanted = threading.Event()

    def stop(self) -> None:
        """Ends it after the check under way."""
        self._unwanted.set()

    def run(self) -> None:
        try:
            with closing(findings(self.setup)) as found:
                while not self._unwanted.is_set():
                    try:
                        self._tell(self.items.put_nowait, next(found))
                    except StopIteration as last:
                        self._tell(self.items.put_nowait, last.value)
                        break
        except Exception as broken:  # noqa: BLE001 - raised again where the stream is
            self._tell(self.items.put_nowait, broken)
        finally:
            self._tell(self._ended)

    def _tell(self, call: Callable[..., object], *arguments: object) -> None:
        with suppress(RuntimeError):  # the console has ended, and its loop with it
            self._loop.call_soon_threadsafe(call, *arguments)
