"""The policy pack as a process of its own, asked as the engine asks it, about what the program declares."""

from __future__ import annotations

import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import grpc
from google.protobuf.json_format import MessageToDict, ParseDict
from google.protobuf.struct_pb2 import Struct
from pulumi.runtime.proto.analyzer_pb2 import (
    AnalyzeRequest,
    AnalyzerResource,
    AnalyzeStackRequest,
    ConfigureAnalyzerRequest,
    EnforcementLevel,
    PolicyConfig,
)
from pulumi.runtime.proto.analyzer_pb2_grpc import AnalyzerStub

from plan.program import PROJECT
from tests.program.recorder import Program, label_of

START_SECONDS = 30
Change = Callable[[dict[str, Any]], None]


class PolicyPack:
    """A running policy pack."""

    def __init__(self, address: str) -> None:
        self._analyzer = AnalyzerStub(grpc.insecure_channel(address))

    def policies(self) -> dict[str, str]:
        """Every policy and how strictly it is enforced."""
        info = self._analyzer.GetAnalyzerInfo(Struct())
        return {policy.name: EnforcementLevel.Name(policy.enforcementLevel) for policy in info.policies}

    def configure(self, config: Mapping[str, Mapping[str, Any]]) -> None:
        """What `--policy-pack-config` does."""
        self._analyzer.Configure(
            ConfigureAnalyzerRequest(
                policyConfig={
                    name: PolicyConfig(properties=ParseDict(dict(properties), Struct()))
                    for name, properties in config.items()
                }
            )
        )

    def violations(
        self, stack: str, program: Program, changes: Mapping[str, Change] | None = None
    ) -> dict[tuple[str, str], str]:
        """What the pack objects to, by policy and resource: its words.

        ``changes``, by a resource's label, alter what the program declares of it: the engine's own form, with
        secret marks.
        """
        found: defaultdict[tuple[str, str], str] = defaultdict(str)
        declared: list[AnalyzerResource] = []
        labels: dict[str, str] = {}
        for resource in program.resources:
            properties = program.requests[resource.urn].object
            label = label_of(resource)
            if changes and label in changes:
                document = MessageToDict(properties)
                changes[label](document)
                properties = ParseDict(document, Struct())
            # Without an engine every stack is called stack.
            urn = resource.urn.replace("urn:pulumi:stack::", f"urn:pulumi:{stack}::")
            labels[urn] = label
            request = AnalyzeRequest(urn=urn, type=resource.type, name=resource.name, properties=properties)
            self._analyzer.Remediate(request)
            for one in self._analyzer.Analyze(request).diagnostics:
                found[one.policyName, label] += f"{one.message}\n"
            declared.append(AnalyzerResource(urn=urn, type=resource.type, name=resource.name, properties=properties))
        for one in self._analyzer.AnalyzeStack(AnalyzeStackRequest(resources=declared)).diagnostics:
            found[one.policyName, labels[one.urn]] += f"{one.message}\n"
        return dict(found)


@contextmanager
def running_policy_pack() -> Iterator[PolicyPack]:
    """The pack, started as the language host starts it (sdk/python/cmd/pulumi-language-python, RunPlugin)."""
    folder = PROJECT / "policy"
    with subprocess.Popen(
        [sys.executable, "-u", "-m", "pulumi.policy", "127.0.0.1:0", str(folder)],
        cwd=folder,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            port = process.stdout.readline().strip()
            assert port.isdigit(), f"the policy pack did not start: {port}"
            yield PolicyPack(f"127.0.0.1:{port}")
        finally:
            process.terminate()
