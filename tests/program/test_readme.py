"""The README's example of another program that uses the components."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from plan.program import PROJECT
from tests.program.recorder import run_program, stack_file, with_secrets

PYTHON = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


def test_the_example_runs_and_protects_nothing_that_changes_by_replacement(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Children inherit `protect`, and the engine replaces nothing that is protected: no container could change."""
    (example,) = PYTHON.findall((PROJECT / "README.md").read_text())
    (tmp_path / "__main__.py").write_text(example)
    (tmp_path / "sql").symlink_to(PROJECT / "sql")
    config = with_secrets(stack_file("dev"))
    monkeypatch.setattr("tests.program.recorder.PROJECT", tmp_path)
    program = run_program("dev", config, environ={"PULUMI_CONFIG": json.dumps(config)})
    assert len(program.of_type("docker:index/container:Container")) == len(("postgres", "realtime", "gateway"))
    assert [urn for urn, request in program.requests.items() if request.protect] == []
    assert "realtime_url" in program.outputs
