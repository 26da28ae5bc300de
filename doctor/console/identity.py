"""Who the console is for the database and for Realtime: an API role, with claims and a token that ends soon."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import tokens
from doctor.api_role import claims_of
from doctor.checks.setup import Setup
from doctor.console.answers import RefusedError
from settings import SUBSCRIBING_ROLES, ApiRole

SUBJECT = "00000000-0000-4000-8000-636f6e736f6c"
"""The ``sub`` of the console when it is authenticated, which is what auth.uid() answers to it."""
LEAST_SECONDS = 30
"""Left of a token that is handed out."""


@dataclass(frozen=True)
class Token:
    """A JWT for the page."""

    role: ApiRole
    text: str
    expires: datetime


class Identities:
    """Claims and tokens of the roles of people. ``lifetime`` of a token is in seconds."""

    def __init__(self, setup: Setup, lifetime: int) -> None:
        assert setup.outputs is not None, "the console is one of a stack"
        self.outputs = setup.outputs
        self.lifetime = lifetime
        self._jwt = setup.config.jwt if setup.config else None
        self._reason = setup.config_reason

    def token(self, role: ApiRole) -> Token:
        """A token of the role, valid for the lifetime; without the stack's secret, of anon its key.

        Raises RefusedError.
        """
        now = datetime.now(UTC).replace(microsecond=0)
        if self._jwt is None:
            return self._anon_key(role, now)
        expires = now + timedelta(seconds=self.lifetime)
        times = {"issued_at": int(now.timestamp()), "expires_at": int(expires.timestamp())}
        if role is ApiRole.AUTHENTICATED:
            return Token(role, tokens.user_token(self._jwt, subject=SUBJECT, **times), expires)
        return Token(role, tokens.api_key(self._jwt, role, **times), expires)

    def claims(self, role: ApiRole) -> dict[str, Any]:
        """What policies are shown of the role: the claims of its token, whoever could sign it."""
        if self._jwt is None and role is ApiRole.AUTHENTICATED:
            return {"role": role.value, "aud": role.value, "sub": SUBJECT, "iss": tokens.ISSUER}
        return claims_of(self.outputs.anon_key if self._jwt is None else self.token(role).text)

    def _anon_key(self, role: ApiRole, now: datetime) -> Token:
        if role is not ApiRole.ANON:
            raise RefusedError(
                409,
                f"a token of {role} cannot be signed: {self._reason}",
                "start the console with --stack, where the stack's passphrase is set",
            )
        expires = self.outputs.anon_key_expires
        if expires - now < timedelta(seconds=LEAST_SECONDS):
            raise RefusedError(
                409,
                f"the anon key ended on {expires:%Y-%m-%d}",
                "raise jwt.lifetime_days or jwt.issued_at, then `make up`",
            )
        return Token(role, self.outputs.anon_key, expires)


def role_of(name: str | None) -> ApiRole:
    """A role of people by its name. Raises RefusedError: the console is never service_role."""
    if name not in SUBSCRIBING_ROLES:
        raise RefusedError(400, f"{name!r} is not a role of the console", f"one of {', '.join(SUBSCRIBING_ROLES)}")
    return ApiRole(name)
