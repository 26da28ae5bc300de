"""Keys signed with a private key: what the parts of the stack are given of it."""

from __future__ import annotations

import shutil
from pathlib import Path

import jwt
import pytest
import yaml

from deploy.generated import generate_private_key
from plan.program import PROJECT, PlanError, Secret, plain, stack_config
from settings import NAMESPACE, PRIVATE_KEY, load
from tests.program.recorder import SECRETS, Program, overridden, texts

PEM = generate_private_key("ES256")


@pytest.fixture(scope="module")
def signed() -> Program:
    return overridden(jwt__algorithm="ES256", jwt__private_key=PEM)


def test_the_tenant_gets_the_public_key_by_which_the_anon_key_is_verified(signed: Program) -> None:
    public = jwt.PyJWKSet.from_dict(signed["RealtimeTenant tenant"].inputs["jwt_jwks"])
    key = signed.outputs["anon_key"]
    named = public[jwt.get_unverified_header(key)["kid"]]
    assert jwt.decode(key, named, algorithms=["ES256"])["role"] == "anon"


def test_the_tenant_has_no_secret_that_anybody_signs_with(signed: Program) -> None:
    secret = signed["RealtimeTenant tenant"].inputs["jwt_secret"]
    assert isinstance(secret, Secret)
    assert secret.value not in SECRETS.values()


def test_the_gateway_compares_the_keys_that_are_given_out(signed: Program) -> None:
    (upload,) = signed["Container gateway"].inputs["uploads"]
    consumers = yaml.safe_load(plain(upload)["content"])["consumers"]
    assert {c["username"]: c["keyauth_credentials"][0]["key"] for c in consumers} == {
        "anon": signed.outputs["anon_key"],
        "service_role": signed.outputs["service_role_key"].value,
    }


def test_the_private_key_leaves_the_program_nowhere(signed: Program) -> None:
    inner = PEM.splitlines()[1]
    everything = [*(resource.inputs for resource in signed.resources), signed.outputs]
    for marked in (True, False):
        assert not [path for told in everything for path, text in texts(told, marked=marked) if inner in text]


def test_the_keys_are_the_same_on_every_run(signed: Program) -> None:
    again = overridden(jwt__algorithm="ES256", jwt__private_key=PEM)
    assert again["Container gateway"].inputs == signed["Container gateway"].inputs


def test_with_a_shared_secret_the_tenant_has_no_public_keys(program: Program) -> None:
    assert program["RealtimeTenant tenant"].inputs["jwt_jwks"] == {}


def test_a_private_key_in_plain_text_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pulumi.yaml cannot say that it is a secret, so the CLI takes it as it comes."""
    monkeypatch.setattr("plan.program.PRIVATE_KEY", "jwt.secret")
    with pytest.raises(PlanError, match=r"jwt\.private_key: is in plain text; write it encrypted"):
        overridden(jwt__algorithm="ES256", jwt__private_key=PEM)


def test_a_plan_decrypts_no_private_key(tmp_path: Path) -> None:
    """As it decrypts no other secret: one of its own stands in."""
    shutil.copy(PROJECT / "Pulumi.yaml", tmp_path)
    shutil.copy(PROJECT / "Pulumi.prod.yaml", tmp_path / "Pulumi.signed.yaml")
    with (tmp_path / "Pulumi.signed.yaml").open("a") as file:
        file.write(f"  {NAMESPACE}:jwt.algorithm: ES256\n  {NAMESPACE}:{PRIVATE_KEY}:\n    secure: v1:a:b\n")
    config = stack_config("signed", tmp_path)
    load(config.values, stack="signed", environ={})
    assert config.values[f"{NAMESPACE}:{PRIVATE_KEY}"].startswith("-----BEGIN PRIVATE KEY-----")
