"""An examination: the first failure is the root, and what depends on it says nothing."""

from __future__ import annotations

import io
import json
from collections.abc import Callable

import psycopg
import pytest
import yaml
from pydantic import SecretStr, ValidationError
from rich.console import Console

from doctor import causes
from doctor.checks import change
from doctor.checks.finding import Check, Finding, Status, check, failed, ok, skipped, warning
from doctor.checks.setup import Need, Setup
from doctor.examination import CHECKS, examine
from doctor.report import show

WELL = Setup()


def made(answer: Callable[[Setup], Finding], name: str, *, after: tuple[Check, ...] = ()) -> Check:
    """A check of that answer."""
    answer.__name__ = name
    return check(f"title of {name}", after=after)(answer)


def raising(error: BaseException) -> Callable[[Setup], Finding]:
    def look(_: Setup) -> Finding:
        raise error

    return look


FIRST = made(lambda _: failed("wal-level-not-logical", "wal_level = replica"), "first")
DEPENDENT = made(lambda _: pytest.fail("was reached"), "dependent", after=(FIRST,))
INDIRECT = made(lambda _: pytest.fail("was reached"), "indirect", after=(DEPENDENT,))
INDEPENDENT = made(lambda _: ok("fine"), "independent")
WARNS = made(lambda _: warning("truncate-granted", "anon", table="t", role="anon"), "warns")
SKIPS = made(lambda _: skipped("no reason"), "skips")


def test_what_depends_on_a_failure_is_not_reached_and_names_the_root() -> None:
    examination = examine(WELL, checks=[FIRST, DEPENDENT, INDIRECT, INDEPENDENT])
    assert [finding.status for finding in examination.findings] == ["failed", "not reached", "not reached", "ok"]
    assert all(FIRST.id in finding.seen for finding in examination.of(Status.NOT_REACHED))


def test_what_depends_on_a_check_that_broke_off_is_not_asked_into_the_same_silence() -> None:
    breaks = made(raising(psycopg.errors.QueryCanceled("statement timeout")), "breaks")
    after = made(lambda _: pytest.fail("was reached"), "after", after=(breaks,))
    examination = examine(WELL, checks=[breaks, after, INDEPENDENT])
    assert [finding.status for finding in examination.findings] == ["skipped", "not reached", "ok"]
    assert examination.finding(after.id).seen == f"{breaks.id} broke off"
    assert examination.unlooked == (breaks.id,)


def test_a_warning_or_a_skipped_check_holds_nobody_back() -> None:
    after = made(lambda _: ok("reached"), "after", after=(WARNS, SKIPS))
    assert examine(WELL, checks=[WARNS, SKIPS, after]).finding(after.id).status is Status.OK


@pytest.mark.parametrize(
    ("checks", "status", "root"),
    [
        ([INDEPENDENT], 0, None),
        ([INDEPENDENT, SKIPS], 0, None),
        ([INDEPENDENT, WARNS], 1, "truncate-granted"),
        ([WARNS, FIRST], 2, "wal-level-not-logical"),
        ([SKIPS], 3, None),
        ([INDEPENDENT, made(raising(OSError("gone")), "breaks")], 3, None),
        ([FIRST, made(raising(psycopg.OperationalError("gone")), "breaks")], 2, "wal-level-not-logical"),
    ],
)
def test_the_exit_status_says_healthy_warnings_failures_or_could_not_look(
    checks: list[Check], status: int, root: str | None
) -> None:
    examination = examine(WELL, checks=checks)
    assert examination.exit_status == status
    assert examination.root == root


def test_what_nobody_foresaw_is_not_hidden_and_takes_no_other_finding_with_it() -> None:
    wrong = made(raising(yaml.YAMLError("a line of the file: a piece of a secret")), "wrong")
    after = made(lambda _: pytest.fail("was reached"), "after", after=(wrong,))
    examination = examine(WELL, checks=[WARNS, wrong, after, INDEPENDENT])
    assert [finding.status for finding in examination.findings] == ["warning", "skipped", "not reached", "ok"]
    assert examination.finding(wrong.id).seen.startswith("could not look: YAMLError at doctor/")
    assert "a piece of a secret" not in examination.model_dump_json()
    assert examination.unlooked == (wrong.id,)
    assert examination.exit_status == 3


def test_the_examination_ends_when_it_is_interrupted() -> None:
    with pytest.raises(KeyboardInterrupt):
        examine(WELL, checks=[made(raising(KeyboardInterrupt()), "wrong")])


def test_a_check_without_what_it_needs_is_skipped_with_the_reason() -> None:
    examination = examine(Setup())
    assert examination.exit_status == 3
    assert {finding.status for finding in examination.findings} == {Status.SKIPPED}
    assert all(finding.seen for finding in examination.findings)
    assert examination.finding("postgres.reachable").seen == "no DSN was given"


def test_checks_come_after_what_they_depend_on() -> None:
    seen: set[str] = set()
    for one in (*CHECKS, change.arrives):
        assert set(one.after) <= seen, one.id
        seen.add(one.id)


def test_every_check_is_in_the_examination_once_with_a_title_and_a_need_or_a_reason() -> None:
    assert len({one.id for one in CHECKS}) == len(CHECKS)
    assert all(one.title for one in CHECKS)
    assert change.arrives not in CHECKS


def test_the_path_of_a_change_is_the_order_of_the_checks() -> None:
    areas = ["containers.network", "postgres.reachable", "database.schemas", "tables.published", "realtime.health"]
    areas += ["tenant.present", "keys.claims", "gateway.websocket"]
    order = [one.id for one in CHECKS]
    assert [order.index(area) for area in areas] == sorted(order.index(area) for area in areas)


def test_the_cure_is_filled_in_and_a_cause_without_its_words_is_an_error() -> None:
    finding = failed("select-grant-missing", "anon lacks SELECT", table="public.wells", role="anon")
    assert finding.cure is not None
    assert "GRANT SELECT ON public.wells TO anon" in finding.cure
    with pytest.raises(KeyError):
        failed("select-grant-missing", "anon lacks SELECT")


def test_a_finding_is_frozen() -> None:
    with pytest.raises(ValidationError):
        ok("fine").seen = "otherwise"


SECRETS = {
    "password": "the-password-of-postgres",
    "anon": "eyJhbGciOiJIUzI1NiJ9.eyJyb2xlIjoiYW5vbiJ9.c2lnbmF0dXJl",
    "service": "eyJhbGciOiJIUzI1NiJ9.eyJyb2xlIjoic2VydmljZSJ9.c2lnbmF0dXJl",
}
LEAKY = Setup(
    dsn=SecretStr(f"host=localhost user=postgres dbname=postgres password={SECRETS['password']}"),
    anon_key=SecretStr(SECRETS["anon"]),
    service_role_key=SecretStr(SECRETS["service"]),
)


def test_no_secret_of_the_setup_is_in_a_report_whatever_a_server_wrote() -> None:
    text = " ".join(SECRETS.values()) + " eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJ4In0.b3RoZXI for database postgres"
    leaks = made(lambda _: failed("probe-failed", text, likely=text), "leaks")
    examination = examine(LEAKY, checks=[leaks])
    console = Console(file=io.StringIO(), width=200)
    show(examination, console, verbose=True)
    assert isinstance(console.file, io.StringIO)
    for report in (examination.model_dump_json(), console.file.getvalue(), repr(LEAKY), repr(examination)):
        assert not any(secret in report for secret in SECRETS.values())
        assert "eyJ" not in report
    assert "for database postgres" in examination.findings[0].seen


def test_a_copy_of_a_setup_has_connections_and_secrets_of_its_own() -> None:
    with LEAKY.model_copy() as setup:
        assert SECRETS["anon"] in setup.secrets
        other = setup.model_copy(update={"anon_key": SecretStr("another-key")})
        assert other.http is not setup.http
        other.close()
        assert not setup.http.is_closed
        assert other.redacted("another-key") == "[secret]"


def shown(*checks: Check, verbose: bool = False) -> str:
    console = Console(file=io.StringIO(), width=200)
    show(examine(WELL, checks=checks), console, verbose=verbose)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_the_report_is_quiet_about_what_is_well() -> None:
    monkey = shown(INDEPENDENT, SKIPS)
    assert "healthy" in monkey
    assert "independent" not in monkey
    assert len(monkey.splitlines()) == 1


def test_the_report_tells_the_root_first_with_cause_cure_and_page() -> None:
    text = shown(WARNS, FIRST)
    known = causes.CAUSES["wal-level-not-logical"]
    assert text.index(f"{FIRST.id}: no  (look here first)") < text.index(f"{WARNS.id}: no")
    for words in ("wal_level = replica", known.cause, known.cure, known.page, "[wal-level-not-logical]"):
        assert words in text


def test_verbose_shows_every_check_and_what_it_saw() -> None:
    text = shown(INDEPENDENT, SKIPS, verbose=True)
    assert "fine" in text
    assert "no reason" in text


def test_the_json_has_the_fields_that_are_documented() -> None:
    document = json.loads(examine(WELL, checks=[INDEPENDENT]).model_dump_json())
    assert set(document) == {"setup", "started", "seconds", "findings", "unlooked", "root", "exit_status"}
    assert set(document["findings"][0]) == {"check", "status", "seen", "cause", "likely", "cure", "page", "seconds"}


def test_a_need_has_a_reason() -> None:
    assert all(Setup().lacks(need) for need in Need)
