"""JSON Web Tokens of the stack: the keys clients present, and the bearer tokens of Realtime's own endpoints."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import jwt

from settings import RSA_BITS, ApiRole, JwtAlgorithm, JwtSettings

ISSUER = "supabase"
THUMBPRINT_MEMBERS = ("crv", "e", "kty", "n", "x", "y")
"""The members of a public key that its thumbprint is of: RFC 7638, 3.2."""


def api_key(
    settings: JwtSettings, role: ApiRole, *, issued_at: int | None = None, expires_at: int | None = None
) -> str:
    """The key of a role: what supabase-js calls anon key or service role key; times in seconds since 1970.

    Without times the same bytes on every run, since it depends on the settings alone. Realtime wants the claims
    ``role`` and ``exp`` and the header ``typ: JWT``; of a key that is not HS256 also the header ``kid``.
    """
    claims = {
        "role": role.value,
        "iss": ISSUER,
        "iat": settings.issued_at if issued_at is None else issued_at,
        "exp": int(settings.expires_at.timestamp()) if expires_at is None else expires_at,
    }
    return _signed_as(settings, claims)


def tenant_secret(settings: JwtSettings) -> str:
    """The secret with which Realtime verifies HS256 tokens.

    Realtime verifies those with the tenant's jwt_secret even where there is a JWKS, and v2.32.12 wants a jwt_secret
    in any case (lib/realtime_web/channels/auth/jwt_verification.ex, lib/realtime/api/tenant.ex). So with another
    algorithm it gets one that nobody signs with, and a token signed with ``jwt.secret`` is refused.
    """
    if settings.private_key is None:
        return settings.secret.get_secret_value()
    pem = settings.private_key.get_secret_value().strip()
    return hmac.new(pem.encode(), b"jwt_secret of the tenant", hashlib.sha256).hexdigest()


def public_keys(settings: JwtSettings) -> dict[str, Any]:
    """The JWKS with which Realtime verifies the keys: the public half alone. Empty with HS256."""
    return {} if settings.private_key is None else {"keys": [_public_key(settings)]}


def new_private_key(algorithm: JwtAlgorithm) -> str:
    """A private key that signs with ES256 or RS256, as PEM. Raises ValueError for HS256, which has none."""
    from cryptography.hazmat.primitives import serialization  # noqa: PLC0415
    from cryptography.hazmat.primitives.asymmetric import ec, rsa  # noqa: PLC0415

    key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey
    if algorithm is JwtAlgorithm.ES256:
        key = ec.generate_private_key(ec.SECP256R1())
    elif algorithm is JwtAlgorithm.RS256:
        key = rsa.generate_private_key(public_exponent=65_537, key_size=RSA_BITS)
    else:
        raise ValueError(f"{algorithm} signs with a secret, not with a private key")
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()


def bearer_token(secret: str) -> str:
    """A token for Realtime's management API or its /metrics: both look at the signature alone.

    Realtime v2.32.12, lib/realtime_web/router.ex, check_auth.
    """
    return _signed({"iss": ISSUER}, secret)


def user_token(settings: JwtSettings, *, subject: str, issued_at: int, expires_at: int) -> str:
    """The token of somebody who is logged in, as an auth server issues it; times in seconds since 1970."""
    claims: dict[str, str | int] = {
        "role": ApiRole.AUTHENTICATED.value,
        "aud": ApiRole.AUTHENTICATED.value,
        "sub": subject,
        "iss": ISSUER,
        "iat": issued_at,
        "exp": expires_at,
    }
    return _signed_as(settings, claims)


def _signed_as(settings: JwtSettings, claims: dict[str, str | int]) -> str:
    if settings.algorithm is JwtAlgorithm.HS256:
        return _signed(claims, settings.secret.get_secret_value())
    return _signed_with_private_key(claims, settings)


def _signed(claims: dict[str, str | int], secret: str) -> str:
    return jwt.encode(claims, secret, algorithm="HS256", headers={"typ": "JWT"})


def _private_key(settings: JwtSettings) -> Any:
    assert settings.private_key is not None
    return _loaded(settings.private_key.get_secret_value())


@lru_cache(maxsize=4)
def _loaded(pem: str) -> Any:
    """The key in a PEM, once: an RSA key is checked for 40 ms, which a thousand tokens should not wait for."""
    from cryptography.hazmat.primitives.serialization import load_pem_private_key  # noqa: PLC0415

    return load_pem_private_key(pem.encode(), password=None)


def _public_key(settings: JwtSettings) -> dict[str, str]:
    """The public key as a JWK; its ``kid`` is its thumbprint (RFC 7638)."""
    algorithm = jwt.get_algorithm_by_name(settings.algorithm.value)
    jwk: Mapping[str, Any] = json.loads(algorithm.to_jwk(_private_key(settings).public_key()))
    members = {name: jwk[name] for name in THUMBPRINT_MEMBERS if name in jwk}
    kid = _base64url(hashlib.sha256(_json(members)).digest())
    return {**members, "alg": settings.algorithm.value, "kid": kid, "use": "sig"}


def _signed_with_private_key(claims: Mapping[str, Any], settings: JwtSettings) -> str:
    """Not by PyJWT, whose ES256 draws another random number for every signature: this is RFC 6979."""
    from cryptography.hazmat.primitives.asymmetric import ec, padding  # noqa: PLC0415
    from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature  # noqa: PLC0415
    from cryptography.hazmat.primitives.hashes import SHA256  # noqa: PLC0415

    header = {"alg": settings.algorithm.value, "kid": _public_key(settings)["kid"], "typ": "JWT"}
    signed = f"{_base64url(_json(header))}.{_base64url(_json(claims))}"
    key = _private_key(settings)
    if settings.algorithm is JwtAlgorithm.ES256:
        numbers = decode_dss_signature(key.sign(signed.encode(), ec.ECDSA(SHA256(), deterministic_signing=True)))
        signature = b"".join(number.to_bytes(32, "big") for number in numbers)
    else:
        signature = key.sign(signed.encode(), padding.PKCS1v15(), SHA256())
    return f"{signed}.{_base64url(signature)}"


def _json(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, separators=(",", ":"), sort_keys=True).encode()


def _base64url(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).rstrip(b"=").decode()
