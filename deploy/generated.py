"""Secrets for a stack that has none yet."""

from __future__ import annotations

import secrets
import string
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from deploy.backend import stack_file
from deploy.errors import DeployError
from settings import NAMESPACE, JwtAlgorithm
from tokens import new_private_key

LENGTHS = {"realtime.db_enc_key": 16, "realtime.secret_key_base": 96}
"""Characters, which are bytes here: AES-128 wants exactly 16, Phoenix 64 or more."""
USUAL_LENGTH = 48
ALPHABET = string.ascii_letters + string.digits
"""Safe unquoted in an environment variable, a URL and a connection string."""


def generate(key: str) -> str:
    """A new random value for a secret config key."""
    return "".join(secrets.choice(ALPHABET) for _ in range(LENGTHS.get(key, USUAL_LENGTH)))


def generate_private_key(algorithm: str) -> str:
    """A new private key that signs with ES256 or RS256, as PEM. Raises DeployError for an algorithm that is unknown."""
    try:
        return new_private_key(JwtAlgorithm(algorithm))
    except ValueError:
        raise DeployError(
            f"{NAMESPACE}:jwt.algorithm: {algorithm!r} is not one of {', '.join(JwtAlgorithm)}; use one of these"
        ) from None


def refuse_copied(project: Path, stack: str) -> None:
    """Raises DeployError when the stack's file holds what another stack's file has encrypted: it was copied with it.

    No two encryptions are the same bytes, of the same secret neither.
    """
    own = encrypted(stack_file(project, stack))
    for path in sorted(project.glob("Pulumi.*.yaml")):
        other = path.name.removeprefix("Pulumi.").removesuffix(".yaml")
        if other != stack and own & encrypted(stack_file(project, other)):
            raise DeployError(
                f"Pulumi.{stack}.yaml holds secrets of stack {other}, from whose file it was copied: remove from the "
                f"copy `encryptionsalt` and every key with `secure`, then run `make secrets` on it"
            )


def encrypted(document: Mapping[str, Any]) -> set[str]:
    """The encrypted values of a stack's file."""
    values = (document.get("config") or {}).values()
    return {str(value["secure"]) for value in values if isinstance(value, Mapping) and "secure" in value}
