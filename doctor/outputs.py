"""What the doctor knows of a stack: its outputs, and nothing else."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError

from deploy.backend import choose
from deploy.errors import DeployError
from deploy.pulumi_cli import INSTALLED
from settings import ApiRole, Event

PROJECT = Path(__file__).resolve().parent.parent
PULUMI_TIMEOUT_SECONDS = 60

Port = Annotated[int, Field(ge=1, le=65_535)]


class OutputsError(Exception):
    """A stack's outputs could not be read; the message is one line with the cure."""


class Output(BaseModel):
    """A value the program exports. What newer programs export besides is passed over."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class Database(Output):
    """Where the database listens, as seen from this machine; of an external one also how TLS is used."""

    host: str
    port: Port
    name: str
    user: str
    external: bool = False
    sslmode: str | None = None
    ca_file: str | None = None

    @property
    def server(self) -> dict[str, Any]:
        """Where the database is, as libpq parameters. A relative ca_file is one of the project's."""
        ca_file = None if self.ca_file is None else str(PROJECT / self.ca_file)
        tls = {"sslmode": self.sslmode, "sslrootcert": ca_file}
        where = {"host": self.host, "port": self.port, "dbname": self.name, "user": self.user}
        return where | {name: value for name, value in tls.items() if value is not None}


class PublishedTable(Output):
    """A declared table, and which roles its policies let read and write."""

    table: str = Field(pattern=r"^[^.]+\.[^.]+$", description="schema.name")
    read: tuple[ApiRole, ...] = ()
    write: tuple[ApiRole, ...] = ()
    events: tuple[Event, ...] = ()

    @property
    def schema_name(self) -> str:
        return self.table.partition(".")[0]

    @property
    def name(self) -> str:
        return self.table.partition(".")[2]


class Outputs(Output):
    """The outputs of one stack, as ``pulumi stack output --json --show-secrets`` prints them."""

    url: str
    realtime_url: str
    rest_url: str
    tenant: str
    anon_key: str = Field(repr=False)
    anon_key_expires: datetime
    service_role_key: SecretStr
    database: Database
    database_password: SecretStr
    tables: tuple[PublishedTable, ...]

    @property
    def socket_url(self) -> str:
        """What a Realtime client library takes: the websocket's URL without its last part, /websocket."""
        return self.realtime_url.rstrip("/").removesuffix("/websocket")


def parse(text: str, *, source: str) -> Outputs:
    """The outputs in a JSON document. ``source`` names where it came from, for the error.

    Raises OutputsError when it is not JSON, empty, or lacks an output. No value is ever part of the message.
    """
    try:
        document = json.loads(text or "{}")
    except json.JSONDecodeError as invalid:
        raise OutputsError(
            f"{source} is not JSON (line {invalid.lineno}); write it with `pulumi stack output --json --show-secrets`"
        ) from None
    if not isinstance(document, dict):
        raise OutputsError(f"{source} is not a JSON object; write it with `pulumi stack output --json --show-secrets`")
    if not document:
        raise OutputsError(f"{source} has no outputs yet; run `make up` first")
    if document.get("database_password") == "[secret]":
        raise OutputsError(f"{source} has its secrets masked; write it with --show-secrets")
    try:
        return Outputs.model_validate(document)
    except ValidationError as invalid:
        faults = "; ".join(
            f"{'.'.join(str(part) for part in error['loc'])}: {error['msg'].lower()}"
            for error in invalid.errors(include_input=False, include_url=False)
        )
        raise OutputsError(
            f"{source} does not have the outputs of this program ({faults}); run `make up` to bring it up to date"
        ) from None


def read_file(name: str) -> Outputs:
    """The outputs in a file, or on standard input when the name is ``-``. Raises OutputsError."""
    source = "standard input" if name == "-" else name
    try:
        text = sys.stdin.read() if name == "-" else Path(name).read_text(encoding="utf-8")
    except OSError as failed:
        raise OutputsError(
            f"{source} cannot be read: {failed.strerror}; name a file, or - for standard input"
        ) from None
    except UnicodeDecodeError:
        raise OutputsError(f"{source} is no text; write it with `pulumi stack output --json --show-secrets`") from None
    return parse(text, source=source)


def read_stack(stack: str, *, project: Path = PROJECT, environ: Mapping[str, str] = os.environ) -> Outputs:
    """The outputs of a stack, asked of the Pulumi CLI. Raises OutputsError."""
    try:
        backend = choose(project, stack, environ)
    except DeployError as refused:
        raise OutputsError("; ".join(refused.faults)) from None
    command = [pulumi(project, environ), "stack", "output", "--json", "--show-secrets"]
    try:
        answer = subprocess.run(  # noqa: S603 (the arguments are ours)
            [*command, "--non-interactive", "--stack", stack],
            cwd=project,
            env={**environ, **backend.environ},
            capture_output=True,
            text=True,
            timeout=PULUMI_TIMEOUT_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise OutputsError(
            f"stack {stack}: the Pulumi CLI did not answer within {PULUMI_TIMEOUT_SECONDS} s; "
            "look whether its backend can be reached (`pulumi whoami --verbose`)"
        ) from None
    if answer.returncode != 0:
        raise OutputsError(_refusal(stack, answer.stderr))
    return parse(answer.stdout, source=f"stack {stack}")


def pulumi(project: Path, environ: Mapping[str, str]) -> str:
    """The Pulumi CLI that `make up` used: its own in the project if it needed one, else that on PATH.

    Raises OutputsError when there is neither.
    """
    own = project / INSTALLED / "bin" / "pulumi"
    found = str(own) if own.is_file() else shutil.which("pulumi", path=environ.get("PATH"))
    if found is None:
        raise OutputsError(
            f"the Pulumi CLI is neither in {INSTALLED} nor on PATH; run `make up`, which installs it, "
            "or hand the outputs over with --outputs FILE"
        )
    return found


def _refusal(stack: str, stderr: str) -> str:
    """One line for what the CLI wrote about its failure."""
    if "no stack named" in stderr:
        return f"there is no stack {stack}; run `make up` (STACK={stack}), or name another with --stack"
    if "passphrase" in stderr:
        return f"stack {stack}: its secrets cannot be decrypted; set PULUMI_CONFIG_PASSPHRASE to the stack's passphrase"
    if "logged in" in stderr or "PULUMI_ACCESS_TOKEN" in stderr:
        return "Pulumi is not logged in and the project has no state of its own; run `make up` first, or `pulumi login`"
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    return f"stack {stack}: the Pulumi CLI failed: {lines[0] if lines else 'without a message'}"
