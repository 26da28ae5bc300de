"""What a stack tells the world, and what it says when its config cannot be a stack."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from plan.program import PlanError, Secret
from settings import NAMESPACE
from tests.program.recorder import (
    ANON_KEY,
    SECRETS,
    SERVICE_ROLE_KEY,
    Program,
    overridden,
    run_program,
    stack_file,
    with_secrets,
)

WELLS = {
    "dev": {"read": ["anon", "authenticated"], "write": ["anon", "authenticated"]},
    "staging": {"read": ["anon", "authenticated"], "write": ["authenticated"]},
    "prod": {"read": ["anon", "authenticated"], "write": ["authenticated"]},
}


def test_the_outputs_are_what_clients_the_doctor_and_other_programs_need(stack: str, program: Program) -> None:
    gateway = "127.0.0.1:8010" if stack == "staging" else "127.0.0.1:8000"
    events = ["insert", "update"] if stack == "prod" else ["insert", "update", "delete"]
    assert program.outputs == {
        "url": f"http://{gateway}",
        "realtime_url": f"ws://{gateway}/realtime/v1",
        "rest_url": f"http://{gateway}/realtime/v1/api",
        "tenant": "supabase-realtime",
        "anon_key": ANON_KEY,
        "anon_key_expires": "2035-12-30T00:00:00+00:00",
        "service_role_key": Secret(SERVICE_ROLE_KEY),
        "database": {
            "host": "127.0.0.1",
            "port": 54332 if stack == "staging" else 54322,
            "name": "postgres",
            "user": "supabase_admin",
        },
        "database_password": Secret(SECRETS["postgres.password"]),
        "tables": [{"table": "public.wells", **WELLS[stack], "events": events}],
    }


def test_a_gateway_bound_to_one_address_is_named_by_it() -> None:
    assert overridden(gateway__host="192.0.2.7").outputs["url"] == "http://192.0.2.7:8000"


def test_another_tenant_is_the_name_in_every_place() -> None:
    program = overridden(realtime__tenant="acme")
    assert program.outputs["tenant"] == "acme"
    assert program["RealtimeTenant tenant"].inputs["external_id"] == "acme"
    assert program["NetworkAlias alias"].inputs["alias"] == "acme"
    assert program["Container realtime"].inputs["networksAdvanced"][0]["aliases"] == ["acme"]
    assert "http://acme:4000/" in program["Container gateway"].inputs["uploads"][0]["content"].value


def test_two_runs_declare_the_same(stack: str, program: Program) -> None:
    again = run_program(stack, with_secrets(stack_file(stack)))
    # The order in which resources that do not depend on one another arrive is nobody's business.
    assert {resource.urn: resource for resource in again.resources} == {
        resource.urn: resource for resource in program.resources
    }
    assert again.outputs == program.outputs


@pytest.mark.parametrize("example", ["staging", "prod"])
def test_an_example_stack_without_its_secrets_says_how_to_get_them(example: str) -> None:
    with pytest.raises(PlanError) as refused:
        run_program(example, stack_file(example))
    first, *faults = str(refused.value).splitlines()
    assert first == f"{len(SECRETS)} fault(s) in the stack's config:"
    for key in SECRETS:
        (fault,) = (line for line in faults if f"{NAMESPACE}:{key}: " in line)
        assert "`make secrets` generates it" in fault


def test_a_development_secret_is_refused_on_another_stack() -> None:
    config = with_secrets(stack_file("prod")) | {
        f"{NAMESPACE}:jwt.secret": "development-jwt-secret-of-32-bytes-or-more"
    }
    with pytest.raises(PlanError, match=r"jwt\.secret: is a development secret that anyone can read"):
        run_program("prod", config)


@pytest.mark.parametrize(("days_left", "warned"), [(59, True), (61, False)])
def test_the_last_sixty_days_of_the_keys_are_announced(
    days_left: int, warned: bool, caplog: pytest.LogCaptureFixture
) -> None:
    issued_at = int((datetime.now(UTC) - timedelta(days=100 - days_left, minutes=-1)).timestamp())
    overridden(jwt__issued_at=str(issued_at), jwt__lifetime_days="100")
    warnings = [record.message for record in caplog.records if record.levelname == "WARNING"]
    expected = f"in {days_left} days; raise jwt.issued_at or jwt.lifetime_days, run `make up`"
    assert [expected in warning for warning in warnings] == [True] * warned
