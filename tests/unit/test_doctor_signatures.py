"""Whether a tenant takes a key's signature: with its secret, or with the public key that the key names."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import jwt
import pytest
from pydantic import SecretStr

import tokens
from doctor.checks.tenant import verifies
from settings import ApiRole, JwtAlgorithm, JwtSettings

SECRET = "the-client-key-secret-of-this-test-alone"


def settings(algorithm: JwtAlgorithm) -> JwtSettings:
    private_key = None if algorithm is JwtAlgorithm.HS256 else SecretStr(tokens.new_private_key(algorithm))
    return JwtSettings(
        secret=SecretStr(SECRET), algorithm=algorithm, private_key=private_key, issued_at=1, lifetime_days=1
    )


def tenant_with(public_keys: dict[str, Any] | None) -> Any:
    """A set-up whose tenant has these public keys."""
    return SimpleNamespace(dsn="given", tenant="supabase-realtime", rows=lambda *_: [{"jwt_jwks": public_keys}])


@pytest.mark.parametrize("algorithm", JwtAlgorithm)
def test_a_key_of_the_settings_is_taken_though_it_has_expired(algorithm: JwtAlgorithm) -> None:
    jwt_settings = settings(algorithm)
    tenant = tenant_with(tokens.public_keys(jwt_settings) or None)
    assert verifies(tenant, tokens.api_key(jwt_settings, ApiRole.ANON), tokens.tenant_secret(jwt_settings))


@pytest.mark.parametrize("algorithm", [JwtAlgorithm.ES256, JwtAlgorithm.RS256])
def test_a_key_of_another_private_key_is_not(algorithm: JwtAlgorithm) -> None:
    one, other = settings(algorithm), settings(algorithm)
    assert not verifies(tenant_with(tokens.public_keys(one)), tokens.api_key(other, ApiRole.ANON), SECRET)


def test_a_private_key_s_token_is_not_where_the_tenant_has_no_public_keys() -> None:
    key = tokens.api_key(settings(JwtAlgorithm.ES256), ApiRole.ANON)
    assert not verifies(tenant_with(None), key, SECRET)


def test_a_forged_kid_does_not_lend_a_signature() -> None:
    one, other = settings(JwtAlgorithm.ES256), settings(JwtAlgorithm.ES256)
    kid = tokens.public_keys(one)["keys"][0]["kid"]
    assert other.private_key is not None
    forged = jwt.encode({"role": "anon"}, other.private_key.get_secret_value(), algorithm="ES256", headers={"kid": kid})
    assert not verifies(tenant_with(tokens.public_keys(one)), forged, SECRET)


def test_with_hs256_another_secret_is_not() -> None:
    key = tokens.api_key(settings(JwtAlgorithm.HS256), ApiRole.ANON)
    assert not verifies(tenant_with(None), key, "another-secret-of-this-test-of-32-bytes")


def test_what_is_no_jwt_is_not() -> None:
    assert not verifies(tenant_with(None), "not a key", SECRET)
