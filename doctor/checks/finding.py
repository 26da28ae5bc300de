"""What a check found."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from pydantic import BaseModel, ConfigDict

from doctor.causes import CAUSES
from doctor.checks.setup import Need, Setup


class Status(StrEnum):
    """How a check ended."""

    OK = "ok"
    WARNING = "warning"
    FAILED = "failed"
    NOT_REACHED = "not reached"
    SKIPPED = "skipped"


class Finding(BaseModel):
    """The typed result of a check.

    ``seen`` is the evidence, or the reason of a check that was skipped or not reached. ``cause`` is an id of
    doctor.causes; ``likely``, ``cure`` and ``page`` are its words, filled in. The three are None unless the status
    is warning or failed. ``seconds`` is how long the check took.
    """

    model_config = ConfigDict(frozen=True)

    check: str = ""
    status: Status
    seen: str
    cause: str | None = None
    likely: str | None = None
    cure: str | None = None
    page: str | None = None
    seconds: float = 0.0


@dataclass(frozen=True)
class Check:
    """A check: call it with a Setup. ``after`` are the checks without which its answer would mean nothing."""

    id: str
    title: str
    after: tuple[str, ...]
    needs: tuple[Need, ...]
    look: Callable[[Setup], Finding]

    def __call__(self, setup: Setup) -> Finding:
        lacking = next((reason for need in self.needs if (reason := setup.lacks(need))), None)
        finding = self.look(setup) if lacking is None else skipped(lacking)
        return finding.model_copy(update={"check": self.id})


def check(
    title: str, *, needs: tuple[Need, ...] = (), after: tuple[Check, ...] = ()
) -> Callable[[Callable[[Setup], Finding]], Check]:
    """Makes a function a check, named after its module and itself; skipped where the setup lacks what it needs."""

    def named(look: Callable[[Setup], Finding]) -> Check:
        area = look.__module__.rpartition(".")[2]
        return Check(
            id=f"{area}.{look.__name__}", title=title, after=tuple(c.id for c in after), needs=needs, look=look
        )

    return named


def ok(seen: str) -> Finding:
    """All is well."""
    return Finding(status=Status.OK, seen=seen)


def skipped(reason: str) -> Finding:
    """The check says nothing here, and why."""
    return Finding(status=Status.SKIPPED, seen=reason)


def not_reached(reason: str) -> Finding:
    """A check before this one failed."""
    return Finding(status=Status.NOT_REACHED, seen=reason)


def warning(cause: str, seen: str, **names: object) -> Finding:
    """Something that works and should not stay so. ``names`` fill the cause's placeholders."""
    return _caused(Status.WARNING, cause, seen, names)


def failed(cause: str, seen: str, **names: object) -> Finding:
    """A fault. ``names`` fill the cause's placeholders."""
    return _caused(Status.FAILED, cause, seen, names)


def _caused(status: Status, cause: str, seen: str, names: dict[str, object]) -> Finding:
    known = CAUSES[cause]
    return Finding(
        status=status,
        seen=seen,
        cause=cause,
        likely=known.cause.format(**names),
        cure=known.cure.format(**names),
        page=known.page,
    )
