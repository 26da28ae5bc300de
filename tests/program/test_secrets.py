"""Where the secrets go, and that nobody sees them on the way."""

from __future__ import annotations

import pytest

from plan.program import Secret
from tests.program.recorder import ANON_KEY, SECRETS, SERVICE_ROLE_KEY, Program, label_of, texts
from tokens import bearer_token

MANAGEMENT_TOKEN = bearer_token(SECRETS["realtime.api_jwt_secret"])
METRICS_TOKEN = bearer_token(SECRETS["realtime.metrics_jwt_secret"])

EVERY_SECRET = {
    **SECRETS,
    "service_role key": SERVICE_ROLE_KEY,
    "management token": MANAGEMENT_TOKEN,
    "metrics token": METRICS_TOKEN,
}
DESTINATIONS = {
    "postgres.password": {
        "Container postgres.envs",
        "postgresql postgresql.password",
        "Container realtime.envs",
        "RealtimeTenant tenant.db_password",
        "output database_password",
    },
    "realtime.db_enc_key": {"Container realtime.envs"},
    "realtime.secret_key_base": {"Container realtime.envs"},
    "realtime.api_jwt_secret": {"Container realtime.envs"},
    "realtime.metrics_jwt_secret": {"Container realtime.envs"},
    "jwt.secret": {"RealtimeTenant tenant.jwt_secret"},
    "service_role key": {"Container gateway.uploads.content", "output service_role_key"},
    "management token": set[str](),
    "metrics token": set[str](),
}


def places(program: Program, text: str, *, marked: bool) -> set[str]:
    """Where a text is found among everything the engine was told: inside secret marks, or outside them."""
    found = {
        label_of(resource) + path
        for resource in program.resources
        for path, known in texts(resource.inputs, marked=marked)
        if text in known
    }
    return found | {
        f"output {path.removeprefix('.')}" for path, known in texts(program.outputs, marked=marked) if text in known
    }


@pytest.mark.parametrize("secret", EVERY_SECRET)
def test_a_secret_is_never_outside_a_secret_mark(secret: str, program: Program) -> None:
    assert places(program, EVERY_SECRET[secret], marked=False) == set()


@pytest.mark.parametrize("secret", EVERY_SECRET)
def test_a_secret_reaches_those_who_need_it_and_nobody_else(secret: str, program: Program) -> None:
    assert places(program, EVERY_SECRET[secret], marked=True) == DESTINATIONS[secret]


def test_a_secret_is_in_no_name_label_or_option(program: Program) -> None:
    for resource in program.resources:
        request = program.requests[resource.urn]
        options = type(request)()
        options.CopyFrom(request)
        options.ClearField("object")
        for secret in EVERY_SECRET.values():
            assert secret not in str(options), resource.name


def test_the_anon_key_is_public(program: Program) -> None:
    assert program.outputs["anon_key"] == ANON_KEY


def test_what_a_provider_computes_from_a_secret_stays_secret(program: Program) -> None:
    assert set(program.options("RealtimeTenant tenant").additionalSecretOutputs) == {"jwt_secret", "db_password"}
    assert "password" in program.options("postgresql postgresql").additionalSecretOutputs


@pytest.mark.parametrize("output", ["service_role_key", "database_password"])
def test_a_secret_output_is_shown_only_on_demand(output: str, program: Program) -> None:
    assert isinstance(program.outputs[output], Secret)
