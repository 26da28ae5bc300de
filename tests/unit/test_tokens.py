"""The tokens a client and this program present, as an independent JWT library and Realtime read them."""

from __future__ import annotations

import jwt
import pytest
from pydantic import SecretStr

import tokens
from settings import ApiRole, JwtSettings

CLIENT_SECRET = "the-client-key-secret-of-this-test-alone"
MANAGEMENT_SECRET = "the-management-secret-of-this-test-alone"
ISSUED_AT = 1_767_225_600
"""2026-01-01T00:00:00Z"""
EXPIRES_AT = 2_082_585_600
"""2035-12-30T00:00:00Z, 3650 days later"""

SETTINGS = JwtSettings(secret=SecretStr(CLIENT_SECRET), issued_at=ISSUED_AT, lifetime_days=3650)


def decoded(token: str, secret: str) -> dict[str, object]:
    claims: dict[str, object] = jwt.decode(token, secret, algorithms=["HS256"], options={"verify_exp": False})
    return claims


@pytest.mark.parametrize(
    ("role", "token"),
    [
        (
            ApiRole.ANON,
            "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9."
            "eyJyb2xlIjoiYW5vbiIsImlzcyI6InN1cGFiYXNlIiwiaWF0IjoxNzY3MjI1NjAwLCJleHAiOjIwODI1ODU2MDB9."
            "V8toICLLrvTdeZcXq7jWIZ9CakDA0LTn5jMvqlYDNCk",
        ),
        (
            ApiRole.AUTHENTICATED,
            "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9."
            "eyJyb2xlIjoiYXV0aGVudGljYXRlZCIsImlzcyI6InN1cGFiYXNlIiwiaWF0IjoxNzY3MjI1NjAwLCJleHAiOjIwODI1ODU2MDB9."
            "CaM5B9OD1wmG8aOfk7JQs7AhoBcrh8wzy9ga6XRAUI8",
        ),
        (
            ApiRole.SERVICE_ROLE,
            "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9."
            "eyJyb2xlIjoic2VydmljZV9yb2xlIiwiaXNzIjoic3VwYWJhc2UiLCJpYXQiOjE3NjcyMjU2MDAsImV4cCI6MjA4MjU4NTYwMH0."
            "BD5spt7WqWwro9-cFtPJw41G0PYrPrq38qd6jGB9UYs",
        ),
    ],
)
def test_a_clients_key_is_the_same_bytes_on_every_run(role: ApiRole, token: str) -> None:
    """The expected bytes come from the standard library's hmac, base64 and json, not from pyjwt."""
    assert tokens.api_key(SETTINGS, role) == token


def test_the_management_token_is_the_same_bytes_on_every_run() -> None:
    assert tokens.bearer_token(MANAGEMENT_SECRET) == (
        "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.eyJpc3MiOiJzdXBhYmFzZSJ9.XykUjA5UncvflOiLG0i6PBE1T5BaAejt3eZMoXQ3-_o"
    )


@pytest.mark.parametrize("role", ApiRole)
def test_a_clients_key_names_its_role_and_its_whole_life(role: ApiRole) -> None:
    assert decoded(tokens.api_key(SETTINGS, role), CLIENT_SECRET) == {
        "role": role.value,
        "iss": "supabase",
        "iat": ISSUED_AT,
        "exp": EXPIRES_AT,
    }


def test_the_roles_have_different_keys() -> None:
    assert len({tokens.api_key(SETTINGS, role) for role in ApiRole}) == len(ApiRole)


def test_the_expiry_in_the_key_is_the_one_the_settings_announce() -> None:
    assert decoded(tokens.api_key(SETTINGS, ApiRole.ANON), CLIENT_SECRET)["exp"] == SETTINGS.expires_at.timestamp()


def test_a_key_past_its_lifetime_is_refused() -> None:
    settings = JwtSettings(secret=SecretStr(CLIENT_SECRET), issued_at=ISSUED_AT - 86_400 * 365, lifetime_days=1)
    with pytest.raises(jwt.ExpiredSignatureError):
        jwt.decode(tokens.api_key(settings, ApiRole.ANON), CLIENT_SECRET, algorithms=["HS256"])


@pytest.mark.parametrize(
    "token",
    [
        pytest.param(tokens.api_key(SETTINGS, ApiRole.ANON), id="client"),
        pytest.param(tokens.bearer_token(MANAGEMENT_SECRET), id="management"),
    ],
)
def test_the_header_says_jwt_as_realtime_demands(token: str) -> None:
    assert jwt.get_unverified_header(token) == {"alg": "HS256", "typ": "JWT"}


def test_the_management_token_opens_with_its_own_secret() -> None:
    assert decoded(tokens.bearer_token(MANAGEMENT_SECRET), MANAGEMENT_SECRET) == {"iss": "supabase"}


def test_the_management_token_does_not_open_with_the_clients_secret() -> None:
    with pytest.raises(jwt.InvalidSignatureError):
        decoded(tokens.bearer_token(MANAGEMENT_SECRET), CLIENT_SECRET)


@pytest.mark.parametrize("role", ApiRole)
def test_no_clients_key_opens_with_the_management_secret(role: ApiRole) -> None:
    with pytest.raises(jwt.InvalidSignatureError):
        decoded(tokens.api_key(SETTINGS, role), MANAGEMENT_SECRET)


def test_another_secret_or_moment_is_another_key() -> None:
    keys = {
        tokens.api_key(JwtSettings(secret=SecretStr(secret), issued_at=issued_at, lifetime_days=days), ApiRole.ANON)
        for secret, issued_at, days in (
            (CLIENT_SECRET, ISSUED_AT, 3650),
            (MANAGEMENT_SECRET, ISSUED_AT, 3650),
            (CLIENT_SECRET, ISSUED_AT + 1, 3650),
            (CLIENT_SECRET, ISSUED_AT, 3649),
        )
    }
    assert len(keys) == 4
