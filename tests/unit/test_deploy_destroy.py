"""What `make destroy` asks before it destroys: whether the state keeps what the settings protect."""

from typing import Any

import pytest

from deploy.commands import is_protected
from deploy.errors import DeployError
from deploy.recovery import retention_fault

PROTECT = "supabase-realtime:postgres.protect"


def state(**retained: bool) -> dict[str, Any]:
    """A state with these volumes, as the last update wrote it."""
    volumes = [
        {"type": "docker:index/volume:Volume", "inputs": {"name": name}, **({"retainOnDelete": True} if kept else {})}
        for name, kept in retained.items()
    ]
    return {"version": 3, "deployment": {"resources": volumes}}


def test_a_protection_that_the_state_does_not_know_yet_is_refused_with_the_cure() -> None:
    """`pulumi destroy` does not run the program, and would remove the volume."""
    assert retention_fault("prod", state(data=False, keys=True), protected=True) == (
        "postgres.protect: is true, and the state does not know it yet: volume data would not be kept; "
        "`make up STACK=prod` first, or set postgres.protect to false"
    )


def test_a_protection_that_the_state_knows_and_none_at_all_are_no_fault() -> None:
    assert retention_fault("prod", state(data=True, keys=True), protected=True) is None
    assert retention_fault("prod", state(data=False, keys=False), protected=False) is None
    assert retention_fault("prod", {"version": 3}, protected=True) is None


@pytest.mark.parametrize(
    ("config", "protected"),
    [
        ({}, False),
        ({PROTECT: "false"}, False),
        ({PROTECT: "true"}, True),
        ({PROTECT: "yes"}, True),
        ({PROTECT: "1"}, True),
    ],
)
def test_the_protection_is_read_as_the_settings_read_it(config: dict[str, str], protected: bool) -> None:
    assert is_protected(config) is protected


def test_a_protection_that_is_neither_is_refused_and_not_taken_for_none() -> None:
    with pytest.raises(DeployError, match=r"postgres.protect: is neither true nor false"):
        is_protected({PROTECT: "ture"})
