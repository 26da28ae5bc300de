"""The report of drift and preview, from what the real engine said of a stack that somebody had changed by hand.

``recorded`` holds event logs of the engine 3.259.0: of a stack as declared; of one whose policies, publication,
privileges, tenant and containers were changed; and of another config for it, to which the policy pack objects.
"""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import pytest

from deploy.events import Difference, Outcome, Step, outcome, read_events
from deploy.report import drift_report, preview_report, unobservable_report

RECORDED = Path(__file__).parent / "recorded"


def recorded(name: str) -> Outcome:
    return outcome(read_events((RECORDED / f"{name}.jsonl").read_text()))


def rows(report: str) -> list[list[str]]:
    """The cells of the table, each resource's repeated in the rows that belong to it."""
    lines = [line for line in report.splitlines() if line.startswith("|")][2:]
    cells = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]
    for before, after in pairwise(cells):
        after[0] = after[0] or before[0]
    return cells


def test_drift_is_told_by_resource_property_declared_and_seen() -> None:
    table = {(row[0].split(" `make")[0], *row[1:]) for row in rows(drift_report("prod", recorded("drift")))}
    wells = "TableSecurity `public.wells` was changed by hand:"
    assert {
        (wells, "`policies[wells_select].using`", "`true`", "`active`"),
        (wells, "`policies[wells_select].roles`", '`["anon", "authenticated"]`', '`["anon"]`'),
        (wells, "`row_security`", "`true`", "`false`"),
        (wells, "`undeclared_privileges.anon`", "`(nothing)`", '`["TRUNCATE"]`'),
        (
            "Publication `publication` was changed by hand:",
            "`publishParams`",
            '`["insert", "update", "delete"]`',
            '`["insert", "delete"]`',
        ),
        ("Container `realtime` was changed by hand:", "`mustRun`", "`true`", "`false`"),
        ("RealtimeTenant `tenant` was changed by hand:", "`max_concurrent_users`", "`200`", "`3`"),
        ("RealtimeTenant `tenant` was changed by hand:", "`changed_secrets`", "`[]`", '`["jwt_secret"]`'),
    } <= table


def test_a_policy_that_is_gone_is_shown_whole_and_the_others_not_at_all() -> None:
    changed = [row[1] for row in rows(drift_report("prod", recorded("drift"))) if "policies" in row[1]]
    assert changed == ["`policies[wells_select].roles`", "`policies[wells_select].using`", "`policies[wells_delete]`"]


def test_a_container_that_is_gone_is_said_to_be() -> None:
    assert "Container `gateway` is declared and gone: `make up` makes it again" in drift_report(
        "prod", recorded("drift")
    )


def test_what_only_follows_from_another_resource_is_not_called_a_change_by_hand() -> None:
    (alias,) = [row for row in rows(drift_report("prod", recorded("drift"))) if "NetworkAlias" in row[0]]
    assert alias[0] == "NetworkAlias `alias` follows from another change"
    assert "6 resources not as declared:" in drift_report("prod", recorded("drift"))


def test_a_drift_report_says_what_to_do_with_the_stack_s_own_name() -> None:
    report = drift_report("prod", recorded("drift"))
    assert report.startswith("# Drift of stack prod\n")
    assert "`make up STACK=prod` brings all of it back" in report
    assert "declare it in `Pulumi.prod.yaml`" in report


def test_no_drift_is_one_sentence() -> None:
    assert drift_report("prod", recorded("nodrift")) == (
        "# Drift of stack prod\n\nThe world is as declared: nothing to do.\n"
    )


def test_a_preview_is_told_as_it_is_now_and_afterwards() -> None:
    report = preview_report("prod", recorded("preview"))
    table = rows(report)
    gateway = "Container `gateway` will be replaced: stopped, and made anew"
    assert [gateway, "`memory`", "`256`", "`300`"] in table
    assert ["RealtimeTenant `tenant` will be changed", "`poll_interval_ms`", "`25`", "`100`"] in table
    assert "4 resources to change:" in report


def test_a_secret_that_changes_is_named_and_not_shown() -> None:
    (uploads,) = [row for row in rows(preview_report("prod", recorded("preview"))) if row[1] == "`uploads`"]
    assert uploads[2:] == ["`[secret]`", "`[secret]`"]


def test_a_preview_tells_what_the_policy_pack_objects_to_and_nothing_else_as_the_reason() -> None:
    report = preview_report("prod", recorded("preview"))
    assert (
        "- `no-anonymous-on-a-public-gateway`, Container `gateway`: /etc/kong/kong.yml: key-auth has `anonymous`, "
        "so the gateway on 0.0.0.0 checks no key; set gateway.anonymous to false"
    ) in report
    assert "preview failed" not in report


def test_an_error_of_the_engine_is_told_and_not_taken_for_a_world_as_declared() -> None:
    event = {"diagnosticEvent": {"severity": "error", "message": "Postgres on 127.0.0.1:54322\nrefuses the password\n"}}
    report = drift_report("prod", outcome([event]))
    assert "**The comparison did not come to its end:**" in report
    assert "- Postgres on 127.0.0.1:54322 refuses the password" in report
    assert "as declared" not in report


def test_a_warning_is_passed_on() -> None:
    event = {"diagnosticEvent": {"severity": "warning", "message": "the anon key ends on 2026-12-24\n"}}
    assert "- Warning: the anon key ends on 2026-12-24" in drift_report("prod", outcome([event]))


def test_what_hides_all_other_drift_is_the_report() -> None:
    report = unobservable_report("prod", "container x is stopped; start it with `docker start x`")
    assert report.endswith("Nothing else can be compared: container x is stopped; start it with `docker start x`.\n")


@pytest.mark.parametrize("value", ["a | b", "line\nbreak", "`quoted`", "x" * 5000])
def test_no_value_breaks_the_table(value: str) -> None:
    difference = Difference(path="using", now=value, declared="true")
    step = Step(operation="update", kind="TableSecurity", name="public.wells", differences=(difference,))
    report = drift_report("prod", Outcome(steps=(step,), objections=(), warnings=(), errors=()))
    (row,) = rows(report)
    assert len(row) == 4
    assert len(report) < 1000


def test_debugging_and_a_line_that_was_cut_off_are_no_events() -> None:
    debugging = json.dumps({"diagnosticEvent": {"severity": "debug", "message": "DB_PASSWORD=visible"}})
    assert read_events(f'{debugging}\n{{"summaryEvent": {{}}}}\n{{"resourcePre') == [{"summaryEvent": {}}]
