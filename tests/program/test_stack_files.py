"""The stack files of the project: what each says, and that nobody can read a secret of one that matters."""

from __future__ import annotations

import base64
import hashlib
from typing import Any

import pytest
import yaml
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from plan.program import PROJECT
from settings import NAMESPACE, Settings, load, secret_keys
from tests.program.conftest import STACKS
from tests.program.recorder import stack_file, with_secrets

DEVELOPMENT_PASSPHRASE = "development"


def document(stack: str) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((PROJECT / f"Pulumi.{stack}.yaml").read_text())
    return loaded


def opens(passphrase: str, stack: str) -> bool:
    """Whether a passphrase decrypts the secrets of a stack's file.

    pulumi v3.259.0, sdk/go/common/resource/config/crypt.go and pkg/secrets/passphrase/manager.go.
    """
    _, salt, _, nonce, sealed = document(stack)["encryptionsalt"].split(":")
    key = hashlib.pbkdf2_hmac("sha256", passphrase.encode(), base64.b64decode(salt), 1_000_000)
    try:
        return AESGCM(key).decrypt(base64.b64decode(nonce), base64.b64decode(sealed), None) == b"pulumi"
    except InvalidTag:
        return False


def settings_of(stack: str) -> Settings:
    return load(with_secrets(stack_file(stack)), stack=stack, environ={})


def test_these_are_the_stack_files() -> None:
    assert {path.name for path in PROJECT.glob("Pulumi.*.yaml")} >= {f"Pulumi.{stack}.yaml" for stack in STACKS}


@pytest.mark.parametrize("stack", STACKS)
def test_no_secret_is_in_plain(stack: str) -> None:
    config = document(stack)["config"]
    for key in secret_keys():
        value = config.get(f"{NAMESPACE}:{key}", {})
        assert isinstance(value, dict), f"{key} can be read by everybody"
        assert set(value) <= {"secure"}


def test_everybody_can_start_the_development_stack() -> None:
    assert {f"{NAMESPACE}:{key}" for key in secret_keys()} <= set(document("dev")["config"])
    assert opens(DEVELOPMENT_PASSPHRASE, "dev")


@pytest.mark.parametrize("stack", ["staging", "prod"])
def test_not_everybody_can_read_the_secrets_of_another(stack: str) -> None:
    """There are none before `make secrets`, and a file that has them has a passphrase of its own."""
    if "encryptionsalt" in document(stack):
        assert not opens(DEVELOPMENT_PASSPHRASE, stack)
    else:
        assert not [key for key, value in document(stack)["config"].items() if isinstance(value, dict)]


@pytest.mark.parametrize("stack", ["staging", "prod"])
def test_an_example_file_tells_its_reader_how_to_get_secrets(stack: str) -> None:
    assert f"`make secrets STACK={stack}`" in (PROJECT / f"Pulumi.{stack}.yaml").read_text()


@pytest.mark.parametrize("stack", ["staging", "prod"])
def test_an_example_file_says_what_somebody_who_copies_it_must_decide(stack: str) -> None:
    """Not by a default that they would have to know."""
    decided = {
        "postgres.protect",
        "gateway.host",
        "gateway.port",
        "gateway.anonymous",
        "gateway.cors_origins",
        *(f"{section}.memory" for section in ("postgres", "realtime", "gateway")),
    }
    assert {f"{NAMESPACE}:{key}" for key in decided} <= set(document(stack)["config"])


def test_what_the_kinds_of_stack_differ_in() -> None:
    kinds = {
        stack: {
            "rows survive destroy": settings.postgres.protect,
            "key check": not settings.gateway.anonymous,
            "reachable from": settings.gateway.host,
            "browsers of": settings.gateway.cors_origins,
        }
        for stack in STACKS
        for settings in [settings_of(stack)]
    }
    assert kinds == {
        "dev": {
            "rows survive destroy": False,
            "key check": False,
            "reachable from": "127.0.0.1",
            "browsers of": ("*",),
        },
        "staging": {
            "rows survive destroy": True,
            "key check": True,
            "reachable from": "0.0.0.0",
            "browsers of": ("https://staging.example.com", "http://localhost:3000"),
        },
        "prod": {
            "rows survive destroy": True,
            "key check": True,
            "reachable from": "127.0.0.1",
            "browsers of": ("https://wells.example.com",),
        },
    }


def test_staging_runs_beside_the_development_stack() -> None:
    def ports(stack: str) -> set[int]:
        settings = settings_of(stack)
        return {settings.postgres.host_port, settings.realtime.host_port, settings.gateway.port}

    assert not ports("dev") & ports("staging")
