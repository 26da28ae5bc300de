"""Prints what the program would declare, in dependency order: resources, SQL, kong.yml; secrets hidden."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import yaml
from rich.console import Console
from rich.syntax import Syntax
from rich.text import Text

from plan import description, program
from plan.description import Description
from providers.connection import DatabaseError
from rehearsal.applier import UnknownResourceError

INDENT = 2


def main(arguments: Sequence[str] | None = None) -> int:
    """0 when the plan was printed, 1 when the config or the program has a fault, which is printed instead."""
    parser = argparse.ArgumentParser(prog="python -m plan", description=__doc__)
    parser.add_argument("--stack", default="dev", help="the stack whose Pulumi.<stack>.yaml is read (%(default)s)")
    stack = parser.parse_args(arguments).stack
    console = Console(highlight=False)
    try:
        planned = program.run(program.stack_config(stack))
        described = list(description.describe(planned))
    except (program.PlanError, DatabaseError, UnknownResourceError) as fault:
        print(fault, file=sys.stderr)
        return 1
    custom = sum(not one.component for one in described)
    console.print(Text(f"Stack {stack}: {custom} resources, in the order in which they are made", style="bold"))
    number = 0
    for one in described:
        number += not one.component
        _print(one, number, console)
    console.print(Text("Outputs", style="bold"))
    _print_indented(_yaml(description.outputs(planned)), INDENT, console)
    if planned.config.missing:
        missing = ", ".join(planned.config.missing)
        note = f"The stack has no {missing} yet: `make secrets STACK={stack}` generates them"
        console.print(Text(note, style="yellow"), soft_wrap=True)
    return 0


def _print(one: Description, number: int, console: Console) -> None:
    margin = INDENT * one.depth
    after = f"  after {', '.join(one.after)}" if one.after else ""
    if one.component:
        kind = one.type.rpartition(":")[2]
        _print_indented(Text.assemble((kind, "bold"), f" {one.name}", (after, "dim")), margin, console)
        return
    title = Text.assemble(f"{number}. ", (one.type, "cyan"), " ", (one.name, "bold"), (after, "dim"))
    _print_indented(title, margin, console)
    if one.inputs:
        _print_indented(_yaml(one.inputs), margin + 2 * INDENT, console)
    for block in one.blocks:
        _print_indented(Text(f"{block.title}:", style="italic"), margin + INDENT, console)
        _print_indented(_highlighted(block.text, block.language), margin + 2 * INDENT, console)


def _yaml(document: object) -> Text:
    return _highlighted(yaml.safe_dump(document, sort_keys=False, allow_unicode=True, width=sys.maxsize), "yaml")


def _highlighted(text: str, language: str) -> Text:
    return Syntax(text, language, background_color="default").highlight(text)


def _print_indented(text: Text, columns: int, console: Console) -> None:
    for line in text.split("\n"):
        console.print(Text(" " * columns if line.plain else "") + line, soft_wrap=True)


if __name__ == "__main__":
    sys.exit(main())
