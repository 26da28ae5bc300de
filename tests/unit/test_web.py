"""The console's page: what is committed is what its sources give, and its own tests pass."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
WEB = ROOT / "web"
STATIC = ROOT / "doctor" / "console" / "static"
OLDEST_NODE = (20, 19)


def _run(command: Sequence[str | Path], cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"CI": "1", "NO_COLOR": "1"}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False, timeout=300)


def _installed() -> bool:
    """Whether web/node_modules is what the lockfile says."""
    found = WEB / "node_modules" / ".package-lock.json"
    if not found.is_file():
        return False
    installed = json.loads(found.read_text())["packages"]
    locked = json.loads((WEB / "package-lock.json").read_text())["packages"]
    del locked[""]
    return all(
        installed[name].get("integrity") == package.get("integrity") if name in installed else package.get("optional")
        for name, package in locked.items()
    )


@cache
def _unavailable() -> str | None:
    for program in ("node", "npm"):
        if shutil.which(program) is None:
            return f"{program} is not installed"
    version = _run(["node", "--version"], ROOT).stdout.strip()
    if tuple(map(int, version.removeprefix("v").split(".")[:2])) < OLDEST_NODE:
        return f"node {version} is older than {'.'.join(map(str, OLDEST_NODE))}"
    return None


@pytest.fixture(scope="module")
def web(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sources with their dependencies: the folder itself where they are installed, a copy where not."""
    if (reason := _unavailable()) is not None:
        pytest.skip(reason)
    if _installed():
        return WEB
    copy = tmp_path_factory.mktemp("web") / "web"
    shutil.copytree(WEB, copy, ignore=shutil.ignore_patterns("node_modules"))
    installed = _run(["npm", "ci", "--no-audit", "--no-fund"], copy)
    assert "npm error code EUSAGE" not in installed.stderr, "package-lock.json is not that of package.json"
    if installed.returncode != 0:
        lines = [line for line in installed.stderr.splitlines() if line.startswith("npm error")]
        pytest.skip(f"npm cannot install the dependencies: {lines[0] if lines else installed.stderr[-200:]}")
    return copy


def _files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_committed_page_is_what_its_sources_give(web: Path, tmp_path: Path) -> None:
    built = _run([web / "node_modules/.bin/vite", "build", "--outDir", tmp_path / "static", "--emptyOutDir"], web)
    assert built.returncode == 0, built.stderr
    fresh, committed = _files(tmp_path / "static"), _files(STATIC)
    stale = sorted(name for name in fresh.keys() | committed.keys() if fresh.get(name) != committed.get(name))
    assert not stale, f"stale in {STATIC.relative_to(ROOT)}: {', '.join(stale)}; run `make web` and commit"


def test_the_tests_of_the_page_pass(web: Path) -> None:
    tested = _run([web / "node_modules/.bin/vitest", "run"], web)
    assert tested.returncode == 0, tested.stdout[-4000:] + tested.stderr[-2000:]


@pytest.mark.parametrize("command", [["tsc", "--noEmit"], ["prettier", "--check", "."]], ids=["types", "format"])
def test_the_sources_of_the_page_are_clean(web: Path, command: list[str]) -> None:
    checked = _run([web / "node_modules/.bin" / command[0], *command[1:]], web)
    assert checked.returncode == 0, checked.stdout[-4000:] + checked.stderr[-2000:]


def test_the_lockfile_names_no_registry() -> None:
    packages = json.loads((WEB / "package-lock.json").read_text())["packages"]
    assert [name for name, package in packages.items() if "resolved" in package] == []


def test_the_page_has_nothing_inline_that_its_policy_forbids() -> None:
    page = (STATIC / "index.html").read_text()
    assert "<style" not in page
    assert " style=" not in page
    assert all("src=" in tag.partition(">")[0] for tag in page.split("<script")[1:])
