"""``python -m deploy <command> --stack NAME``: what the Makefile calls."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from deploy import commands, rotation
from deploy.docker_failures import DOCKER_ERRORS, docker_failure
from deploy.errors import DeployError
from deploy.scrape import EXPORTER
from settings import DEVELOPMENT_STACK, SettingsError

INTERRUPTED = 130
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
    """The command line. Each command sets ``run``, which takes the parsed arguments."""
    top = argparse.ArgumentParser(prog="python -m deploy", description="Runs the stack with everything it needs.")
    verbs = top.add_subparsers(dest="command", required=True)
    up = verbs.add_parser("up", help="make or update the stack, and prove that it works")
    up.add_argument("--started", type=float, default=None, help="when the work began, seconds since 1970")
    up.set_defaults(run=lambda given: commands.up(given.stack, given.started))
    rotate = verbs.add_parser("rotate", help="give a secret another value, everywhere")
    rotate.add_argument("secret", choices=list(rotation.SECRETS))
    rotate.set_defaults(run=lambda given: commands.rotate(given.stack, given.secret))
    backup = verbs.add_parser("backup", help="write the application's schemas and rows into a new file")
    backup.add_argument("--to", type=Path, metavar="FILE", help="default: backups/STACK-MOMENT.dump")
    backup.set_defaults(run=lambda given: commands.back_up(given.stack, given.to))
    restore = verbs.add_parser("restore", help="put a backup in the place of what the database holds")
    restore.add_argument("file", type=Path, metavar="FILE", help="what `backup` wrote")
    restore.add_argument("--replace", action="store_true", help="lose the rows that the database holds now")
    restore.set_defaults(run=lambda given: commands.restore(given.stack, given.file, replace=given.replace))
    scraping = verbs.add_parser("scrape-config", help="print what Prometheus is told about the stack")
    scraping.add_argument("--token-file", type=Path, metavar="FILE", help="default: observability/STACK-metrics.token")
    scraping.add_argument("--exporter", default=EXPORTER, metavar="HOST:PORT", help="of `python -m doctor metrics`")
    scraping.set_defaults(run=lambda given: commands.scrape_config(given.stack, given.token_file, given.exporter))
    report = verbs.add_parser("report", help="drift or preview as Markdown on stdout, with the same exit code")
    report.add_argument("of", choices=list(REPORTS))
    report.set_defaults(run=lambda given: REPORTS[given.of](given.stack))
    for name, (_, text) in COMMANDS.items():
        verbs.add_parser(name, help=text).set_defaults(run=lambda given: COMMANDS[given.command][0](given.stack))
    for verb in verbs.choices.values():
        verb.add_argument("--stack", default=DEVELOPMENT_STACK, help="default: %(default)s")
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; 1 for what the user has to mend first, INTERRUPTED, else the exit code of what ran."""
    chosen = parser().parse_args(arguments)
    try:
        code: int = chosen.run(chosen)
    except (SettingsError, DeployError) as faulty:
        print(*faulty.faults, sep="\n", file=sys.stderr)
        return 1
    except DOCKER_ERRORS as failed:
        print(*docker_failure(failed).faults, sep="\n", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    return code


if __name__ == "__main__":
    sys.exit(main())
