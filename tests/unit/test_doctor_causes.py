"""What the doctor can name: every cause has its words, and the page of failures is made of them."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from doctor.causes import CAUSES, PLACEHOLDER, Cause, markdown
from doctor.checks import logs

PROJECT = Path(__file__).parents[2]
SOURCES = sorted((PROJECT / "doctor" / "checks").glob("*.py"))


@cache
def literals() -> set[str]:
    """Every string in the checks' code."""
    trees = [ast.parse(source.read_text()) for source in SOURCES]
    nodes = [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Constant)]
    return {node.value for node in nodes if isinstance(node.value, str)}


@pytest.mark.parametrize("cause", CAUSES.values(), ids=lambda cause: cause.id)
def test_every_cause_is_told_in_full(cause: Cause) -> None:
    for words in (cause.symptom, cause.cause, cause.cure):
        assert words.strip()
    assert urlsplit(cause.page).scheme == "https"


@pytest.mark.parametrize("cause", CAUSES.values(), ids=lambda cause: cause.id)
def test_every_cause_can_be_named_by_a_check(cause: Cause) -> None:
    assert cause.id in literals()


def test_no_log_pattern_names_an_unknown_cause() -> None:
    patterns = [*logs.REALTIME_RUNNING, *(pattern for part in logs.EXIT.values() for pattern in part)]
    assert {pattern.cause for pattern in patterns} <= set(CAUSES)


def test_what_a_running_realtime_logs_fills_its_cure() -> None:
    for pattern in logs.REALTIME_RUNNING:
        filled = {*pattern.names, *pattern.pattern.groupindex, "container"}
        assert set(PLACEHOLDER.findall(CAUSES[pattern.cause].cure)) <= filled, pattern.cause


def test_the_page_of_failures_is_up_to_date() -> None:
    written = (PROJECT / "docs" / "failures.md").read_text()
    assert written == markdown(), "make it again: python -m doctor causes --markdown > docs/failures.md"


def test_the_page_of_failures_has_a_row_and_an_anchor_for_every_cause() -> None:
    anchors = re.findall(r'<a id="([^"]+)"></a>', markdown())
    assert anchors == list(CAUSES)


@pytest.mark.parametrize(
    ("log", "cause"),
    [
        ("/app/run.sh: line 6: RLIMIT_NOFILE: unbound variable", "rlimit-nofile-missing"),
        ("/app/run.sh: line 8: ulimit: open files: cannot modify limit: Invalid argument", "rlimit-nofile-too-high"),
        ("** (RuntimeError) environment variable SECRET_KEY_BASE is missing.", "secret-key-base-missing"),
        ("** (RuntimeError) APP_NAME not available", "app-name-missing"),
        ('** (ErlangError) Erlang error: {:badarg, {~c"api_ng.c", 310}, ~c"Bad key size"}', "db-enc-key-wrong-length"),
        ("Protocol 'inet6_tcp': register/listen error: eaddrnotavail", "erlang-wants-ipv6"),
        (
            "** (Postgrex.Error) ERROR 3F000 (invalid_schema_name) no schema has been selected to create in",
            "schema-of-tenants-missing",
        ),
        (
            "[error] Postgrex failed to connect: tcp connect (db:5432): non-existing domain - :nxdomain",
            "realtime-database-unreachable",
        ),
        (
            "[error] Postgrex failed to connect: tcp connect (db:5432): connection refused - :econnrefused",
            "realtime-database-unreachable",
        ),
        (
            'FATAL 28P01 (invalid_password) password authentication failed for user "supabase_admin"',
            "realtime-database-password-wrong",
        ),
    ],
)
def test_the_last_words_of_realtime_are_understood(log: str, cause: str) -> None:
    explained = logs.explain(["Running migrations", log, "last line"], logs.REALTIME_EXIT)
    assert explained is not None
    assert explained.cause == cause


def test_what_a_line_of_a_log_announces_is_told_with_it() -> None:
    log = [
        "nginx: [error] init_by_lua error: init.lua:553: error parsing declarative config file /etc/kong/kong.yml:",
        "in 'services':",
        "  - in entry 1 of 'services':",
        "    in 'uri': unknown field",
    ]
    explained = logs.explain(log, logs.GATEWAY_EXIT)
    assert explained is not None
    assert explained.line.endswith("kong.yml: in 'services': - in entry 1 of 'services': in 'uri': unknown field")


def test_a_log_without_known_words_is_not_explained() -> None:
    assert logs.explain(["Running migrations", "Starting Realtime"], logs.REALTIME_EXIT) is None
