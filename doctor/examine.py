"""The subcommands ``examine`` and ``causes`` of ``python -m doctor``."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from psycopg import ProgrammingError
from psycopg.conninfo import conninfo_to_dict
from pydantic import SecretStr
from rich.console import Console

from doctor import causes, outputs
from doctor.checks.setup import Setup, of_outputs, read_config
from doctor.examination import examine
from doctor.report import show
from settings import DEVELOPMENT_STACK

COULD_NOT_LOOK = 3
DSN_VARIABLE = "DOCTOR_DSN"
ANON_KEY_VARIABLE = "DOCTOR_ANON_KEY"
NO_CONFIG = "only the outputs were handed over, not the stack's settings"


class UnusableArgumentError(Exception):
    """An argument that leads to no set-up; the message has the cure."""


def add_arguments(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the two subcommands. Each sets ``run`` in the parsed arguments."""
    examining = subparsers.add_parser(
        "examine",
        allow_abbrev=False,  # or --anon-key would be taken for --anon-key-file, and a key for the name of a file
        help="look for what is wrong, with cause and cure (this is what runs without a command)",
        description="Looks at a running stack, or at any Realtime set-up given by URL and DSN, and says what is wrong. "
        "Reads only, unless --probe is given. Exit 0 healthy, 1 warnings, 2 failures, 3 could not look.",
    )
    which = examining.add_argument_group("a stack of this program")
    which.add_argument("--stack", help=f"its name (default: {DEVELOPMENT_STACK})")
    which.add_argument("--outputs", metavar="FILE", help="its outputs as JSON in a file; - for standard input")
    other = examining.add_argument_group(
        "any other set-up",
        f"The anon key is taken from {ANON_KEY_VARIABLE} or --anon-key-file, never from an argument.",
    )
    other.add_argument("--url", help="URL of the gateway, as supabase-js takes it")
    other.add_argument(
        "--dsn",
        help=f"the database, without its password (PGPASSWORD or ~/.pgpass has it); {DSN_VARIABLE} may hold all of it",
    )
    other.add_argument("--anon-key-file", metavar="FILE", help="file with the anon key")
    other.add_argument("--tenant", help="the tenant that the gateway should reach")
    other.add_argument("--realtime-url", metavar="URL", help="Realtime itself, without the gateway")
    examining.add_argument("--probe", action="store_true", help="insert rows too, receive their events, remove them")
    examining.add_argument("--json", action="store_true", help="print the examination as JSON (docs/doctor.md)")
    examining.add_argument("--verbose", "-v", action="store_true", help="show every check and what it saw")
    examining.set_defaults(run=run)
    naming = subparsers.add_parser("causes", help="list every fault that examine can name")
    naming.add_argument("--markdown", action="store_true", help="as the tables of docs/failures.md")
    naming.set_defaults(run=run_causes)


def run(given: argparse.Namespace) -> int:
    """Examines the set-up in the arguments and reports; the exit status."""
    try:
        setup = setup_of(given, environ=os.environ)
    except (UnusableArgumentError, outputs.OutputsError) as unusable:
        print(unusable, file=sys.stderr)
        return COULD_NOT_LOOK
    examination = examine(setup, writing=given.probe)
    if given.json:
        print(examination.model_dump_json(indent=2))
    else:
        show(examination, Console(highlight=False), verbose=given.verbose)
    return examination.exit_status


def run_causes(given: argparse.Namespace) -> int:
    """Prints every cause."""
    if given.markdown:
        print(causes.markdown(), end="")
    else:
        for cause in causes.CAUSES.values():
            print(f"{cause.id}: {cause.symptom}")
    return 0


def setup_of(given: argparse.Namespace, *, environ: Mapping[str, str]) -> Setup:
    """The set-up that the arguments and the environment name. Raises UnusableArgumentError or OutputsError."""
    foreign = {name for name in ("url", "dsn", "tenant", "realtime_url", "anon_key_file") if getattr(given, name)}
    if given.stack is None and given.outputs is None and (foreign or environ.get(DSN_VARIABLE)):
        return _foreign(given, environ)
    if foreign:
        named = ", ".join(f"--{name.replace('_', '-')}" for name in sorted(foreign))
        raise UnusableArgumentError(f"{named}: not together with --stack or --outputs, which say it already")
    return stack_setup(given.stack, given.outputs, environ=environ)


def stack_setup(stack: str | None, file: str | None, *, environ: Mapping[str, str]) -> Setup:
    """The set-up of a stack: by its outputs in a file, without its config, or as the Pulumi CLI knows it by its name.

    Raises OutputsError.
    """
    if file is not None:
        return of_outputs(outputs.read_file(file), stack=stack, reason=NO_CONFIG)
    stack = stack or DEVELOPMENT_STACK
    with ThreadPoolExecutor() as both:
        config = both.submit(read_config, stack, environ=environ)
        found = outputs.read_stack(stack, environ=environ)
    sections, reason = config.result()
    return of_outputs(found, stack=stack, config=sections, reason=reason)


def _foreign(given: argparse.Namespace, environ: Mapping[str, str]) -> Setup:
    if given.dsn is not None and _parameters("--dsn", given.dsn).get("password"):
        raise UnusableArgumentError(
            "--dsn: holds a password, which every user of this machine can see in the process list; "
            f"leave it out and set PGPASSWORD, or put the whole DSN into {DSN_VARIABLE}"
        )
    dsn = given.dsn or environ.get(DSN_VARIABLE)
    if dsn is not None:
        _parameters(DSN_VARIABLE, dsn)
    key = environ.get(ANON_KEY_VARIABLE)
    if given.anon_key_file is not None:
        try:
            key = Path(given.anon_key_file).read_text(encoding="ascii").strip()
        except OSError as failed:
            raise UnusableArgumentError(f"--anon-key-file: {given.anon_key_file}: {failed.strerror}") from None
        except UnicodeDecodeError:
            raise UnusableArgumentError(
                f"--anon-key-file: {given.anon_key_file}: is no text with a key; write `pulumi stack output anon_key` "
                "into it"
            ) from None
    return Setup(
        url=given.url,
        tenant=given.tenant,
        anon_key=SecretStr(key) if key else None,
        dsn=SecretStr(dsn) if dsn else None,
        realtime_url=given.realtime_url.rstrip("/") if given.realtime_url else None,
    )


def _parameters(source: str, dsn: str) -> dict[str, object]:
    try:
        return dict(conninfo_to_dict(dsn))
    except ProgrammingError:
        raise UnusableArgumentError(
            f"{source}: is not a DSN; write postgresql://user@host:port/database, or host=… port=… dbname=… user=…"
        ) from None
