"""What a plan says of each resource, with every secret hidden."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from plan.program import Program, Resource, Secret
from rehearsal.applier import PROVIDER, statements

HIDDEN = "[secret]"
TOKEN = re.compile(r"eyJ[\w-]+\.eyJ[\w-]+\.[\w-]+", re.ASCII)
"""A JSON Web Token: header and claims are JSON objects, which begin with the same letters."""
ENVIRONMENT = "envs"
UPLOADS = "uploads"
SECONDARY = frozenset(
    {
        PROVIDER, "destroyGraceSeconds", "healthcheck", "labels", "logDriver", "logOpts", "memorySwap", "mustRun",
        "stopTimeout", "undeclared_privileges", "wait", "waitTimeout",
    }
)  # fmt: skip
"""Inputs that are the same on every resource of a type, and say nothing of a stack."""
CONDITIONS = {
    "DatabaseRoles": "each where the server lacks it",
    "AuthSchema": "each where the database lacks it",
    "ApplicationMigrations": "each file once",
    "TableSecurity": "as on a new table, in one transaction; what differs on a table that exists is changed alone",
    "PublicationHandover": "unless it publishes what is not declared, which is an error",
}
"""When the statements of a dynamic resource run, by its type's last part."""


@dataclass(frozen=True, kw_only=True)
class Block:
    """A text of several lines in a language of its own."""

    title: str
    language: str
    text: str


@dataclass(frozen=True, kw_only=True)
class Description:
    """A resource as a person reads it."""

    type: str
    name: str
    component: bool
    depth: int
    """How many components it is in."""
    after: tuple[str, ...]
    """Names of the resources it waits for."""
    inputs: Mapping[str, Any]
    blocks: tuple[Block, ...]


def describe(program: Program) -> Iterator[Description]:
    """Every resource in dependency order. Raises UnknownResourceError for one whose SQL is not known."""
    parents = {resource.urn: resource.parent for resource in program.resources}
    secrets = program.config.secrets
    for resource in program.resources:
        yield Description(
            type=resource.type,
            name=resource.name,
            component=not resource.custom,
            depth=_depth(resource.urn, parents),
            after=tuple(other.name for other in program.depends_on(resource) if other.custom),
            inputs={
                key: _shown(key, value, secrets)
                for key, value in sorted(resource.inputs.items())
                if key not in SECONDARY and key != UPLOADS
            },
            blocks=(*_sql(resource, program), *_uploads(resource, secrets)),
        )


def outputs(program: Program) -> dict[str, Any]:
    """The stack's outputs, as far as they are not secret."""
    return {key: _shown(key, value, program.config.secrets) for key, value in sorted(program.outputs.items())}


def hide(text: str, secrets: Sequence[str]) -> str:
    """A text with every secret and every JSON Web Token in it replaced."""
    for secret in secrets:
        text = text.replace(secret, HIDDEN)
    return TOKEN.sub(HIDDEN, text)


def _depth(urn: str, parents: Mapping[str, str]) -> int:
    depth = 0
    while urn := parents.get(urn, ""):
        depth += 1
    return depth


def _shown(key: str, value: Any, secrets: Sequence[str]) -> Any:
    if isinstance(value, Secret):
        # The whole list of variables is marked, for the sake of the few that are secrets.
        return _hidden_within(value.value, secrets) if key == ENVIRONMENT else HIDDEN
    match value:
        case Mapping():
            return {inner: _shown(inner, item, secrets) for inner, item in sorted(value.items())}
        case list():
            return [_shown("", item, secrets) for item in value]
        case _:
            return _hidden_within(value, secrets)


def _hidden_within(value: Any, secrets: Sequence[str]) -> Any:
    if isinstance(value, list):
        return [_hidden_within(item, secrets) for item in value]
    return hide(value, secrets) if isinstance(value, str) else value


def _sql(resource: Resource, program: Program) -> Iterator[Block]:
    texts = [statement.as_string(None) for statement in statements(resource, program.config.project)]
    if texts:
        condition = CONDITIONS.get(resource.kind)
        yield Block(
            title=f"SQL, {condition}" if condition else "SQL",
            language="sql",
            text=hide(";\n".join(texts) + ";", program.config.secrets),
        )


def _uploads(resource: Resource, secrets: Sequence[str]) -> Iterator[Block]:
    uploads = resource.inputs.get(UPLOADS, ())
    for upload in uploads.value if isinstance(uploads, Secret) else uploads:
        content = upload["content"]
        text = content.value if isinstance(content, Secret) else content
        language = "yaml" if upload["file"].endswith((".yml", ".yaml")) else "sql"
        yield Block(title=f"file {upload['file']}", language=language, text=hide(text, secrets))
