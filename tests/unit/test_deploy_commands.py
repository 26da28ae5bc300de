"""The command line: what it takes, what it prints when something has to be mended, and with which exit code."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from deploy.__main__ import main
from deploy.commands import PROJECT, exports
from deploy.engine import Engine, run_attached
from deploy.errors import DeployError


def deploy(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """``python -m deploy``, as make calls it, in an environment without a passphrase of its own."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("PULUMI_", "DOCKER_"))}
    return subprocess.run(
        [sys.executable, "-m", "deploy", *arguments],
        cwd=PROJECT, env={**inherited, **environ}, capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.mark.parametrize("command", ["preview", "secrets", "probe", "env"])
def test_another_stack_without_a_passphrase_is_one_line_and_exit_code_1(command: str) -> None:
    refused = deploy(command, "--stack", "undeclared", PULUMI_BACKEND_URL="file:///nowhere")
    assert (refused.returncode, refused.stdout) == (1, "")
    (line,) = refused.stderr.splitlines()
    assert line.startswith("stack undeclared has no passphrase for its secrets; set PULUMI_CONFIG_PASSPHRASE_FILE")


@pytest.mark.parametrize(
    ("command", "address", "reason"),
    [
        ("up", "unix:///nowhere/docker.sock", "[Errno 2] No such file or directory"),
        ("up", "tcp://127.0.0.1:9", "[Errno 111] Connection refused"),
        ("drift", "unix:///nowhere/docker.sock", "[Errno 2] No such file or directory"),
        ("destroy", "unix:///nowhere/docker.sock", "[Errno 2] No such file or directory"),
    ],
)
def test_a_docker_engine_that_does_not_answer_is_one_line_and_exit_code_1(
    command: str, address: str, reason: str
) -> None:
    refused = deploy(command, DOCKER_HOST=address)
    assert (refused.returncode, refused.stdout) == (1, "")
    assert refused.stderr == (
        f"the Docker engine does not answer on {address} ({reason}); "
        "start Docker, or set DOCKER_HOST to the engine's address\n"
    )


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project whose stack dev names a Docker engine of its own."""
    folder = tmp_path_factory.mktemp("elsewhere")
    for package in ("components", "deploy", "providers"):
        shutil.copytree(PROJECT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    for module in ("settings.py", "realtime_versions.py", "tokens.py", "Pulumi.yaml"):
        shutil.copy(PROJECT / module, folder / module)
    (folder / "Pulumi.dev.yaml").write_text("config:\n  docker:host: unix:///nowhere/docker.sock\n")
    return folder


@pytest.mark.parametrize("command", [["up"], ["drift"], ["report", "drift"], ["destroy"], ["backup"], ["restore", "f"]])
def test_the_engine_of_the_stacks_docker_host_is_asked_and_no_other(command: list[str], elsewhere: Path) -> None:
    refused = subprocess.run(
        [sys.executable, "-m", "deploy", *command],
        cwd=elsewhere, env=os.environ | {"DOCKER_HOST": "unix:///another.sock"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (refused.returncode, refused.stdout) == (1, "")
    assert refused.stderr == (
        "the Docker engine does not answer on unix:///nowhere/docker.sock ([Errno 2] No such file or directory); "
        "start Docker, or correct docker:host\n"
    )


def test_an_unknown_command_is_refused_with_the_list(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as refused:
        main(["upp"])
    assert refused.value.code == 2
    assert "'up'" in capsys.readouterr().err


def test_values_survive_the_shell() -> None:
    lines = exports({"PULUMI_CONFIG_PASSPHRASE": "it's $HOME", "PATH": "/a b:/bin"})
    script = "\n".join([*lines, 'printf "%s|%s" "$PULUMI_CONFIG_PASSPHRASE" "$PATH"'])
    printed = subprocess.run(["/bin/sh", "-c", script], capture_output=True, text=True, check=True)
    assert printed.stdout == "it's $HOME|/a b:/bin"


def test_the_exit_code_of_what_ran_is_passed_on(tmp_path: Path) -> None:
    assert run_attached(["/bin/sh", "-c", "exit 7"], cwd=tmp_path, environ=os.environ) == 7
    assert run_attached(["/bin/sh", "-c", "kill -9 $$"], cwd=tmp_path, environ=os.environ) == 128 + signal.SIGKILL


def test_an_ended_make_lets_the_engine_end_in_good_order(tmp_path: Path) -> None:
    """SIGTERM reaches the engine, and its own exit code is waited for."""
    child = f"trap 'touch {tmp_path}/ended; exit 3' TERM; touch {tmp_path}/running; while :; do sleep 0.05; done"
    parent = (
        "import os, sys; from pathlib import Path; from deploy.engine import run_attached; "
        f"sys.exit(run_attached(['/bin/sh', '-c', {child!r}], cwd=Path('.'), environ=os.environ))"
    )
    with subprocess.Popen([sys.executable, "-c", parent], cwd=PROJECT, stdout=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 20
        while not (tmp_path / "running").exists():
            assert time.monotonic() < deadline, "the command never ran"
            time.sleep(0.02)
        process.terminate()
        assert process.wait(timeout=20) == 3
    assert (tmp_path / "ended").exists()


def test_a_failed_engine_command_is_said_in_the_engines_words_on_one_line(tmp_path: Path) -> None:
    cli = tmp_path / "pulumi"
    cli.write_text("#!/bin/sh\necho 'error: incorrect passphrase,\n  try again' >&2\nexit 255\n")
    cli.chmod(0o755)
    engine = Engine(command=str(cli), project=tmp_path, stack="dev", environ=dict(os.environ))
    with pytest.raises(DeployError) as refused:
        engine.config()
    assert refused.value.faults == (
        "`pulumi config --json --show-secrets` on stack dev: incorrect passphrase, try again",
    )


def test_a_generated_secret_reaches_the_engine_over_stdin_and_never_on_its_command_line(tmp_path: Path) -> None:
    cli = tmp_path / "pulumi"
    cli.write_text(f'#!/bin/sh\nprintf "%s" "$*" > {tmp_path}/argv\ncat > {tmp_path}/stdin\n')
    cli.chmod(0o755)
    engine = Engine(command=str(cli), project=tmp_path, stack="dev", environ=dict(os.environ))
    engine.ask("config", "set", "--secret", "jwt.secret", stdin="the-value")
    assert (tmp_path / "stdin").read_text() == "the-value"
    assert "the-value" not in (tmp_path / "argv").read_text()
