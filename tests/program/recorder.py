"""The program, run without an engine as `make plan` runs it, and everything it asked the engine for."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import yaml
from pulumi.runtime.proto.resource_pb2 import RegisterResourceRequest, RegisterResourceResponse
from pydantic import SecretStr

import plan.program
from plan.program import PROJECT, Resource, Secret, StackConfig
from settings import IMAGE_VARIABLES, NAMESPACE, ApiRole, JwtSettings
from tokens import api_key

with warnings.catch_warnings():
    # The package imports its own deprecated names and warns about that, once, at its first import.
    warnings.simplefilter("ignore", DeprecationWarning)
    import pulumi_postgresql  # noqa: F401

DYNAMIC = "pulumi-python:dynamic/index:"

SECRETS = {
    "postgres.password": "the-database-password-of-this-test",
    "realtime.db_enc_key": "sixteen-bytes-ok",
    "realtime.secret_key_base": "a-secret-key-base-of-this-test-alone-that-is-sixty-four-bytes-ok",
    "realtime.api_jwt_secret": "the-management-secret-of-this-test-alone",
    "realtime.metrics_jwt_secret": "the-metrics-secret-of-this-test-alone",
    "jwt.secret": "the-client-key-secret-of-this-test-alone",
}


def label_of(resource: Resource) -> str:
    """A resource as the tests name it."""
    return f"{resource.kind} {resource.name}"


_JWT = JwtSettings(secret=SecretStr(SECRETS["jwt.secret"]), issued_at=1_767_225_600, lifetime_days=3650)
ANON_KEY = api_key(_JWT, ApiRole.ANON)
SERVICE_ROLE_KEY = api_key(_JWT, ApiRole.SERVICE_ROLE)


@dataclass(frozen=True, kw_only=True)
class Program:
    """What one run of the program declared."""

    resources: Sequence[Resource]
    """In the order of registration."""
    requests: Mapping[str, RegisterResourceRequest] = field(repr=False)
    """By URN, what the engine was told: the inputs and every option."""
    outputs: Mapping[str, Any]

    def __getitem__(self, label: str) -> Resource:
        """The one resource of a kind and name, like ``Container realtime``."""
        (found,) = (resource for resource in self.resources if label_of(resource) == label)
        return found

    def of_type(self, type_: str) -> list[Resource]:
        return [resource for resource in self.resources if resource.type == type_]

    def options(self, label: str) -> RegisterResourceRequest:
        """The options of a resource: how it is replaced, deleted, kept."""
        return self.requests[self[label].urn]

    def waits_for(self, later: str, earlier: str) -> bool:
        """Whether the engine must have made ``earlier`` before it starts with ``later``.

        A child waits for its component, which is there only when what the component depends on is.
        """
        by_urn = {resource.urn: resource for resource in self.resources}
        target, seen, open_ = self[earlier].urn, set[str](), [self[later].urn]
        while open_:
            resource = by_urn[open_.pop()]
            for urn in (resource.dependencies | {resource.parent}) - seen - {""}:
                seen.add(urn)
                open_.append(urn)
        return target in seen


def run_program(stack: str, config: Mapping[str, str], environ: Mapping[str, str] | None = None) -> Program:
    """What ``__main__.py`` declares with a stack's config, as the CLI hands it over: full keys, values as text.

    Raises PlanError when the program refuses the config.
    """
    requests: dict[str, RegisterResourceRequest] = {}

    class Listening(plan.program._RecordingMonitor):
        """Keeps the options too, of which a plan shows nothing."""

        def RegisterResource(self, request: RegisterResourceRequest) -> RegisterResourceResponse:  # noqa: N802
            answer = super().RegisterResource(request)
            requests[answer.urn] = request
            return answer

    inherited = {key: value for key, value in os.environ.items() if key not in ("PULUMI_CONFIG", *IMAGE_VARIABLES)}
    with (
        mock.patch.dict("os.environ", {**inherited, **(environ or {})}, clear=True),
        mock.patch.object(plan.program, "_RecordingMonitor", Listening),
    ):
        declared = plan.program.run(StackConfig(project=PROJECT, stack=stack, values=config, missing=()))
    return Program(resources=declared.resources, requests=requests, outputs=declared.outputs)


def stack_file(stack: str) -> dict[str, str]:
    """The config of one of the project's stack files, as the CLI hands it over, without what is encrypted in it."""
    document: dict[str, Any] = yaml.safe_load((PROJECT / f"Pulumi.{stack}.yaml").read_text())["config"]
    plain = {key: value for key, value in document.items() if not (isinstance(value, dict) and "secure" in value)}
    return {key: value if isinstance(value, str) else json.dumps(value) for key, value in plain.items()}


def with_secrets(config: Mapping[str, str]) -> dict[str, str]:
    """A stack's config after `make secrets`."""
    return {**config, **{f"{NAMESPACE}:{key}": secret for key, secret in SECRETS.items()}}


def variables(container: Resource) -> Any:
    """A container's environment variables by name, in the secret mark that its inputs have."""
    envs = container.inputs["envs"]
    listed = envs.value if isinstance(envs, Secret) else envs
    by_name = dict(entry.split("=", 1) for entry in listed)
    assert len(by_name) == len(listed), "a variable is set twice"
    return Secret(by_name) if isinstance(envs, Secret) else by_name


def overridden(environ: dict[str, str] | None = None, **settings: str) -> Program:
    """The development stack with other settings; two underscores stand for the dot of a key."""
    config = {f"{NAMESPACE}:{key.replace('__', '.')}": value for key, value in settings.items()}
    return run_program("dev", with_secrets(stack_file("dev")) | config, environ)


def texts(value: Any, *, marked: bool, at: str = "") -> Iterator[tuple[str, str]]:
    """Every text in a value, and what it decodes to as base64, by the path to it.

    Those inside a secret mark with ``marked``, else those that whoever reads the state can see.
    """
    match value:
        case Secret():
            if marked:
                yield from texts(plan.program.plain(value.value), marked=False, at=at)
        case Mapping():
            for key, item in value.items():
                yield from texts(item, marked=marked, at=f"{at}.{key}")
                if not marked:
                    yield at, str(key)
        case list():
            for item in value:
                yield from texts(item, marked=marked, at=at)
        case _ if not marked:
            yield at, str(value)
            with contextlib.suppress(ValueError):
                yield at, base64.b64decode(str(value), validate=True).decode("latin-1")
        case _:
            pass
