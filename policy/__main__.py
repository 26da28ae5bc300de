"""What the engine runs: the rules as policies, all of them mandatory."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

# The engine runs this folder, and the rules know the settings of the project around it.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from pulumi_policy import (
    EnforcementLevel,
    PolicyConfigSchema,
    PolicyPack,
    ReportViolation,
    ResourceValidationArgs,
    ResourceValidationPolicy,
    StackValidationArgs,
    StackValidationPolicy,
)
from pulumi_policy.deserialize import serialize_properties

from policy import rules

PRODUCTION = PolicyConfigSchema({"production": {"type": "array", "items": {"type": "string"}}})

Rule = Callable[[ResourceValidationArgs], Iterator[str]]


def production(args: ResourceValidationArgs) -> Sequence[str]:
    """The names of production stacks."""
    named: Sequence[str] = args.get_config().get("production", rules.PRODUCTION)
    return named


def policy(
    name: str, description: str, rule: Rule, *, of: str | None = None, config: PolicyConfigSchema | None = None
) -> ResourceValidationPolicy:
    """A policy of single resources: all of them, or those of one type."""

    def validate(args: ResourceValidationArgs, report: ReportViolation) -> None:
        if of in (None, args.resource_type):
            for message in rule(args):
                report(message, None)

    return ResourceValidationPolicy(name, description, validate, config_schema=config)


class SecretsMarked(ResourceValidationPolicy):
    """Reports secrets that are not marked.

    Only a remediation is shown the marks (pulumi_policy 1.21.0, policy.py, Analyze and Remediate), and the engine
    runs it before the validation of the same resource: the one finds, the other reports.
    """

    def __init__(self) -> None:
        super().__init__(
            "secrets-marked",
            "Secrets are marked as secrets, so that the state encrypts them.",
            enforcement_level=EnforcementLevel.REMEDIATE,
        )
        self._found: dict[str, list[str]] = {}

    def remediate(self, args: ResourceValidationArgs) -> None:
        self._found[args.urn] = list(rules.unmarked_secrets(plain(args.props)))

    def validate(self, args: ResourceValidationArgs, report_violation: ReportViolation) -> None:
        for message in self._found.pop(args.urn, ()):
            report_violation(message, None)


def plain(props: Mapping[str, Any]) -> Mapping[str, Any]:
    """The properties as they came from the engine; those that a preview does not know yet as any other text."""
    return serialize_properties(props)


def published_tables_secured(args: StackValidationArgs, report: ReportViolation) -> None:
    """Compares the publications of a stack with its tables."""
    tables = [plain(r.props) for r in args.resources if r.resource_type == rules.TABLE_SECURITY]
    secured = {f"{props['schema']}.{props['table']}": props["row_security"] is True for props in tables}
    for resource in args.resources:
        if resource.resource_type == rules.PUBLICATION:
            for message in rules.unsecured_tables(plain(resource.props), secured):
                report(message, resource.urn)


def main() -> None:
    """Serve the pack until the engine ends it."""
    PolicyPack(
        "supabase-realtime",
        [
            policy(
                "no-moving-image",
                "Images are pinned.",
                lambda args: rules.moving_image(args.props),
                of=rules.CONTAINER,
            ),
            policy(
                "database-on-loopback",
                "No database port is published off loopback.",
                lambda args: rules.exposed_database(args.props),
                of=rules.CONTAINER,
            ),
            policy(
                "no-development-secret",
                "Development secrets stay on the development stack.",
                lambda args: rules.development_secrets(plain(args.props), rules.stack_of(args.urn)),
            ),
            policy(
                "no-anonymous-on-a-public-gateway",
                "A gateway that others reach checks the key.",
                lambda args: rules.anonymous_on_a_public_gateway(
                    args.props, rules.stack_of(args.urn), production(args)
                ),
                of=rules.CONTAINER,
                config=PRODUCTION,
            ),
            policy(
                "no-open-write-in-production",
                "In production nobody writes any row without logging in.",
                lambda args: rules.open_writes(args.props, rules.stack_of(args.urn), production(args)),
                of=rules.TABLE_SECURITY,
                config=PRODUCTION,
            ),
            policy(
                "memory-limit",
                "Every container has a memory limit.",
                lambda args: rules.unlimited_memory(args.props),
                of=rules.CONTAINER,
            ),
            StackValidationPolicy(
                "published-tables-secured",
                "Every published table has row level security.",
                published_tables_secured,
            ),
            SecretsMarked(),
        ],
        EnforcementLevel.MANDATORY,
    )


if __name__ == "__main__":
    main()
