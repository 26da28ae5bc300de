"""The program, run under Pulumi's mocks, and every resource that it declares.

Nothing is decrypted: a value that a stack's file encrypts is stood in for by a placeholder, so that a plan needs
neither the passphrase nor the CLI, and cannot give a secret away.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import json
import runpy
import signal
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pulumi
import yaml
from google.protobuf.empty_pb2 import Empty
from google.protobuf.json_format import MessageToDict
from pulumi.runtime import MockCallArgs, MockResourceArgs, Mocks, rpc, run_in_stack, set_all_config
from pulumi.runtime.mocks import MockEngine, MockMonitor, MockSettings
from pulumi.runtime.proto import resource_pb2
from pulumi.runtime.settings import configure

from settings import AES_128_KEY_BYTES, NAMESPACE, PRIVATE_KEY, ROTATION, JwtAlgorithm, secret_keys
from tokens import new_private_key

PROJECT = Path(__file__).parent.parent
STACK = "pulumi:pulumi:Stack"
PLACEHOLDER_BYTES = 64
"""Long enough for every secret but the one whose length is fixed."""
FIXED_LENGTHS = {"realtime.db_enc_key": AES_128_KEY_BYTES}


class PlanError(Exception):
    """Why a stack's file cannot be planned, and what to do about it."""


@dataclass(frozen=True)
class Secret:
    """A value that the program marks as one."""

    value: Any = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class StackConfig:
    """The config of a stack as the CLI hands it to the program: full keys, values as text."""

    project: Path
    stack: str
    values: Mapping[str, str] = field(repr=False)
    missing: tuple[str, ...]
    """Secrets that the stack's file does not have yet; placeholders stand in for them."""

    @property
    def secrets(self) -> tuple[str, ...]:
        """Every secret among the values, the longest first, for hiding them."""
        found = {self.values[f"{NAMESPACE}:{key}"] for key in secret_keys()}
        return tuple(sorted(found, key=len, reverse=True))


@dataclass(frozen=True, kw_only=True)
class Resource:
    """What the program asks the engine for, of one resource."""

    urn: str
    type: str
    """Type token, like ``postgresql:index/grant:Grant``."""
    name: str
    custom: bool
    """False for a component."""
    parent: str
    """URN of the component that it belongs to, empty at the top."""
    inputs: Mapping[str, Any]
    """With each secret value as ``Secret``."""
    dependencies: frozenset[str]
    """URNs of what must exist before: by depends_on, by an input, or as its provider."""

    @property
    def kind(self) -> str:
        """Last part of the type token."""
        return self.type.rpartition(":")[2]

    @property
    def values(self) -> dict[str, Any]:
        """The inputs as a provider gets them, secrets in the clear."""
        return {key: plain(value) for key, value in self.inputs.items()}


def plain(value: Any) -> Any:
    """A value without its secret marks."""
    match value:
        case Secret():
            return plain(value.value)
        case Mapping():
            return {key: plain(item) for key, item in value.items()}
        case list():
            return [plain(item) for item in value]
        case _:
            return value


@dataclass(frozen=True, kw_only=True)
class Program:
    """What one run of the program declares."""

    config: StackConfig
    resources: Sequence[Resource]
    """In dependency order."""
    outputs: Mapping[str, Any]

    def depends_on(self, resource: Resource) -> Iterator[Resource]:
        """The resources that a resource waits for, in dependency order."""
        return (other for other in self.resources if other.urn in resource.dependencies)


def placeholder(key: str) -> str:
    """What stands in for a secret: distinct by key, as long as the settings ask, and no one's real secret."""
    length = FIXED_LENGTHS.get(key, PLACEHOLDER_BYTES)
    return f"placeholder-for-{key}".ljust(length, "-") if length > len(key) + 16 else "placeholder-key."[:length]


def stack_config(stack: str, project: Path = PROJECT) -> StackConfig:
    """The config of a stack: the defaults of Pulumi.yaml and what Pulumi.<stack>.yaml says instead.

    Raises PlanError when there is no such stack, when a file is not YAML, and when a setting is encrypted that is
    none of the secrets, since its value decides what is declared.
    """
    stacks = sorted(path.name.split(".")[1] for path in project.glob("Pulumi.*.yaml"))
    if stack not in stacks:
        raise PlanError(
            f"there is no Pulumi.{stack}.yaml; the stacks with a file are {', '.join(stacks) or 'none'}: "
            "name one of them, or write the file"
        )
    values = {f"{NAMESPACE}:{key}": text for key, text in _defaults(project)}
    secrets = {f"{NAMESPACE}:{key}" for key in secret_keys()}
    for key, value in (_mapping(project / f"Pulumi.{stack}.yaml").get("config") or {}).items():
        if not _encrypted(value):
            values[key] = _text(value)
        elif key in secrets:
            values[key] = placeholder(key.partition(":")[2])
        elif key == f"{NAMESPACE}:{ROTATION}":
            continue  # what is declared does not depend on it
        elif key == f"{NAMESPACE}:{PRIVATE_KEY}":
            values[key] = ""
        else:
            raise PlanError(
                f"{key} in Pulumi.{stack}.yaml is encrypted, and a plan decrypts nothing; it is not a secret, so "
                f"write it in plain text: `pulumi config set {key} <value> --plaintext`"
            )
    missing = tuple(key for key in secret_keys() if f"{NAMESPACE}:{key}" not in values)
    values |= {f"{NAMESPACE}:{key}": placeholder(key) for key in missing}
    algorithm = values.get(f"{NAMESPACE}:jwt.algorithm", "")
    if algorithm in tuple(JwtAlgorithm) and algorithm != JwtAlgorithm.HS256:
        values[f"{NAMESPACE}:{PRIVATE_KEY}"] = new_private_key(JwtAlgorithm(algorithm))
    return StackConfig(project=project, stack=stack, values=values, missing=missing)


def _defaults(project: Path) -> Iterator[tuple[str, str]]:
    for key, declared in (_mapping(project / "Pulumi.yaml").get("config") or {}).items():
        if isinstance(declared, dict) and "default" in declared:
            # A flat key with a dot is written as a path of one part: '["postgres.image"]'.
            flat = json.loads(key)[0] if key.startswith("[") else key
            yield flat, _text(declared["default"])


def _mapping(path: Path) -> dict[str, Any]:
    try:
        document = yaml.safe_load(path.read_text())
    except FileNotFoundError:
        raise PlanError(f"there is no {path.name}; run this in the project's folder") from None
    except yaml.YAMLError as broken:
        raise PlanError(f"{path.name} is not YAML: {broken}; correct it") from None
    if not isinstance(document, dict):
        raise PlanError(f"{path.name} is not a YAML mapping; correct it")
    return document


def _encrypted(value: Any) -> bool:
    if isinstance(value, dict):
        return "secure" in value or any(map(_encrypted, value.values()))
    return isinstance(value, list) and any(map(_encrypted, value))


def _text(value: Any) -> str:
    """A value as the CLI hands it over: text as it is, everything else as JSON."""
    return value if isinstance(value, str) else json.dumps(value)


def run(config: StackConfig) -> Program:
    """What the program declares with this config.

    Raises PlanError with the program's own words when it refuses the config; SettingsError is among them.
    """
    monitor = _RecordingMonitor()

    async def deployment() -> None:
        settings = MockSettings(  # type: ignore[no-untyped-call]
            monitor=monitor,
            monitor_features=set(monitor.GetDeploymentInfo(Empty()).supportedFeatures),  # type: ignore[no-untyped-call]
            engine=MockEngine(None),
            project=NAMESPACE,
            stack=config.stack,
            dry_run=True,
            organization="",
        )
        configure(settings)
        set_all_config(dict(config.values), [f"{NAMESPACE}:{key}" for key in (*secret_keys(), PRIVATE_KEY)])
        await run_in_stack(_run_main)

    def _run_main() -> None:
        with warnings.catch_warnings():
            # On import it warns about modules of its own that nobody has asked for.
            warnings.filterwarnings("ignore", category=DeprecationWarning, module="pulumi_postgresql")
            runpy.run_path(str(config.project / "__main__.py"), run_name="__main__")

    # The program is the engine's child as a rule, and answers Ctrl-C accordingly.
    interrupt = signal.getsignal(signal.SIGINT)
    try:
        with contextlib.chdir(config.project):
            contextvars.copy_context().run(asyncio.run, deployment())
    except pulumi.RunError as refused:
        raise PlanError(str(refused)) from None
    finally:
        signal.signal(signal.SIGINT, interrupt)
    return Program(config=config, resources=monitor.recorded, outputs=monitor.outputs)


def _marked(value: Any) -> Any:
    """A value of the engine's protocol with its secrets as Secret."""
    if isinstance(value, dict):
        if rpc.is_rpc_secret(value):
            return Secret(_marked(value["value"]))
        return {key: _marked(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_marked(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


class _NoMocks(Mocks):
    """Resources are recorded from the request, which holds more than the mocks are told."""

    def call(self, args: MockCallArgs) -> tuple[dict[Any, Any], list[tuple[str, str]] | None]:
        raise PlanError(f"the program calls {args.token}, which only a running provider can answer")

    def new_resource(self, args: MockResourceArgs) -> tuple[str | None, dict[Any, Any]]:
        raise PlanError(f"the program reads {args.typ} {args.name}, which only a running provider can answer")


class _RecordingMonitor(MockMonitor):
    """An engine that makes nothing: every resource gets the id ``(id of <name>)`` and its inputs as outputs."""

    def __init__(self) -> None:
        super().__init__(_NoMocks())
        self.recorded: list[Resource] = []
        self.outputs: Mapping[str, Any] = {}

    def RegisterResource(  # noqa: N802 - the engine's protocol
        self, request: resource_pb2.RegisterResourceRequest
    ) -> resource_pb2.RegisterResourceResponse:
        urn = self.make_urn(request.parent, request.type, request.name)
        if request.type == STACK:
            return resource_pb2.RegisterResourceResponse(urn=urn)
        by_input = (urn for depends in request.propertyDependencies.values() for urn in depends.urns)
        provider = request.provider.rpartition("::")[0]
        # A resource registers itself only when what it depends on has: the order is dependency order.
        self.recorded.append(
            Resource(
                urn=urn,
                type=request.type,
                name=request.name,
                custom=request.custom,
                parent="" if f"::{STACK}::" in request.parent else request.parent,
                inputs=_marked(MessageToDict(request.object)),
                dependencies=frozenset({*request.dependencies, *by_input, provider} - {""}),
            )
        )
        return resource_pb2.RegisterResourceResponse(urn=urn, id=f"(id of {request.name})", object=request.object)

    def RegisterResourceOutputs(  # noqa: N802
        self, request: resource_pb2.RegisterResourceOutputsRequest
    ) -> Empty:
        if f"::{STACK}::" in request.urn:
            self.outputs = _marked(MessageToDict(request.outputs))
        return Empty()
