"""The Pulumi CLI: the one on PATH when it is recent enough, else the official one inside the project."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

from pulumi.automation import InvalidVersionError, PulumiCommand
from semver import VersionInfo

from deploy.errors import DeployError

INSTALLED = Path(".pulumi", "cli")
"""Where the CLI goes, in the project."""


def sdk_version() -> VersionInfo:
    """The version of the Python SDK, which is the version of CLI it was released with."""
    return VersionInfo.parse(version("pulumi"))


def oldest_usable(sdk: VersionInfo) -> VersionInfo:
    """The oldest CLI that will do: the SDK's minor version, whatever its patch."""
    return VersionInfo(sdk.major, sdk.minor)


def find_or_install(project: Path) -> PulumiCommand:
    """A CLI of at least the SDK's minor version.

    Downloads the official one into the project's ``.pulumi/cli`` when PATH has none; a second run finds it there.
    Raises DeployError when neither is to be had.
    """
    sdk = sdk_version()
    oldest = oldest_usable(sdk)
    try:
        return PulumiCommand(version=oldest)
    except InvalidVersionError:
        missing = f"the pulumi on PATH is not of version {oldest} or newer"
    except (OSError, subprocess.CalledProcessError):
        missing = "no pulumi on PATH that runs"
    root = project / INSTALLED
    if not (root / "bin" / "pulumi").exists():
        print(f"{missing}: installing Pulumi {sdk} into {INSTALLED}", file=sys.stderr)
    try:
        return PulumiCommand.install(root=str(root), version=sdk)
    except subprocess.CalledProcessError as failed:
        reason = last_line(failed.output)
    except (OSError, InvalidVersionError) as failed:
        reason = str(failed)
    raise DeployError(
        f"{missing}, and Pulumi {sdk} cannot be installed: {reason}; "
        f"connect this machine to the internet once, or put a pulumi {oldest} or newer on PATH"
    )


def last_line(output: bytes | str | None) -> str:
    """The last line that says something, which is where installers put the reason."""
    text = output.decode(errors="replace") if isinstance(output, bytes) else output or ""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "the installer said nothing"


def path_with(command: PulumiCommand, environ: Mapping[str, str]) -> str:
    """PATH with the CLI's own folder first, so that it finds its language host beside it."""
    path = environ.get("PATH", os.defpath)
    folder = str(Path(command.command).parent)
    return path if folder == "." else os.pathsep.join([folder, path])
