"""Latencies in constant memory."""

from __future__ import annotations

from collections.abc import Sequence

from hdrh.histogram import HdrHistogram

MICROSECONDS = 1_000
"""In a millisecond, the unit of everything outside of the histogram."""
HIGHEST_MICROSECONDS = 600_000_000
"""What takes longer is recorded as this long."""


class Latencies:
    """A histogram of milliseconds, exact to so many digits however many are recorded (HdrHistogram)."""

    def __init__(self, digits: int) -> None:
        self._histogram = HdrHistogram(1, HIGHEST_MICROSECONDS, digits, word_size=4)

    def record(self, milliseconds: float) -> None:
        self._histogram.record_value(min(max(round(milliseconds * MICROSECONDS), 1), HIGHEST_MICROSECONDS))

    def add(self, other: Latencies) -> None:
        """Takes over everything that another of as many digits has recorded."""
        self._histogram.add(other._histogram)

    @property
    def count(self) -> int:
        return int(self._histogram.total_count)

    @property
    def min(self) -> float:
        return float(self._histogram.min_value) / MICROSECONDS

    @property
    def max(self) -> float:
        return float(self._histogram.max_value) / MICROSECONDS

    def percentiles(self, percents: Sequence[float]) -> list[float]:
        """The percentiles, in the order given, which must be ascending."""
        found = self._histogram.get_percentile_to_value_dict(list(percents))
        return [min(found[percent] / MICROSECONDS, self.max) for percent in percents]
