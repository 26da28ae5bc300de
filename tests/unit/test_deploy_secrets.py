"""Generated secrets are good enough for a production stack, and different every time."""

import settings
from deploy.generated import generate


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
