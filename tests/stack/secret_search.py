"""A search for a stack's secrets in whatever may hold one by mistake."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from urllib.parse import quote

import docker

from settings import NAMESPACE, secret_keys
from tests.stack.conftest import Deployment
from tokens import bearer_token


def secret_values(deployment: Deployment) -> dict[str, str]:
    """Every secret of the stack by what it is.

    The settings marked so, the key that passes every policy, the tokens of Realtime's own endpoints, and what
    encrypts the state.
    """
    config = json.loads(deployment.pulumi("config", "--json", "--show-secrets").stdout)
    values = {key: str(config[f"{NAMESPACE}:{key}"]["value"]) for key in secret_keys()}
    return values | {
        "service_role_key": deployment.outputs()["service_role_key"],
        "token of the management API": bearer_token(values["realtime.api_jwt_secret"]),
        "token of the metrics": bearer_token(values["realtime.metrics_jwt_secret"]),
        "passphrase": deployment.environ["PULUMI_CONFIG_PASSPHRASE"],
    }


def spellings(secret: str) -> set[bytes]:
    """A secret as it may stand in a text: plain, in JSON, in a URL, and each of these inside of base64."""
    plain = {spelled.encode() for spelled in (secret, json.dumps(secret)[1:-1], quote(secret, safe=""))}
    return plain | {inside_base64(spelled, shift) for spelled in plain for shift in range(3)}


def inside_base64(text: bytes, shift: int) -> bytes:
    """The characters of base64 that the text alone decides, when it begins at a place that is 3n + ``shift``."""
    encoded = base64.b64encode(b"\0" * shift + text)
    decided_by_what_follows = 4 if (shift + len(text)) % 3 else 0
    return encoded[(8 * shift + 5) // 6 : len(encoded) - decided_by_what_follows]


def leaked(text: bytes, secrets: Mapping[str, str]) -> list[str]:
    """Which secrets a text holds. Their names, never their values: this goes into the test's own output."""
    return [name for name, value in secrets.items() if any(spelled in text for spelled in spellings(value))]


def leaked_by_logs(deployment: Deployment) -> dict[str, list[str]]:
    """Which secrets the logs of the stack's containers hold, by the container that wrote them."""
    engine, secrets = docker.from_env(), secret_values(deployment)
    logs = {c: engine.containers.get(deployment.container_name(c)).logs() for c in ("postgres", "realtime", "gateway")}
    found = {part: leaked(log, secrets) for part, log in logs.items()}
    return {part: names for part, names in found.items() if names}
