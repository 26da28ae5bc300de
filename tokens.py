"""JSON Web Tokens of the stack: the keys clients present, and the bearer tokens of Realtime's own endpoints."""

from __future__ import annotations

import jwt

from settings import ApiRole, JwtSettings

ISSUER = "supabase"


def api_key(settings: JwtSettings, role: ApiRole) -> str:
    """The key of a role, HS256: what supabase-js calls anon key or service role key.

    The same bytes on every run, since it depends on the settings alone. Realtime wants the claims ``role``
    and ``exp`` and the header ``typ: JWT``.
    """
    claims = {
        "role": role.value,
        "iss": ISSUER,
        "iat": settings.issued_at,
        "exp": int(settings.expires_at.timestamp()),
    }
    return _signed(claims, settings.secret.get_secret_value())


def bearer_token(secret: str) -> str:
    """A token for Realtime's management API or its /metrics: both look at the signature alone.

    Realtime v2.32.12, lib/realtime_web/router.ex, check_auth.
    """
    return _signed({"iss": ISSUER}, secret)


def _signed(claims: dict[str, str | int], secret: str) -> str:
    return jwt.encode(claims, secret, algorithm="HS256", headers={"typ": "JWT"})
