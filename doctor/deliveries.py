"""Which insert reached which subscriber, and how soon: counted exactly, in a fixed amount of memory."""

from __future__ import annotations

import math
from array import array
from collections.abc import Hashable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from hdrh.histogram import HdrHistogram

from doctor.catalog import Column

LONGEST_MICROSECONDS = 3_600_000_000
"""A later event counts as this late; the histogram cannot hold more."""
SIGNIFICANT_DIGITS = 3


def histogram() -> HdrHistogram:
    """A histogram of latencies in microseconds, exact to three digits, 200 KiB however many it holds."""
    return HdrHistogram(1, LONGEST_MICROSECONDS, SIGNIFICANT_DIGITS)


class Deliveries:
    """The inserts of a run and their events at each subscriber.

    A bit for each pair of insert and subscriber says whether the event came: clients × inserts / 8 bytes.
    Times are of time.perf_counter; an insert's latencies count from just before its COMMIT.
    """

    def __init__(self, *, clients: int, inserts: int) -> None:
        self.latencies = histogram()
        self.interval = histogram()
        self.duplicated = 0
        self.strange = 0
        self.last_arrival = -math.inf
        self._arrived = [bytearray((inserts + 7) // 8) for _ in range(clients)]
        self._by_client = array("L", bytes(array("L").itemsize * clients))
        self._by_insert = array("L")
        self._committing = array("d")
        self._committed = bytearray((inserts + 7) // 8)
        self._by_key: dict[Hashable, int] = {}
        self._most = inserts

    def committing(self, key: Hashable, when: float) -> int:
        """An insert is about to be committed; its number. Call it before the COMMIT, which its event may outrun."""
        number = len(self._committing)
        assert number < self._most, f"more inserts than the {self._most} that there is memory for"
        self._by_key[key] = number
        self._committing.append(when)
        self._by_insert.append(0)
        return number

    def committed(self, number: int) -> None:
        """The insert is in the database: its event is owed to every subscriber."""
        self._committed[number >> 3] |= 1 << (number & 7)

    def arrived(self, client: int, key: Hashable, when: float) -> None:
        """An event came. One of a row that this run did not write is ``strange``: somebody else's insert."""
        number = self._by_key.get(key)
        if number is None:
            self.strange += 1
            return
        bits, place, bit = self._arrived[client], number >> 3, 1 << (number & 7)
        if bits[place] & bit:
            self.duplicated += 1
            return
        bits[place] |= bit
        self._committed[place] |= bit  # the event proves it, also where the answer to the COMMIT never came
        self._by_client[client] += 1
        self._by_insert[number] += 1
        self.last_arrival = when
        latency = min(LONGEST_MICROSECONDS, max(1, round((when - self._committing[number]) * 1_000_000)))
        self.latencies.record_value(latency)
        self.interval.record_value(latency)

    @property
    def inserted(self) -> int:
        """Inserts that were committed."""
        return int.from_bytes(self._committed, "little").bit_count()

    @property
    def delivered(self) -> int:
        """Events that came, each once, in all."""
        return sum(self._by_client)

    def by_client(self, clients: Sequence[int]) -> tuple[int, ...]:
        """Events that came to each of the clients."""
        return tuple(self._by_client[client] for client in clients)

    def nowhere(self) -> int:
        """Committed inserts whose event came to nobody."""
        return sum(1 for number in self._numbers() if not self._by_insert[number])

    def to_some(self, clients: int) -> int:
        """Committed inserts whose event came to somebody, but not to all of so many."""
        return sum(1 for number in self._numbers() if 0 < self._by_insert[number] < clients)

    def lost(self, clients: Sequence[int]) -> int:
        """Pairs of a committed insert and one of the clients whose event did not come."""
        owed = int.from_bytes(self._committed, "little")
        return sum((owed & ~int.from_bytes(self._arrived[client], "little")).bit_count() for client in clients)

    def _numbers(self) -> Iterator[int]:
        """The numbers of the committed inserts."""
        return (number for number in range(len(self._committing)) if self._committed[number >> 3] & 1 << (number & 7))


def row_key(columns: Sequence[Column], record: Mapping[str, Any]) -> Hashable:
    """The primary key in an event's record, or in its rendering by Postgres, as something to look up.

    Raises KeyError when a column is missing.
    """
    return tuple([_comparable(column, record[column.name]) for column in columns])


def _comparable(column: Column, value: Any) -> Hashable:
    if isinstance(value, str):
        if column.cast == "timestamp with time zone":  # shown in the time zone of the session that reads it
            return datetime.fromisoformat(value).astimezone(UTC)
        if column.cast == "bytea":  # Realtime v2.32.12 shows the hexadecimal of its hexadecimal
            once = bytes.fromhex(value.removeprefix("\\x"))
            return once.removeprefix(b"\\x") if once.startswith(b"\\x") else once.hex().encode()
    if isinstance(value, list | dict):
        return repr(value)
    return value if isinstance(value, Hashable) else repr(value)
