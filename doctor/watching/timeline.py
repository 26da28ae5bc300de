"""What happened when, in constant memory: for the plot at the end of a watch of any length."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from doctor.watching.latencies import Latencies
from doctor.watching.records import Outcome, Part

BUCKETS = 240
FIRST_WIDTH_SECONDS = 1.0
DIGITS = 2
SPANS = 200


@dataclass
class Bucket:
    """The rounds that began in one stretch of time."""

    latencies: Latencies = field(default_factory=lambda: Latencies(DIGITS))
    outcomes: dict[Outcome, int] = field(default_factory=dict)
    duplicates: int = 0

    def add(self, other: Bucket) -> None:
        self.latencies.add(other.latencies)
        for outcome, count in other.outcomes.items():
            self.outcomes[outcome] = self.outcomes.get(outcome, 0) + count
        self.duplicates += other.duplicates


class Timeline:
    """At most BUCKETS buckets of equal width, seconds since the start. Once time is past the last of them, each two
    become one, twice as wide."""

    def __init__(self) -> None:
        self.width = FIRST_WIDTH_SECONDS
        self._buckets: dict[int, Bucket] = {}

    def at(self, seconds: float) -> Bucket:
        """The bucket of a moment, made when there is none. Valid until the next call."""
        while (index := int(max(seconds, 0.0) // self.width)) >= BUCKETS:
            self._halve()
        return self._buckets.setdefault(index, Bucket())

    def _halve(self) -> None:
        self.width *= 2
        merged: dict[int, Bucket] = {}
        for index, bucket in self._buckets.items():
            if index // 2 in merged:
                merged[index // 2].add(bucket)
            else:
                merged[index // 2] = bucket
        self._buckets = merged

    def __iter__(self) -> Iterator[tuple[float, Bucket]]:
        """Each bucket with the moment of its middle, in order."""
        for index in sorted(self._buckets):
            yield (index + 0.5) * self.width, self._buckets[index]

    def __len__(self) -> int:
        return len(self._buckets)


@dataclass(frozen=True)
class Span:
    """From when to when a part was down, seconds since the start."""

    began: float
    ended: float
    part: Part | None


class Spans:
    """At most SPANS spans in order of time: one more makes one of the two that lie nearest to each other."""

    def __init__(self) -> None:
        self._spans: list[Span] = []

    def add(self, span: Span) -> None:
        self._spans.append(span)
        if len(self._spans) <= SPANS:
            return
        place = min(
            range(len(self._spans) - 1), key=lambda number: self._spans[number + 1].began - self._spans[number].ended
        )
        one, other = self._spans[place : place + 2]
        longer = max(one, other, key=lambda span: span.ended - span.began)
        self._spans[place : place + 2] = [Span(one.began, max(one.ended, other.ended), longer.part)]

    def __iter__(self) -> Iterator[Span]:
        return iter(self._spans)

    def __len__(self) -> int:
        return len(self._spans)
