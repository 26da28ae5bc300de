"""Streams of server-sent events that end when the console does, not when their clients go."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

Items = asyncio.Queue[Any]
END = object()
"""Comes last in the items of a stream."""


class Streams:
    """The open streams. Each reads its items from a queue of its own, until END."""

    def __init__(self) -> None:
        self._open: set[Items] = set()
        self._ended = False

    @contextmanager
    def opened(self) -> Iterator[Items]:
        """The items of a stream while it is open."""
        items: Items = asyncio.Queue()
        if self._ended:
            items.put_nowait(END)
        self._open.add(items)
        try:
            yield items
        finally:
            self._open.discard(items)

    def end(self) -> None:
        """Ends every stream, and those that are opened later at once: uvicorn would wait for their clients to go."""
        self._ended = True
        for items in self._open:
            items.put_nowait(END)
