"""A transaction in the name of an API role, set up as PostgREST does it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import jwt

from doctor.catalog import Connection


def claims_of(key: str) -> dict[str, Any]:
    """The claims in a JWT, unverified: whether the signature holds is for the servers to say."""
    claims: dict[str, Any] = jwt.decode(key, options={"verify_signature": False})
    return claims


async def become(connection: Connection, claims: Mapping[str, object]) -> None:
    """Takes on the role in the claims until the transaction ends, or resume().

    The same settings as PostgREST makes (its manual, "Transaction-Scoped Settings"): policies read the claims from
    ``request.jwt.claims``.
    """
    await connection.execute(
        "SELECT set_config('role', %s, true), set_config('request.jwt.claims', %s, true)",
        (str(claims["role"]), json.dumps(claims)),
    )


async def resume(connection: Connection) -> None:
    """Back to the connection's own user, in the same transaction."""
    await connection.execute("SELECT set_config('role', 'none', true)")
