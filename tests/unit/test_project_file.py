"""Pulumi.yaml, which the CLI checks a stack's config against, says the same as the models of settings.py."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import pytest
import yaml
from pydantic import SecretStr
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

import settings
from settings import NAMESPACE, JwtAlgorithm, Section, Settings, SslMode, Table, load, secret_keys

PROJECT: dict[str, Any] = yaml.safe_load((Path(__file__).parents[2] / "Pulumi.yaml").read_text())

MODELS: dict[str, tuple[type[Section], str]] = {
    **{f"{section}.{key}": found for section, keys in settings.FIELDS.items() for key, found in keys.items()},
    "tables": (Settings, "tables"),
    "migrations": (Settings, "migrations"),
}
FIELDS: dict[str, FieldInfo] = {key: model.model_fields[name] for key, (model, name) in MODELS.items()}
TYPES: dict[object, str] = {
    int: "integer",
    bool: "boolean",
    str: "string",
    str | None: "string",
    SecretStr: "string",
    SecretStr | None: "string",
    JwtAlgorithm: "string",
    SslMode: "string",
    Table: "object",
}


def declared_as(key: str) -> str:
    """A key as Pulumi.yaml must spell it.

    Pulumi reads it as a property path (pulumi v3.259.0, pkg/workspace/config.go, mergeConfig), so a plain
    ``postgres.image`` would be the entry ``image`` of an object ``postgres``.
    """
    return f'["{key}"]' if "." in key else key


def declared_type(key: str) -> dict[str, object]:
    model, name = MODELS[key]
    hint = get_type_hints(model)[name]
    if get_origin(hint) is tuple:
        return {"type": "array", "items": {"type": TYPES[get_args(hint)[0]]}}
    return {"type": TYPES[hint]}


def declared_default(info: FieldInfo) -> dict[str, object]:
    if info.default is PydanticUndefined:
        return {}
    if isinstance(info.default, tuple):
        return {"default": list(info.default)}
    if isinstance(info.default, StrEnum):
        return {"default": info.default.value}
    return {"default": "" if info.default is None else info.default}


def test_the_project_is_named_after_the_namespace_of_its_config() -> None:
    assert PROJECT["name"] == NAMESPACE


def test_the_program_runs_in_the_projects_own_virtual_environment() -> None:
    assert PROJECT["runtime"] == {"name": "python", "options": {"virtualenv": ".venv"}}
    assert "main" not in PROJECT


def test_every_setting_is_declared_and_nothing_else() -> None:
    assert set(PROJECT["config"]) == {declared_as(key) for key in FIELDS}


@pytest.mark.parametrize("key", FIELDS)
def test_a_setting_is_declared_with_the_type_default_and_description_of_its_field(key: str) -> None:
    info = FIELDS[key]
    assert info.description, "a user of `pulumi config` has nothing else to go by"
    expected: dict[str, object] = {"description": info.description, **declared_type(key), **declared_default(info)}
    if key in secret_keys():
        expected["secret"] = True
    declared = PROJECT["config"][declared_as(key)]
    assert declared == expected
    assert type(declared.get("default")) is type(expected.get("default"))


def test_only_a_secret_must_be_set_on_every_stack() -> None:
    """A secret's default would be refused by the CLI as not encrypted, and a key without default is required."""
    required = {key for key in FIELDS if "default" not in PROJECT["config"][declared_as(key)]}
    assert required == set(secret_keys())


def test_the_declared_defaults_load_as_the_defaults_of_the_models() -> None:
    secrets = {
        f"{NAMESPACE}:{key}": f"{number:064}" if key != "realtime.db_enc_key" else "sixteen-bytes-ok"
        for number, key in enumerate(secret_keys())
    }
    defaults = {
        f"{NAMESPACE}:{key}": PROJECT["config"][declared_as(key)]["default"]
        for key in FIELDS
        if key not in secret_keys()
    }
    assert load(secrets | defaults, stack="test", environ={}) == load(secrets, stack="test", environ={})
