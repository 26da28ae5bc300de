"""The policy pack: each policy objects to what it is for, and to nothing that the project's own stacks declare."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
import yaml
from pulumi_policy.proxy import UNKNOWN_BOOLEAN_VALUE

from plan.program import Secret, plain
from settings import NAMESPACE
from tests.program.conftest import STACKS
from tests.program.policy_pack import Change, PolicyPack, running_policy_pack
from tests.program.recorder import Program, run_program, stack_file, with_secrets

GATEWAY = "Container gateway"
POSTGRES = "Container postgres"
REALTIME = "Container realtime"
TENANT = "RealtimeTenant tenant"
TABLE = "TableSecurity public.wells"
PUBLICATION = "Publication publication"


@pytest.fixture(scope="module")
def pack() -> Iterator[PolicyPack]:
    with running_policy_pack() as running:
        yield running


def set_to(**values: Any) -> Change:
    """Other values of some properties."""
    return lambda declared: declared.update(values)


def without(name: str) -> Change:
    """A property taken away."""

    def remove(declared: dict[str, Any]) -> None:
        del declared[name]

    return remove


def revealed(name: str) -> Change:
    """The secret mark taken off a property."""

    def reveal(declared: dict[str, Any]) -> None:
        declared[name] = declared[name]["value"]

    return reveal


def policies(*declared: Mapping[str, Any]) -> Change:
    """Other row level security policies of a table."""
    return set_to(policies=[{"name": "p", "permissive": True, **policy} for policy in declared])


def variable(name: str, value: str) -> Change:
    """Another environment variable, among the secret ones."""
    return lambda declared: declared["envs"]["value"].append(f"{name}={value}")


def kong(**changes: Any) -> Change:
    """Another kong.yml, whose websocket route has these settings of key-auth."""

    def change(declared: dict[str, Any]) -> None:
        content = declared["uploads"][0]["content"]
        document = yaml.safe_load(content["value"])
        (key_auth,) = [p for p in document["services"][0]["plugins"] if p["name"] == "key-auth"]
        key_auth["config"].update(changes)
        content["value"] = yaml.safe_dump(document)

    return change


def published_on(address: str | None) -> Change:
    """Another address of every port of a container."""

    def change(declared: dict[str, Any]) -> None:
        for port in declared["ports"]:
            port.pop("ip")
            if address is not None:
                port["ip"] = address

    return change


@dataclass(frozen=True, kw_only=True)
class Violation:
    """A change of what a stack declares, and the policy that must object to it."""

    name: str
    policy: str
    stack: str
    resource: str
    change: Change
    says: str
    beside: Mapping[str, Change] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True, kw_only=True)
class Harmless:
    """A change that looks like a violation of a policy and is none."""

    name: str
    stack: str
    changes: Mapping[str, Change]

    def __str__(self) -> str:
        return self.name


VIOLATIONS = [
    Violation(
        name="the tag latest",
        policy="no-moving-image",
        stack="prod",
        resource=REALTIME,
        change=set_to(image="supabase/realtime:latest"),
        says="supabase/realtime:latest is another one after every release",
    ),
    Violation(
        name="no tag, at a registry with a port",
        policy="no-moving-image",
        stack="dev",
        resource=GATEWAY,
        change=set_to(image="registry.example.com:5000/kong"),
        says="has no tag",
    ),
    Violation(
        name="the database on every interface",
        policy="database-on-loopback",
        stack="dev",
        resource=POSTGRES,
        change=published_on("0.0.0.0"),
        says="the database's port 5432 is published on 0.0.0.0",
    ),
    Violation(
        name="the database on every interface by default",
        policy="database-on-loopback",
        stack="prod",
        resource=POSTGRES,
        change=published_on(None),
        says="published on every interface",
    ),
    Violation(
        name="a database on another port of its own",
        policy="database-on-loopback",
        stack="prod",
        resource=POSTGRES,
        change=set_to(ports=[{"internal": 6000, "external": 54322, "ip": "10.0.0.5"}]),
        says="port 6000 is published on 10.0.0.5",
    ),
    Violation(
        name="a development password in a container's environment",
        policy="no-development-secret",
        stack="staging",
        resource=REALTIME,
        change=variable("DB_PASSWORD", "postgres"),
        says="DB_PASSWORD holds a development secret",
    ),
    Violation(
        name="the JWT secret of every guide in the tenant",
        policy="no-development-secret",
        stack="prod",
        resource=TENANT,
        change=lambda declared: declared["jwt_secret"].update(
            value="your-super-secret-jwt-token-with-at-least-32-characters-long"
        ),
        says="jwt_secret holds a development secret",
    ),
    Violation(
        name="anonymous on a gateway that the network reaches",
        policy="no-anonymous-on-a-public-gateway",
        stack="staging",
        resource=GATEWAY,
        change=kong(anonymous="anon"),
        says="so the gateway on 0.0.0.0 checks no key",
    ),
    Violation(
        name="anonymous behind the proxy of a production stack",
        policy="no-anonymous-on-a-public-gateway",
        stack="prod",
        resource=GATEWAY,
        change=kong(anonymous="anon"),
        says="so the gateway of a production stack checks no key",
    ),
    Violation(
        name="a published table without row level security",
        policy="published-tables-secured",
        stack="dev",
        resource=PUBLICATION,
        change=set_to(),
        beside={TABLE: set_to(row_security=False)},
        says="publishes public.wells without row level security",
    ),
    Violation(
        name="a published table that nobody declared",
        policy="published-tables-secured",
        stack="prod",
        resource=PUBLICATION,
        change=set_to(tables=["public.wells", "public.others"]),
        says="publishes public.others, whose row level security nobody declares",
    ),
    Violation(
        name="every table published",
        policy="published-tables-secured",
        stack="prod",
        resource=PUBLICATION,
        change=set_to(allTables=True, tables=[]),
        says="publishes every table",
    ),
    Violation(
        name="anybody may change any row in production",
        policy="no-open-write-in-production",
        stack="prod",
        resource=TABLE,
        change=policies({"command": "update", "roles": ["anon", "authenticated"], "using": " ( TRUE )", "check": "x"}),
        says="lets anon update any row",
    ),
    Violation(
        name="anybody may insert any row in production",
        policy="no-open-write-in-production",
        stack="prod",
        resource=TABLE,
        change=policies({"command": "insert", "roles": ["anon"], "check": "true"}),
        says="lets anon insert any row",
    ),
    Violation(
        name="everything allowed to everybody in production",
        policy="no-open-write-in-production",
        stack="prod",
        resource=TABLE,
        change=policies({"command": "all", "roles": ["public"], "using": "true"}),
        says="lets public write any row",
    ),
    Violation(
        name="a restrictive policy for other people",
        policy="no-open-write-in-production",
        stack="prod",
        resource=TABLE,
        change=policies(
            {"command": "delete", "roles": ["anon"], "using": "true"},
            {"command": "delete", "roles": ["authenticated"], "using": "active", "permissive": False},
        ),
        says="lets anon delete any row",
    ),
    Violation(
        name="a container without a memory limit",
        policy="memory-limit",
        stack="dev",
        resource=REALTIME,
        change=without("memory"),
        says="has no memory limit",
    ),
    Violation(
        name="a memory limit of nothing, which is none",
        policy="memory-limit",
        stack="prod",
        resource=GATEWAY,
        change=set_to(memory=0),
        says="has no memory limit",
    ),
    Violation(
        name="a container's variables in the clear",
        policy="secrets-marked",
        stack="prod",
        resource=REALTIME,
        change=revealed("envs"),
        says="API_JWT_SECRET holds a secret and is not marked as one",
    ),
    Violation(
        name="the tenant's secret in the clear",
        policy="secrets-marked",
        stack="prod",
        resource=TENANT,
        change=revealed("jwt_secret"),
        says="jwt_secret holds a secret and is not marked as one",
    ),
    Violation(
        name="the keys of kong.yml in the clear",
        policy="secrets-marked",
        stack="dev",
        resource=GATEWAY,
        change=lambda declared: declared["uploads"][0].update(content=declared["uploads"][0]["content"]["value"]),
        says="uploads[0].content holds a secret and is not marked as one",
    ),
]
HARMLESS = [
    Harmless(
        name="a digest instead of a tag", stack="prod",
        changes={REALTIME: set_to(image="supabase/realtime@sha256:" + "0" * 64)},
    ),
    Harmless(
        name="a tag at a registry with a port", stack="prod",
        changes={GATEWAY: set_to(image="registry.example.com:5000/kong:2.8.1")},
    ),
    Harmless(
        name="a database on another address of loopback", stack="prod", changes={POSTGRES: published_on("127.0.0.2")}
    ),
    Harmless(name="Realtime on another port of every interface", stack="dev", changes={REALTIME: published_on(None)}),
    Harmless(
        name="a development secret on the development stack", stack="dev",
        changes={REALTIME: variable("DB_PASSWORD", "postgres")},
    ),
    Harmless(
        name="a user with the name of a well-known password", stack="prod",
        changes={REALTIME: variable("DB_USER", "postgres")},
    ),
    Harmless(name="anonymous on loopback", stack="dev", changes={GATEWAY: kong(anonymous="anon")}),
    Harmless(name="a public gateway that checks the key", stack="staging", changes={GATEWAY: published_on("10.0.0.5")}),
    Harmless(
        name="anybody may write on a stack to try things", stack="staging",
        changes={TABLE: policies({"command": "all", "roles": ["anon"], "using": "true"})},
    ),
    Harmless(
        name="anybody may insert some rows in production", stack="prod",
        changes={TABLE: policies({"command": "insert", "roles": ["anon"], "check": "depth_m > 0"})},
    ),
    Harmless(
        name="anybody may read any row in production", stack="prod",
        changes={TABLE: policies({"command": "select", "roles": ["anon"], "using": "true"})},
    ),
    Harmless(
        name="those who logged in may write any row in production", stack="prod",
        changes={TABLE: policies({"command": "all", "roles": ["authenticated"], "using": "true"})},
    ),
    Harmless(
        name="anybody may delete the rows that a restrictive policy leaves", stack="prod",
        changes={
            TABLE: policies(
                {"command": "delete", "roles": ["anon"], "using": "true"},
                {"command": "all", "roles": ["anon"], "using": "not active", "permissive": False},
            )
        },
    ),
    Harmless(
        name="what a preview does not know yet of the publication", stack="prod",
        changes={PUBLICATION: set_to(allTables=UNKNOWN_BOOLEAN_VALUE)},
    ),
    Harmless(name="nothing published", stack="prod", changes={PUBLICATION: set_to(tables=[])}),
    Harmless(
        name="a variable that is no secret in the clear", stack="prod",
        changes={GATEWAY: lambda declared: declared["envs"].append("KONG_PREFIX=/usr/local/kong")},
    ),
]  # fmt: skip


def test_every_policy_ends_a_preview(pack: PolicyPack) -> None:
    levels = pack.policies()
    assert set(levels) == {violation.policy for violation in VIOLATIONS}
    assert {name: level for name, level in levels.items() if level != "MANDATORY"} == {"secrets-marked": "REMEDIATE"}


@pytest.mark.parametrize("stack", STACKS)
def test_the_project_s_own_stacks_violate_nothing(stack: str, pack: PolicyPack, programs: dict[str, Program]) -> None:
    assert pack.violations(stack, programs[stack]) == {}


@pytest.mark.parametrize("violation", VIOLATIONS, ids=str)
def test_a_policy_objects_to(violation: Violation, pack: PolicyPack, programs: dict[str, Program]) -> None:
    changes = {violation.resource: violation.change, **violation.beside}
    found = pack.violations(violation.stack, programs[violation.stack], changes)
    assert list(found) == [(violation.policy, violation.resource)]
    assert violation.says in found[violation.policy, violation.resource]


@pytest.mark.parametrize("harmless", HARMLESS, ids=str)
def test_no_policy_objects_to(harmless: Harmless, pack: PolicyPack, programs: dict[str, Program]) -> None:
    assert pack.violations(harmless.stack, programs[harmless.stack], harmless.changes) == {}


def test_no_objection_shows_a_secret(pack: PolicyPack, programs: dict[str, Program]) -> None:
    revealing = {label: revealed("envs") for label in (POSTGRES, REALTIME)} | {TENANT: revealed("jwt_secret")}
    words = " ".join(pack.violations("prod", programs["prod"], revealing).values())
    secrets = [
        plain(value)
        for resource in programs["prod"].resources
        for value in resource.inputs.values()
        if isinstance(value, Secret) and isinstance(plain(value), str)
    ]
    assert "DB_PASSWORD" in words
    assert secrets
    assert not [secret for secret in secrets if secret in words]


def test_a_team_names_its_own_production_stacks(pack: PolicyPack) -> None:
    open_stack = run_program("live", with_secrets(stack_file("dev")))
    assert pack.violations("live", open_stack) == {}
    pack.configure({"no-open-write-in-production": {"production": ["live"]}})
    try:
        assert list(pack.violations("live", open_stack)) == [("no-open-write-in-production", TABLE)]
    finally:
        pack.configure({})


def test_the_short_form_cannot_open_a_production_table(pack: PolicyPack) -> None:
    config = with_secrets(stack_file("prod"))
    config[f"{NAMESPACE}:tables"] = '[{"table": "public.wells", "read": ["anon"], "write": ["anon"]}]'
    assert list(pack.violations("prod", run_program("prod", config))) == [("no-open-write-in-production", TABLE)]
