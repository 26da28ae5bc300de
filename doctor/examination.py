"""An examination: every check in the order of a change's path, so that the first failure is the root of the others."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from traceback import extract_tb

import httpx
import psycopg
import requests
from docker.errors import DockerException
from pydantic import BaseModel, ConfigDict, computed_field

from doctor.checks import change, containers, database, gateway, keys, postgres, realtime, tables, tenant
from doctor.checks.finding import Check, Finding, Status, not_reached, skipped
from doctor.checks.setup import Setup

DOCTOR = Path(__file__).parent
TIME_LIMIT_SECONDS = 12.0
"""After which no other check is begun. The longest that one waits, for a replication slot, is 8 s."""

CHECKS: tuple[Check, ...] = (
    containers.network,
    postgres.container,
    postgres.reachable,
    postgres.version,
    postgres.connections,
    postgres.superuser,
    postgres.wal_level,
    postgres.slots,
    postgres.senders,
    postgres.wal2json,
    postgres.wal_held,
    database.roles,
    database.schemas,
    tables.publication,
    tables.published,
    tables.events,
    tables.primary_key,
    tables.replica_identity,
    tables.schema_usage,
    tables.privileges,
    tables.row_security,
    tables.select_policies,
    tables.insert_policies,
    realtime.container,
    realtime.alias,
    realtime.health,
    realtime.search_path,
    database.migrations,
    tenant.present,
    tenant.extension,
    tenant.encryption,
    tenant.secret,
    tenant.connection,
    tenant.ssl,
    tenant.publication,
    tenant.limits,
    realtime.management_closed,
    realtime.management_api,
    tenant.visible,
    tenant.health,
    realtime.metrics,
    keys.claims,
    keys.expiry,
    keys.signature,
    keys.websocket,
    gateway.container,
    gateway.reachable,
    gateway.websocket,
    gateway.wrong_key,
    gateway.no_key,
    gateway.cors,
    gateway.rest,
    gateway.management_closed,
    gateway.idle_timeout,
    realtime.log,
)


class Examination(BaseModel):
    """What an examination found. ``unlooked`` are the checks that broke off, for a reason that is in their finding."""

    model_config = ConfigDict(frozen=True)

    setup: str
    started: datetime
    seconds: float
    findings: tuple[Finding, ...]
    unlooked: tuple[str, ...] = ()

    @computed_field  # type: ignore[prop-decorator]
    @property
    def root(self) -> str | None:
        """The cause of the first failure, or where nothing failed of the first warning; None when all is well."""
        worst = self.of(Status.FAILED) or self.of(Status.WARNING)
        return worst[0].cause if worst else None

    @computed_field  # type: ignore[prop-decorator]
    @property
    def exit_status(self) -> int:
        """0 healthy, 1 warnings, 2 failures, 3 could not look."""
        if self.of(Status.FAILED):
            return 2
        if self.unlooked or all(finding.status is Status.SKIPPED for finding in self.findings):
            return 3
        return 1 if self.of(Status.WARNING) else 0

    def of(self, status: Status) -> tuple[Finding, ...]:
        """The findings of a status, in order."""
        return tuple(finding for finding in self.findings if finding.status is status)

    def finding(self, check: str) -> Finding:
        """The finding of a check, by its id."""
        return next(finding for finding in self.findings if finding.check == check)


def examine(setup: Setup, *, checks: Sequence[Check] = CHECKS, writing: bool = False) -> Examination:
    """Runs the checks in order; with ``writing`` the probe too. Reads only without it. Ends within 20 s (the probe
    apart). Closes the setup's connections. No finding holds a secret of the setup."""
    running = findings(setup, checks=checks, writing=writing)
    while True:
        try:
            next(running)
        except StopIteration as ended:
            examination: Examination = ended.value
            return examination


def findings(
    setup: Setup, *, checks: Sequence[Check] = CHECKS, writing: bool = False
) -> Generator[Finding, None, Examination]:
    """The findings of an examination, each as soon as its check has ended; the examination is what it returns.

    Closes the setup's connections at the end, also when it is closed before.
    """
    started = datetime.now(UTC)
    begun = time.monotonic()
    broken: list[str] = []
    found: list[Finding] = []
    try:
        for finding in _findings(setup, (*checks, change.arrives) if writing else checks, broken):
            found.append(finding)
            yield finding
    finally:
        setup.close()
    return Examination(
        setup=f"stack {setup.stack}" if setup.stack else (setup.url or "the database of the DSN"),
        started=started,
        seconds=round(time.monotonic() - begun, 2),
        findings=tuple(found),
        unlooked=tuple(broken),
    )


def _findings(setup: Setup, checks: Sequence[Check], broken: list[str]) -> Iterator[Finding]:
    begun = time.monotonic()
    lost: dict[str, tuple[str, str]] = {}
    for check in checks:
        root = next((lost[before] for before in check.after if before in lost), None)
        if root is not None:
            lost[check.id] = root
            yield not_reached(" ".join(root)).model_copy(update={"check": check.id})
            continue
        if time.monotonic() - begun > TIME_LIMIT_SECONDS and check is not change.arrives:
            broken.append(check.id)
            yield skipped("no time was left").model_copy(update={"check": check.id})
            continue
        asked = time.monotonic()
        try:
            finding = check(setup)
        except psycopg.errors.InsufficientPrivilege as refused:
            finding = skipped(f"the login may not look: {refused.diag.message_primary}")
            finding = finding.model_copy(update={"check": check.id})
        except (psycopg.Error, httpx.HTTPError, DockerException, requests.RequestException, OSError) as error:
            broken.append(check.id)
            lost[check.id] = (check.id, "broke off")
            finding = skipped(f"could not look: {type(error).__name__}: {' '.join(str(error).split())[:200]}")
            finding = finding.model_copy(update={"check": check.id})
        # What nobody foresaw in one check must not take the others' findings with it. Without its message: a parser's
        # error quotes what it read, a piece of a secret that no redaction knows.
        except Exception as error:  # noqa: BLE001 - it is told, with its place, and the exit status is not that of health
            broken.append(check.id)
            lost[check.id] = (check.id, "broke off")
            finding = skipped(f"could not look: {type(error).__name__}{_place(error)}")
            finding = finding.model_copy(update={"check": check.id})
        if finding.status is Status.FAILED:
            lost[check.id] = (check.id, "failed")
        yield _redacted(setup, finding).model_copy(update={"seconds": round(time.monotonic() - asked, 3)})


def _place(error: Exception) -> str:
    """The innermost line of the doctor's own code that an exception went through."""
    frames = [frame for frame in extract_tb(error.__traceback__) if Path(frame.filename).is_relative_to(DOCTOR)]
    return f" at {Path(frames[-1].filename).relative_to(DOCTOR.parent)}:{frames[-1].lineno}" if frames else ""


def _redacted(setup: Setup, finding: Finding) -> Finding:
    texts = {
        name: setup.redacted(text)
        for name in ("seen", "likely", "cure")
        if (text := getattr(finding, name)) is not None
    }
    return finding.model_copy(update=texts)
