"""``python -m deploy <command> --stack NAME``: what the Makefile calls."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence

from deploy import commands, rotation
from deploy.errors import DeployError
from settings import DEVELOPMENT_STACK, SettingsError

COMMANDS: dict[str, tuple[Callable[[str], int], str]] = {
    "preview": (commands.preview, "show what an update would change"),
    "drift": (commands.drift, "exit 0 when the world is as declared, 7 when it is not"),
    "probe": (commands.probe, "prove that an insert reaches a subscriber"),
    "secrets": (commands.make_secrets, "generate the secrets that the stack lacks"),
    "destroy": (commands.destroy, "remove the stack"),
    "env": (commands.environment, "print the variables with which `pulumi` by hand sees the same stack"),
}

REPORTS: dict[str, Callable[[str], int]] = {"drift": commands.report_drift, "preview": commands.report_preview}


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(prog="python -m deploy", description="Runs the stack with everything it needs.")
    verbs = top.add_subparsers(dest="command", required=True)
    up = verbs.add_parser("up", help="make or update the stack, and prove that it works")
    up.add_argument("--started", type=float, default=None, help="when the work began, seconds since 1970")
    rotate = verbs.add_parser("rotate", help="give a secret another value, everywhere")
    rotate.add_argument("secret", choices=list(rotation.SECRETS))
    report = verbs.add_parser("report", help="drift or preview as Markdown on stdout, with the same exit code")
    report.add_argument("of", choices=list(REPORTS))
    for verb in (up, rotate, report, *(verbs.add_parser(name, help=text) for name, (_, text) in COMMANDS.items())):
        verb.add_argument("--stack", default=DEVELOPMENT_STACK, help="default: %(default)s")
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; 1 for what the user has to mend first, else the exit code of what ran."""
    chosen = parser().parse_args(arguments)
    try:
        if chosen.command == "up":
            return commands.up(chosen.stack, chosen.started)
        if chosen.command == "rotate":
            return commands.rotate(chosen.stack, chosen.secret)
        if chosen.command == "report":
            return REPORTS[chosen.of](chosen.stack)
        return COMMANDS[chosen.command][0](chosen.stack)
    except SettingsError as faulty:
        print(*faulty.faults, sep="\n", file=sys.stderr)
    except DeployError as faulty:
        print(*faulty.faults, sep="\n", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
