"""The tokens a client and this program present, as an independent JWT library and Realtime read them."""

from __future__ import annotations

import jwt
import pytest
from pydantic import SecretStr

import tokens
from deploy.generated import generate_private_key
from settings import ApiRole, JwtAlgorithm, JwtSettings

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


@pytest.fixture(scope="module", params=[JwtAlgorithm.ES256, JwtAlgorithm.RS256])
def asymmetric(request: pytest.FixtureRequest) -> JwtSettings:
    """Settings with a private key of their own."""
    return JwtSettings(
        secret=SecretStr(CLIENT_SECRET),
        algorithm=request.param,
        private_key=SecretStr(generate_private_key(request.param)),
        issued_at=ISSUED_AT,
        lifetime_days=3650,
    )


def verified(token: str, settings: JwtSettings) -> dict[str, object]:
    """The claims of a token, verified with the public keys alone, by the one that it names."""
    public = tokens.public_keys(settings)
    named = jwt.PyJWKSet.from_dict(public)[jwt.get_unverified_header(token)["kid"]]
    claims: dict[str, object] = jwt.decode(token, named, algorithms=[settings.algorithm.value])
    return claims


@pytest.mark.parametrize("role", ApiRole)
def test_a_key_signed_with_a_private_key_is_verified_with_the_public_one(
    role: ApiRole, asymmetric: JwtSettings
) -> None:
    token = tokens.api_key(asymmetric, role)
    assert verified(token, asymmetric) == {
        "role": role.value,
        "iss": "supabase",
        "iat": ISSUED_AT,
        "exp": EXPIRES_AT,
    }
    header = jwt.get_unverified_header(token)
    assert (header["alg"], header["typ"]) == (asymmetric.algorithm.value, "JWT")


def test_a_key_signed_with_a_private_key_is_the_same_bytes_on_every_run(asymmetric: JwtSettings) -> None:
    """Else every update would replace the gateway, and every client's key."""
    first, again = (tokens.api_key(asymmetric, ApiRole.ANON) for _ in range(2))
    assert first == again


def test_realtime_is_given_the_public_half_alone(asymmetric: JwtSettings) -> None:
    """The members of a public key (RFC 7518, 6.2.1 and 6.3.1); `d`, `p`, `q` and their like are the private ones."""
    public = tokens.public_keys(asymmetric)
    (key,) = public["keys"]
    named = {"ES256": {"crv", "x", "y"}, "RS256": {"n", "e"}}[asymmetric.algorithm.value]
    assert set(key) == {"kty", "kid", "alg", "use"} | named


def test_another_private_key_has_another_kid(asymmetric: JwtSettings) -> None:
    other = asymmetric.model_copy(update={"private_key": SecretStr(generate_private_key(asymmetric.algorithm.value))})
    kids = {
        jwt.get_unverified_header(tokens.api_key(settings, ApiRole.ANON))["kid"] for settings in (asymmetric, other)
    }
    assert len(kids) == 2


def test_with_a_private_key_no_token_of_the_old_secret_is_valid(asymmetric: JwtSettings) -> None:
    """Realtime goes on to verify HS256 with the tenant's jwt_secret, whatever its public keys."""
    with pytest.raises(jwt.InvalidSignatureError):
        decoded(tokens.api_key(SETTINGS, ApiRole.ANON), tokens.tenant_secret(asymmetric))


def test_with_hs256_the_tenant_has_the_secret_that_signs_and_no_public_keys() -> None:
    assert tokens.tenant_secret(SETTINGS) == CLIENT_SECRET
    assert tokens.public_keys(SETTINGS) == {}
