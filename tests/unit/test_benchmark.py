"""The benchmark compares like with like: the script is given what the stack declares."""

from __future__ import annotations

import json
from pathlib import Path

import yaml

from bench.first_event import write_script_files
from plan.program import stack_config
from providers.tenant import DECLARED
from settings import load


def test_the_script_is_given_everything_that_the_stack_declares(tmp_path: Path) -> None:
    written = tmp_path / "by-hand"
    config = stack_config("dev")
    write_script_files(written, load(config.values, stack="dev", environ={}))
    tenant = json.loads((written / "tenant.json").read_text())["tenant"]
    given = tenant.keys() | tenant["extensions"][0]["settings"].keys()
    assert set(DECLARED) <= given
    assert yaml.safe_load((written / "kong.yml").read_text())["services"]
    assert "CREATE PUBLICATION supabase_realtime FOR TABLE public.wells" in (written / "schema.sql").read_text()
    for container in ("postgres", "realtime", "kong"):
        assert (written / f"{container}.env").read_text()
