"""Secrets for a stack that has none yet."""

from __future__ import annotations

import secrets
import string

LENGTHS = {"realtime.db_enc_key": 16, "realtime.secret_key_base": 96}
"""Characters, which are bytes here: AES-128 wants exactly 16, Phoenix 64 or more."""
USUAL_LENGTH = 48
ALPHABET = string.ascii_letters + string.digits
"""Safe unquoted in an environment variable, a URL and a connection string."""


def generate(key: str) -> str:
    """A new random value for a secret config key."""
    return "".join(secrets.choice(ALPHABET) for _ in range(LENGTHS.get(key, USUAL_LENGTH)))
