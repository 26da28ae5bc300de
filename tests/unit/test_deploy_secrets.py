"""Generated secrets are good enough for a production stack, and different every time."""

from pathlib import Path

import pytest
import yaml

import settings
from deploy.errors import DeployError
from deploy.generated import generate, refuse_copied


def test_a_production_stack_starts_with_generated_secrets() -> None:
    config = {f"{settings.NAMESPACE}:{key}": generate(key) for key in settings.secret_keys()}
    loaded = settings.load(config, stack="prod", environ={})
    assert len(loaded.realtime.db_enc_key.get_secret_value().encode()) == 16
    assert len(loaded.realtime.secret_key_base.get_secret_value().encode()) >= 64


def test_no_two_secrets_are_the_same() -> None:
    values = [generate(key) for key in settings.secret_keys() for _ in range(50)]
    assert len(set(values)) == len(values)


def test_secrets_need_no_quoting_anywhere() -> None:
    assert all(generate(key).isalnum() and generate(key).isascii() for key in settings.secret_keys())


def write_stack_file(project: Path, stack: str, **secure: str) -> None:
    config = {f"{settings.NAMESPACE}:{key}": {"secure": value} for key, value in secure.items()}
    (project / f"Pulumi.{stack}.yaml").write_text(yaml.safe_dump({"config": {"supabase-realtime:x": "y", **config}}))


def test_a_file_copied_with_the_secrets_of_another_stack_is_refused(tmp_path: Path) -> None:
    write_stack_file(tmp_path, "prod", one="v1:a:b", two="v1:c:d")
    write_stack_file(tmp_path, "copy", one="v1:e:f", two="v1:c:d")
    with pytest.raises(DeployError, match=r"Pulumi\.copy\.yaml holds secrets of stack prod"):
        refuse_copied(tmp_path, "copy")


def test_stacks_with_secrets_of_their_own_are_not(tmp_path: Path) -> None:
    write_stack_file(tmp_path, "prod", one="v1:a:b")
    write_stack_file(tmp_path, "other", one="v1:c:d")
    write_stack_file(tmp_path, "new")
    for stack in ("prod", "other", "new", "none-yet"):
        refuse_copied(tmp_path, stack)
