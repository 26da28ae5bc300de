"""Which Pulumi CLI is used, and what is said when there is none."""

from pathlib import Path

import pytest
from semver import VersionInfo

from deploy.errors import DeployError
from deploy.pulumi_cli import find_or_install, last_line, oldest_usable, path_with, sdk_version


def place(folder: Path, version: str) -> Path:
    """A CLI that can say its version, which is all that is asked of it here."""
    folder.mkdir(parents=True, exist_ok=True)
    cli = folder / "pulumi"
    cli.write_text(f"#!/bin/sh\necho {version}\n")
    cli.chmod(0o755)
    return cli


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("PULUMI_AUTOMATION_API_SKIP_VERSION_CHECK", raising=False)
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "")
    monkeypatch.setenv("PATH", f"{tmp_path / 'path'}:/bin")


def test_the_sdks_minor_version_is_enough() -> None:
    assert oldest_usable(VersionInfo.parse("3.259.4")) == VersionInfo(3, 259, 0)


@pytest.mark.parametrize("newer", [0, 1, 40])
def test_a_recent_enough_cli_on_path_is_used(tmp_path: Path, newer: int) -> None:
    sdk = sdk_version()
    place(tmp_path / "path", f"v{sdk.major}.{sdk.minor + newer}.0")
    assert find_or_install(tmp_path).command == "pulumi"
    assert not (tmp_path / ".pulumi").exists()


def test_the_cli_that_was_installed_into_the_project_is_used_again(tmp_path: Path) -> None:
    cli = place(tmp_path / ".pulumi/cli/bin", f"v{sdk_version()}")
    found = find_or_install(tmp_path)
    assert found.command == str(cli)
    assert path_with(found, {"PATH": "/bin"}) == f"{cli.parent}:/bin", "the language host is beside it"


@pytest.mark.parametrize(
    ("on_path", "missing"),
    [
        (None, "no pulumi on PATH that runs"),
        ("v3.1.0", "the pulumi on PATH is not of version {oldest} or newer"),
    ],
)
def test_without_a_usable_cli_and_without_network_one_line_says_what_to_do(
    tmp_path: Path, on_path: str | None, missing: str
) -> None:
    if on_path:
        place(tmp_path / "path", on_path)
    oldest = oldest_usable(sdk_version())
    with pytest.raises(DeployError) as refused:
        find_or_install(tmp_path)
    (fault,) = refused.value.faults
    assert fault.startswith(missing.format(oldest=oldest) + f", and Pulumi {sdk_version()} cannot be installed: ")
    assert fault.endswith(f"; connect this machine to the internet once, or put a pulumi {oldest} or newer on PATH")
    assert "\n" not in fault


def test_path_is_left_alone_for_a_cli_on_path(tmp_path: Path) -> None:
    place(tmp_path / "path", f"v{sdk_version()}")
    assert path_with(find_or_install(tmp_path), {"PATH": "/bin"}) == "/bin"


def test_an_installers_reason_is_its_last_line() -> None:
    assert (
        last_line(b"=== Installing Pulumi ===\n+ Downloading\nerror: no such version\n\n") == "error: no such version"
    )
    assert last_line(None) == "the installer said nothing"
