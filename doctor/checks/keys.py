"""The keys that clients present: JWTs with the claims, the signature and the life that Realtime asks for."""

from __future__ import annotations

from datetime import UTC, datetime
from math import isfinite
from typing import Any

import jwt
from pydantic import SecretStr

from doctor.checks import realtime, tenant
from doctor.checks.finding import Finding, check, failed, ok, skipped, warning
from doctor.checks.handshake import handshake
from doctor.checks.setup import Need, Setup
from settings import EXPIRY_WARNING_DAYS

ALGORITHMS = ("HS256", "HS384", "HS512", "ES256", "RS256")
LAST_SECOND = datetime.max.replace(tzinfo=UTC).timestamp() - 1
"""The end of the year 9999, in seconds since 1970."""


@check("the keys are JWTs with the right claims", needs=(Need.KEY,))
def claims(setup: Setup) -> Finding:
    keys = _keys(setup)
    for role, key in keys.items():
        try:
            header = jwt.get_unverified_header(key.get_secret_value())
            found = _claims(key)
        except jwt.InvalidTokenError as malformed:
            return failed("key-malformed", f"the key of {role} is not a JWT ({type(malformed).__name__})")
        if header.get("typ") != "JWT" or header.get("alg") not in ALGORITHMS:
            seen = f"the key of {role} has typ {header.get('typ')} and alg {header.get('alg')}"
            return failed("key-malformed", seen)
        if missing := [claim for claim in ("role", "exp") if claim not in found]:
            return failed("key-claims-missing", f"the key of {role} lacks {' and '.join(missing)}")
        if found["role"] != role:
            return failed("key-role-wrong", f"the key of {role} names role {found['role']}", expected=role)
    return ok(", ".join(keys))


@check("the keys are valid for long", needs=(Need.KEY,), after=(claims,))
def expiry(setup: Setup) -> Finding:
    """Realtime takes a claim exp that is too large to be a moment, as one in milliseconds is: such a key never ends."""
    moments = []
    for role, key in _keys(setup).items():
        exp = _claims(key)["exp"]
        if not isinstance(exp, int | float) or isinstance(exp, bool) or (isinstance(exp, float) and not isfinite(exp)):
            return failed("key-malformed", f"claim exp of the key of {role} is no number")
        if exp > LAST_SECOND:
            seen = f"claim exp of the key of {role} is {exp}: no time in seconds, and so the key never expires"
            return warning("key-malformed", seen)
        moments.append(datetime.fromtimestamp(max(exp, 0), UTC))
    moment = min(moments)
    days = (moment - datetime.now(UTC)).total_seconds() / 86_400
    if days <= 0:
        return failed("key-expired", f"expired on {moment:%Y-%m-%d %H:%M} UTC")
    if days < EXPIRY_WARNING_DAYS:
        return warning("key-expires-soon", f"ends on {moment:%Y-%m-%d}, in {days:.0f} days", days=f"{days:.0f}")
    return ok(f"until {moment:%Y-%m-%d}, {days:.0f} days left")


@check("the keys are signed with the tenant's secret", needs=(Need.KEY,), after=(claims, tenant.secret))
def signature(setup: Setup) -> Finding:
    keys = _keys(setup)
    secret = tenant.jwt_secret(setup)
    if secret is None:
        return skipped(f"the tenant's secret is not known: {setup.config_reason}")
    for role, key in keys.items():
        if not tenant.verifies(setup, key.get_secret_value(), secret):
            return failed("key-signature-wrong", f"the key of {role} is not signed with the tenant's jwt_secret")
    return ok(f"the tenant verifies {', '.join(keys)}")


@check(
    "Realtime takes the anon key, without the gateway",
    needs=(Need.REALTIME, Need.KEY),
    after=(signature, expiry, realtime.health, tenant.visible, realtime.container),
)
def websocket(setup: Setup) -> Finding:
    if setup.tenant is None:
        return skipped("which tenant is meant is not known")
    name = setup.container_name("realtime")
    answer = handshake(setup.at_realtime("/socket/websocket"), key=setup.key, host=setup.tenant)
    if answer.accepted:
        return ok(f"a websocket opens with Host {setup.tenant}")
    if answer.status is None:
        return failed("realtime-not-listening", answer.words, container=name)
    if answer.status >= 500:  # noqa: PLR2004
        return failed("db-enc-key-changed", f"the websocket answers {answer.words}")
    return failed("websocket-refused", f"the websocket answers {answer.words}", container=name)


def _keys(setup: Setup) -> dict[str, SecretStr]:
    """The keys by the role that each is given out as."""
    keys = {"anon": setup.anon_key, "service_role": setup.service_role_key}
    return {role: key for role, key in keys.items() if key is not None}


def _claims(key: SecretStr) -> dict[str, Any]:
    options: Any = {"verify_signature": False}
    found: dict[str, Any] = jwt.decode(key.get_secret_value(), options=options)
    return found
