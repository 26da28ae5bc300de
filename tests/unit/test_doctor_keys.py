"""What the doctor says of a key's end."""

from __future__ import annotations

import time
from typing import Any

import jwt
import pytest
from pydantic import SecretStr

from doctor.checks import keys
from doctor.checks.finding import Finding, Status
from doctor.checks.setup import Setup
from doctor.examination import examine

SECRET = "the-client-key-secret-of-this-test-alone"
DAY = 86_400


def expiry(exp: Any) -> Finding:
    key = jwt.encode({"role": "anon", "exp": exp}, SECRET, algorithm="HS256")
    examination = examine(Setup(anon_key=SecretStr(key)), checks=[keys.claims, keys.expiry])
    assert examination.unlooked == ()
    return examination.finding("keys.expiry")


@pytest.mark.parametrize(
    ("days", "status", "cause"),
    [
        (400, Status.OK, None),
        (10, Status.WARNING, "key-expires-soon"),
        (-1, Status.FAILED, "key-expired"),
        (-1_000_000, Status.FAILED, "key-expired"),
    ],
)
def test_a_key_has_a_day_on_which_it_ends(days: int, status: Status, cause: str | None) -> None:
    finding = expiry(int(time.time()) + days * DAY + 60)
    assert (finding.status, finding.cause) == (status, cause), finding


@pytest.mark.parametrize("exp", [int(time.time() + 400 * DAY) * 1000, 10**30, 1e30])
def test_a_key_whose_end_is_in_milliseconds_works_and_never_ends(exp: float) -> None:
    """Realtime compares the number with its clock and takes it (v2.32.12, jwt_verification.ex)."""
    finding = expiry(exp)
    assert (finding.status, finding.cause) == (Status.WARNING, "key-malformed"), finding
    assert "never expires" in finding.seen


@pytest.mark.parametrize("exp", ["2035-12-30", "1999999999", [1], None, True, float("nan"), float("inf")])
def test_an_end_that_is_no_number_makes_the_key_no_key(exp: Any) -> None:
    finding = expiry(exp)
    assert (finding.status, finding.cause) == (Status.FAILED, "key-malformed"), finding
    assert "exp" in finding.seen
