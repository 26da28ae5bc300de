"""The Makefile sets up a virtual environment, once, and says in one line why it cannot."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from deploy.commands import PROJECT

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="no make on this machine")

STAMP = ".venv/.requirements"

# `make test` is a make already: what it passes on would change what the make under test prints.
FROM_AN_OUTER_MAKE = {"MAKEFLAGS", "MAKELEVEL", "MFLAGS"}


@pytest.fixture
def project(tmp_path: Path) -> Path:
    shutil.copy(PROJECT / "Makefile", tmp_path)
    (tmp_path / "requirements.txt").write_text("# nothing to install\n")
    return tmp_path


def make(project: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["make", *arguments],
        cwd=project,
        env={name: value for name, value in os.environ.items() if name not in FROM_AN_OUTER_MAKE},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_environment_is_made_once_and_again_when_the_requirements_change(project: Path) -> None:
    assert make(project, STAMP).returncode == 0
    assert (project / ".venv/bin/python").exists()
    assert make(project, "--question", STAMP).returncode == 0, "nothing to do the second time"
    later = (project / STAMP).stat().st_mtime + 10
    os.utime(project / "requirements.txt", (later, later))
    assert make(project, "--question", STAMP).returncode == 1, "newer requirements are installed"


def test_a_requirement_that_cannot_be_installed_leaves_nothing_that_looks_ready(project: Path) -> None:
    (project / "requirements.txt").write_text("./nowhere-1.0-py3-none-any.whl\n")
    refused = make(project, STAMP)
    assert refused.returncode == 2
    assert "requirements.txt cannot be installed: pip said why above" in refused.stderr
    assert not (project / STAMP).exists()


@pytest.mark.parametrize("python", ["/nowhere/python3", "/bin/false"])
def test_without_a_recent_enough_python_one_line_says_so(project: Path, python: str) -> None:
    refused = make(project, STAMP, f"PYTHON={python}")
    assert refused.returncode == 2
    assert "Python 3.11 or newer is needed: install it, or name it with PYTHON=/path/to/python3" in refused.stderr
    assert not (project / ".venv").exists()


@pytest.mark.parametrize(
    "target", ["up", "preview", "drift", "plan", "probe", "secrets", "rotate", "backup", "destroy"]
)
@pytest.mark.parametrize(("arguments", "stack"), [((), "dev"), (("STACK=prod",), "prod")])
def test_every_target_works_on_stack_dev_unless_told(
    project: Path, target: str, arguments: tuple[str, ...], stack: str
) -> None:
    shown = make(project, "--dry-run", f"--old-file={STAMP}", target, *arguments)
    assert shown.returncode == 0
    module = "plan" if target == "plan" else f"deploy {target}"
    (command,) = shown.stdout.splitlines()
    assert command.startswith(f".venv/bin/python -m {module} --stack {stack}")


def test_a_backup_is_restored_by_its_name_and_over_rows_only_when_told(project: Path) -> None:
    def restore(*arguments: str) -> list[str]:
        return make(project, "--dry-run", f"--old-file={STAMP}", "restore", *arguments).stdout.splitlines()

    assert restore("FILE=a b.dump", "STACK=prod")[-1].split(" restore ") == [
        ".venv/bin/python -m deploy", "--stack prod  'a b.dump'",
    ]  # fmt: skip
    assert restore("FILE=a.dump", "REPLACE=yes")[-1].endswith("restore --stack dev --replace 'a.dump'")
    nameless = make(project, f"--old-file={STAMP}", "restore")
    assert (nameless.returncode, nameless.stderr.splitlines()[0]) == (2, "name the backup: make restore FILE=backups/…")


def test_a_dsn_reaches_the_rehearsal_as_it_is(project: Path) -> None:
    python = project / ".venv/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text("#!/bin/sh\nprintf '%s\\n' \"$@\"\n")
    python.chmod(0o755)
    dsn = "host=127.0.0.1 dbname='a \"copy\"' user=$HOME"
    done = make(project, f"--old-file={STAMP}", "rehearse", f"DSN={dsn.replace('$', '$$')}")
    assert done.stdout.splitlines() == ["-m", "rehearsal", "--stack", "dev", "--dsn", dsn]
    assert "--dsn" not in make(project, f"--old-file={STAMP}", "rehearse").stdout


def test_without_a_target_the_targets_are_listed_and_nothing_is_done(project: Path) -> None:
    listed = make(project)
    assert listed.returncode == 0
    targets = ("up", "preview", "drift", "plan", "probe", "secrets", "rotate", "destroy", "test", "lint", "bench")
    for target in (*targets, "console", "backup", "restore", "metrics", "scrape-config"):
        assert f"make {target}" in listed.stdout
    assert not (project / ".venv").exists()
