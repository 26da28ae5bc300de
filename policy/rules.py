"""The rules of the policy pack: each looks at what is declared and yields what is wrong with it, fault and cure."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from ipaddress import AddressValueError, IPv4Address
from typing import Any

import yaml

from settings import DEVELOPMENT_STACK, WELL_KNOWN_SECRETS, ApiRole, Command

CONTAINER = "docker:index/container:Container"
PUBLICATION = "postgresql:index/publication:Publication"
TABLE_SECURITY = "pulumi-python:dynamic/index:TableSecurity"
POSTGRES_PORT = 5432
PRODUCTION = ("prod", "production")
"""Names of production stacks, unless the pack's config says others."""
UNMISTAKABLE_BYTES = 16
"""A well-known secret as long as this is one wherever it stands; a shorter one, like `postgres`, may be a name."""
SECRET_NAME = re.compile(r"(?<!changed_)(password|secret|enc_key|private_key)", re.IGNORECASE)
"""Names of properties and of environment variables whose values are secrets. RealtimeTenant's ``changed_secrets``
holds names only."""
EVERYBODY = frozenset({ApiRole.ANON.value, "public"})
"""Roles that people have without logging in; to `public` belongs every role."""
WRITES = {
    Command.INSERT: "check",
    Command.UPDATE: "using",
    Command.DELETE: "using",
    Command.ALL: "using",
}
"""The expression of a policy that says which rows its command may write."""
MARK = ("4dabf18193072939515e22adb298388d", "1b47061264138c4ac30d75fd1eb44270")
"""Key and value by which the engine marks a secret (sdk/go/common/resource/properties.go)."""

Properties = Mapping[str, Any]


def stack_of(urn: str) -> str:
    """The stack in a resource's URN: ``urn:pulumi:<stack>::<project>::<type>::<name>``."""
    return urn.split("::", maxsplit=1)[0].rpartition(":")[2]


def moving_image(container: Properties) -> Iterator[str]:
    """An image whose content may be another tomorrow."""
    image = str(container["image"])
    if "@" in image:
        return
    _, colon, tag = image.rpartition("/")[2].partition(":")
    if not colon:
        yield f"image {image} has no tag, which means `latest`; pin a version or a digest"
    elif tag == "latest":
        yield f"image {image} is another one after every release; pin a version or a digest"


def exposed_database(container: Properties) -> Iterator[str]:
    """A database that other machines can reach."""
    variables = container.get("envs") or ()
    is_postgres = any(str(variable).startswith("PGDATA=") for variable in variables)
    for port in container.get("ports") or ():
        if (is_postgres or int(port["internal"]) == POSTGRES_PORT) and not _on_loopback(port.get("ip")):
            yield (
                f"the database's port {int(port['internal'])} is published on {port.get('ip') or 'every interface'}; "
                "publish it on 127.0.0.1 and let others in through a tunnel"
            )


def _on_loopback(address: str | None) -> bool:
    try:
        return IPv4Address(address or "0.0.0.0").is_loopback  # noqa: S104 - Docker's default, compared
    except AddressValueError:
        return address == "::1"


def development_secrets(properties: Any, stack: str) -> Iterator[str]:
    """A secret that anyone can read in a public repository, on a stack that matters."""
    if stack == DEVELOPMENT_STACK:
        return
    for path, name, text in _texts(properties):
        known = text in WELL_KNOWN_SECRETS
        if known and (SECRET_NAME.search(name) or len(text) >= UNMISTAKABLE_BYTES):
            yield f"{path} holds a development secret that anyone can read; `make secrets` generates one for this stack"


def anonymous_on_a_public_gateway(container: Properties, stack: str, production: Sequence[str]) -> Iterator[str]:
    """A key check that lets everybody through, where everybody can come.

    Public is a gateway that listens beyond loopback, and the gateway of a production stack in any case: a proxy on
    the same machine stands before it.
    """
    ports = [port.get("ip") for port in container.get("ports") or ()]
    beyond = [address for address in ports if not _on_loopback(address)]
    if not beyond and stack not in production:
        return
    where = f"on {beyond[0] or 'every interface'}" if beyond else "of a production stack"
    for upload in container.get("uploads") or ():
        if str(upload["file"]).endswith((".yml", ".yaml")) and _lets_anonymous_in(yaml.safe_load(upload["content"])):
            yield (
                f"{upload['file']}: key-auth has `anonymous`, so the gateway {where} checks no key; "
                "set gateway.anonymous to false"
            )


def _lets_anonymous_in(document: Any) -> bool:
    if isinstance(document, dict):
        if document.get("name") == "key-auth" and (document.get("config") or {}).get("anonymous"):
            return True
        return any(map(_lets_anonymous_in, document.values()))
    return isinstance(document, list) and any(map(_lets_anonymous_in, document))


def unsecured_tables(publication: Properties, secured: Mapping[str, bool]) -> Iterator[str]:
    """A published table whose rows everybody with the privilege sees. ``secured``: row level security by table."""
    # Before the first update the provider has not said yet what nobody declared: it is neither true nor false.
    if publication.get("allTables") is True:
        yield "publishes every table, also those without row level security; name the tables in `tables`"
    for table in publication.get("tables") or ():
        if table not in secured:
            yield f"publishes {table}, whose row level security nobody declares; declare the table in `tables`"
        elif not secured[table]:
            yield f"publishes {table} without row level security; TableSecurity must have row_security"


def open_writes(security: Properties, stack: str, production: Sequence[str]) -> Iterator[str]:
    """A policy by which anybody on the internet may write any row of a production table."""
    if stack not in production:
        return
    policies = list(security.get("policies") or ())
    for policy in policies:
        command = Command(policy["command"])
        if command not in WRITES or not policy.get("permissive", True):
            continue
        roles = EVERYBODY.intersection(policy["roles"])
        if roles and _always_true(policy.get(WRITES[command])) and not _narrowed(command, roles, policies):
            who, does = " and ".join(sorted(roles)), "write" if command is Command.ALL else command.value
            yield (
                f"policy “{policy['name']}” of {security['schema']}.{security['table']} lets {who} {does} any row; "
                "leave anon out of `write`, or say in the policy which rows"
            )


def _always_true(expression: str | None) -> bool:
    bare = re.sub(r"[\s()]", "", expression or "").lower().removesuffix("::boolean")
    return bare in ("true", "'t'", "1=1")


def _narrowed(command: Command, roles: frozenset[str], policies: Sequence[Properties]) -> bool:
    """Whether a restrictive policy says which rows, for the same command and roles."""
    return any(
        not policy.get("permissive", True)
        and Command(policy["command"]) in (command, Command.ALL)
        and ("public" in policy["roles"] or roles <= set(policy["roles"]))
        and not _always_true(policy.get(WRITES[command]) or policy.get("using"))
        for policy in policies
    )


def unlimited_memory(container: Properties) -> Iterator[str]:
    """A container that can take the whole machine's memory."""
    if not container.get("memory"):
        yield "has no memory limit; set `memory`, in MiB"


def unmarked_secrets(properties: Any) -> Iterator[str]:
    """A secret that the state would hold in plain text. ``properties`` with the engine's secret marks."""
    for path, name, text in _texts(properties):
        if text and (SECRET_NAME.search(name) or "keyauth_credentials" in text):
            yield f"{path} holds a secret and is not marked as one; wrap it in pulumi.Output.secret"


def _texts(value: Any, path: str = "", name: str = "") -> Iterator[tuple[str, str, str]]:
    """Every text outside of a secret mark: its path, the name that says what it is, and the text.

    The name of an environment variable is what it is: ``envs[3] DB_PASSWORD``.
    """
    if isinstance(value, str):
        variable, equals, content = value.partition("=")
        if equals and re.fullmatch(r"[A-Z][A-Z0-9_]*", variable):
            yield f"{path} {variable}", variable, content
        else:
            yield path, name, value
    elif isinstance(value, Mapping):
        if value.get(MARK[0]) == MARK[1]:
            return
        for key, item in value.items():
            if not str(key).startswith("__"):
                yield from _texts(item, f"{path}.{key}" if path else str(key), str(key))
    elif isinstance(value, Sequence):
        for index, item in enumerate(value):
            yield from _texts(item, f"{path}[{index}]", name)
