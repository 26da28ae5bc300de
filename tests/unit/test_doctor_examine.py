"""The command line of the examination: which set-up it looks at, and that no secret is an argument."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import pytest

from doctor import examine
from doctor.__main__ import main
from doctor.causes import markdown
from doctor.checks.finding import Finding, Status
from doctor.examination import Examination

PROJECT = Path(__file__).parents[2]


def parsed(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    examine.add_arguments(parser.add_subparsers(dest="command"))
    return parser.parse_args(["examine", *words])


def test_a_dsn_with_a_password_is_refused_as_an_argument() -> None:
    given = parsed("--dsn", "postgresql://postgres:well-known@db.example/postgres")
    with pytest.raises(examine.UnusableArgumentError, match="process list") as refused:
        examine.setup_of(given, environ={})
    assert "well-known" not in str(refused.value)


def test_a_dsn_with_its_password_comes_from_the_environment() -> None:
    dsn = "postgresql://postgres:well-known@db.example/postgres"
    setup = examine.setup_of(parsed(), environ={"DOCTOR_DSN": dsn})
    assert setup.dsn is not None
    assert setup.dsn.get_secret_value() == dsn
    assert setup.stack is None


def test_the_anon_key_comes_from_the_environment_or_a_file(tmp_path: Path) -> None:
    url = ("--url", "http://gateway.example")
    assert (
        examine.setup_of(parsed(*url), environ={"DOCTOR_ANON_KEY": "from the environment"}).key
        == "from the environment"
    )
    file = tmp_path / "key"
    file.write_text("from the file\n")
    assert examine.setup_of(parsed(*url, "--anon-key-file", str(file)), environ={}).key == "from the file"
    with pytest.raises(examine.UnusableArgumentError, match="--anon-key-file"):
        examine.setup_of(parsed(*url, "--anon-key-file", str(tmp_path / "none")), environ={})


def test_there_is_no_argument_that_takes_a_key_itself() -> None:
    with pytest.raises(SystemExit):
        parsed("--anon-key", "eyJ")


def test_text_that_is_no_dsn_is_refused_with_an_example() -> None:
    with pytest.raises(examine.UnusableArgumentError, match=r"host=… port=…"):
        examine.setup_of(parsed("--dsn", "db.example/postgres"), environ={})


def test_a_stack_and_a_url_exclude_each_other() -> None:
    with pytest.raises(examine.UnusableArgumentError, match="--url: not together with --stack"):
        examine.setup_of(parsed("--stack", "dev", "--url", "http://gateway.example"), environ={})


def test_outputs_that_cannot_be_read_are_exit_3(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["--outputs", str(tmp_path / "none.json")]) == 3
    assert "none.json" in capsys.readouterr().err


@pytest.mark.parametrize("argument", ["--anon-key-file", "--outputs"])
def test_a_file_that_is_no_text_is_exit_3_with_its_name(
    argument: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = tmp_path / "archive"
    file.write_bytes(b"\x1f\x8b\xff")
    assert main([argument, str(file)]) == 3
    assert f"{file}" in capsys.readouterr().err


def test_without_a_command_it_examines_and_exits_as_it_found(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[bool] = []

    def found(_: object, *, writing: bool) -> Examination:
        asked.append(writing)
        finding = Finding(check="postgres.wal_level", status=Status.OK, seen="wal_level = logical")
        return Examination(setup="x", started="2026-01-01T00:00:00Z", seconds=1, findings=(finding,))  # type: ignore[arg-type]

    monkeypatch.setattr(examine, "examine", found)
    monkeypatch.delenv("DOCTOR_DSN", raising=False)
    assert main(["--url", "http://gateway.example"]) == 0
    assert main(["examine", "--url", "http://gateway.example", "--probe", "--json"]) == 0
    assert asked == [False, True]
    assert '"exit_status": 0' in capsys.readouterr().out


def test_causes_prints_the_page_of_failures(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["causes", "--markdown"]) == 0
    assert capsys.readouterr().out == markdown()


def test_every_argument_and_every_field_of_the_json_is_documented() -> None:
    page = (PROJECT / "docs" / "doctor.md").read_text()
    parser = argparse.ArgumentParser()
    subparsers = parser.add_subparsers()
    examine.add_arguments(subparsers)
    options = re.findall(r"--[a-z-]+", subparsers.choices["examine"].format_help())
    for word in {*options, *Examination.model_fields, *Finding.model_fields, "root", "exit_status"} - {"--help"}:
        assert word in page, f"docs/doctor.md says nothing of {word}"
