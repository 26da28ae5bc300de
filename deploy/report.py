"""What a preview found out, as Markdown that a person reads in an issue, a pull request or a job's summary."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from deploy.events import Objection, Outcome, Step

LONGEST = 200
"""Characters of a value that are shown."""
DRIFT = {
    "create": "is declared and gone: `make up` makes it again",
    "update": "was changed by hand: `make up` changes it back",
    "replace": "was changed by hand: `make up` replaces it",
    "delete": "is not declared any more: `make up` removes it",
}
PREVIEW = {
    "create": "will be made",
    "update": "will be changed",
    "replace": "will be replaced: stopped, and made anew",
    "delete": "will be removed",
}
FOLLOWS = "follows from another change"


def drift_report(stack: str, outcome: Outcome) -> str:
    """What differs between a stack and the world, and what to do."""
    return _document(f"Drift of stack {stack}", _drift(stack, outcome))


def preview_report(stack: str, outcome: Outcome) -> str:
    """What an update of a stack would change, and what the policy pack says against it."""
    return _document(f"Preview of stack {stack}", _preview(outcome))


def unobservable_report(stack: str, fault: str) -> str:
    """Drift that hides all other: what makes it impossible to look."""
    return _document(f"Drift of stack {stack}", iter([f"Nothing else can be compared: {fault}."]))


def _document(title: str, paragraphs: Iterator[str]) -> str:
    return "\n\n".join([f"# {title}", *paragraphs]) + "\n"


def _drift(stack: str, outcome: Outcome) -> Iterator[str]:
    yield from _errors(outcome)
    if outcome.steps:
        yield f"{_resources(outcome)} not as declared:"
        yield _table(outcome.steps, DRIFT, "as declared", "seen", declared_first=True)
        yield (
            f"**What to do.** `make up STACK={stack}` brings all of it back to what is declared. To keep a change "
            f"instead, declare it in `Pulumi.{stack}.yaml`; `make drift STACK={stack}` then finds nothing."
        )
    elif not outcome.errors:
        yield "The world is as declared: nothing to do."
    yield from _warnings(outcome)


def _preview(outcome: Outcome) -> Iterator[str]:
    if not any(objection.mandatory for objection in outcome.objections):
        yield from _errors(outcome)  # else there is one, that the preview failed, and this is why
    if outcome.objections:
        yield "**The policy pack objects:**"
        yield "\n".join(map(_objection, outcome.objections))
    if outcome.steps:
        yield f"{_resources(outcome)} to change:"
        yield _table(outcome.steps, PREVIEW, "now", "afterwards", declared_first=False)
    elif not outcome.errors:
        yield "Nothing to change."
    yield from _warnings(outcome)


def _resources(outcome: Outcome) -> str:
    count = sum(not step.follows for step in outcome.steps) or len(outcome.steps)
    return "1 resource" if count == 1 else f"{count} resources"


def _errors(outcome: Outcome) -> Iterator[str]:
    if outcome.errors:
        yield "**The comparison did not come to its end:**"
        yield "\n".join(f"- {_cell(error)}" for error in outcome.errors)


def _warnings(outcome: Outcome) -> Iterator[str]:
    if outcome.warnings:
        yield "\n".join(f"- Warning: {_cell(warning)}" for warning in outcome.warnings)


def _objection(objection: Objection) -> str:
    level = "" if objection.mandatory else " (advice)"
    return f"- `{objection.policy}`{level}, {objection.kind} {_code(objection.name)}: {_cell(objection.words)}"


def _table(steps: Sequence[Step], meanings: dict[str, str], *heads: str, declared_first: bool) -> str:
    rows = [f"| resource | property | {heads[0]} | {heads[1]} |", "|---|---|---|---|"]
    for step in steps:
        meaning = FOLLOWS if step.follows else meanings[step.operation]
        resource = f"{step.kind} {_code(step.name)} {meaning}"
        if not step.differences:
            what = "a secret, which is not shown" if step.operation in ("update", "replace") else ""
            rows.append(f"| {resource} | {what} | | |")
        for difference in step.differences:
            values = [_code(difference.declared), _code(difference.now)]
            first, second = values if declared_first else reversed(values)
            rows.append(f"| {resource} | {_code(difference.path)} | {first} | {second} |")
            resource = ""
    return "\n".join(rows)


def _code(text: str) -> str:
    """A value in a cell, whatever characters it has."""
    short = text if len(text) <= LONGEST else f"{text[:LONGEST]}…"
    fence = "``" if "`" in short else "`"
    pad = " " if "`" in short else ""
    return f"{fence}{pad}{_cell(short)}{pad}{fence}"


def _cell(text: str) -> str:
    """Text that does not end its table's cell."""
    return " ".join(text.split()).replace("|", "\\|")
