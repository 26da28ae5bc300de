"""The workflows for GitHub, as far as they go without it: their own scripts run, with `gh` standing in."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy.commands import PROJECT

REPORT = '# Drift of stack prod\n\n| resource | `it\'s "quoted" $HOME` |'
pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="no make on this machine")


def workflow(name: str) -> dict[str, Any]:
    document: dict[str, Any] = yaml.safe_load((PROJECT / ".github" / "workflows" / f"{name}.yml").read_text())
    return document


def executable(path: Path, script: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}")
    path.chmod(0o755)


@pytest.mark.parametrize("name", ["drift", "preview"])
def test_every_action_is_pinned_to_a_commit(name: str) -> None:
    used = [step["uses"] for job in workflow(name)["jobs"].values() for step in job["steps"] if "uses" in step]
    assert used
    assert not [action for action in used if not re.fullmatch(r"[\w/-]+@[0-9a-f]{40}", action)]


@pytest.mark.parametrize("name", ["drift", "preview"])
def test_what_sees_the_secrets_may_write_nothing_and_what_writes_sees_none(name: str) -> None:
    document = workflow(name)
    assert document["permissions"] == {"contents": "read"}
    writing = [job for job in document["jobs"].values() if "permissions" in job]
    assert len(writing) == 1
    assert "secrets." not in yaml.safe_dump(writing)


def test_a_pull_request_from_a_fork_is_never_run_with_the_secrets() -> None:
    condition = workflow("preview")["jobs"]["preview"]["if"]
    assert "github.event.pull_request.head.repo.full_name == github.repository" in condition


@pytest.fixture
def reporting(tmp_path: Path) -> Path:
    """A project whose `python -m deploy` says what it was asked and a report, and exits as told."""
    executable(tmp_path / ".venv/bin/python", 'echo "$@" >asked\nenv >environment\ncat report\nexit "$(cat code)"\n')
    (tmp_path / "Makefile").write_text(".venv/.requirements:\n\t@touch $@\n")
    (tmp_path / ".ci").mkdir()
    shutil.copy(PROJECT / ".ci/report", tmp_path / ".ci/report")
    (tmp_path / "report").write_text(f"{REPORT}\n")
    return tmp_path


def run(project: Path, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [project / ".ci/report", "drift"],
        env={"PATH": "/usr/bin:/bin", "STACK": "prod", **environ},
        capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.mark.parametrize("code", [0, 7])
def test_by_hand_the_report_is_printed_with_the_exit_code_of_drift(code: int, reporting: Path) -> None:
    (reporting / "code").write_text(str(code))
    done = run(reporting)
    assert (done.stdout, done.returncode) == (f"{REPORT}\n", code), done.stderr
    assert (reporting / "asked").read_text() == "-m deploy report drift --stack prod\n"


def test_on_github_the_report_is_the_summary_and_an_output(reporting: Path) -> None:
    (reporting / "code").write_text("7")
    summary, output = reporting / "summary", reporting / "output"
    done = run(reporting, GITHUB_STEP_SUMMARY=str(summary), GITHUB_OUTPUT=str(output))
    assert done.returncode == 0, "the job that opens the issue must run"
    assert summary.read_text() == f"{REPORT}\n"
    first, opening, *report, closing = output.read_text().splitlines()
    assert first == "code=7"
    assert opening == f"report<<{closing}"
    assert "\n".join(report) == REPORT


def test_on_github_no_report_is_a_failure(reporting: Path) -> None:
    (reporting / "code").write_text("1")
    (reporting / "report").write_text("")
    done = run(reporting, GITHUB_STEP_SUMMARY="/dev/null", GITHUB_OUTPUT="/dev/null")
    assert done.returncode == 1


def test_a_secret_that_the_repository_does_not_have_is_not_an_empty_one(reporting: Path) -> None:
    (reporting / "code").write_text("0")
    run(reporting, PULUMI_CONFIG_PASSPHRASE="", PULUMI_BACKEND_URL="file:///state")
    environment = (reporting / "environment").read_text().splitlines()
    assert "PULUMI_BACKEND_URL=file:///state" in environment
    assert not [line for line in environment if line.startswith("PULUMI_CONFIG_PASSPHRASE=")]


def told(tmp_path: Path, *, code: str, open_issue: str) -> tuple[int, list[str]]:
    """The exit code of the step that keeps the issue, and what it asks of `gh`, beside looking for the issue."""
    executable(
        tmp_path / "bin/gh",
        f'[ "$2" = list ] && {{ echo "{open_issue}"; exit; }}\nprintf "%s\\0" "$@" >>{tmp_path}/asked\n',
    )
    (step,) = workflow("drift")["jobs"]["tell"]["steps"]
    done = subprocess.run(
        ["bash", "-e", "-o", "pipefail", "-c", step["run"]],
        env={"PATH": f"{tmp_path}/bin:/usr/bin:/bin", "STACK": "prod", "CODE": code, "REPORT": REPORT},
        check=False,
    )
    asked = tmp_path / "asked"
    return done.returncode, asked.read_text().split("\0")[:-1] if asked.exists() else []


def test_the_first_drift_opens_an_issue(tmp_path: Path) -> None:
    expected = ["issue", "create", "--title", "Drift of stack prod", "--body", REPORT]
    assert told(tmp_path, code="7", open_issue="") == (7, expected)


def test_drift_that_goes_on_keeps_the_issue_up_to_date(tmp_path: Path) -> None:
    assert told(tmp_path, code="7", open_issue="12") == (7, ["issue", "edit", "12", "--body", REPORT])


def test_no_drift_closes_the_issue(tmp_path: Path) -> None:
    code, asked = told(tmp_path, code="0", open_issue="12")
    assert (code, asked[:3]) == (0, ["issue", "close", "12"])


def test_no_drift_and_no_issue_is_nothing_to_say(tmp_path: Path) -> None:
    assert told(tmp_path, code="0", open_issue="") == (0, [])
