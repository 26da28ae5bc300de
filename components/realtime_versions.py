"""What differs between versions of Realtime, as far as a deployment must know."""

from __future__ import annotations

import re
from typing import NamedTuple


class Version(NamedTuple):
    """A release of supabase/realtime."""

    major: int
    minor: int
    patch: int


ENVIRONMENT_SINCE: tuple[tuple[Version, str, str], ...] = (
    (Version(2, 33, 69), "LOG_LEVEL", "info"),
    (Version(2, 41, 7), "DB_SSL", "false"),
    (Version(2, 71, 5), "DISABLE_HEALTHCHECK_LOGGING", "true"),
    (Version(2, 83, 1), "REALTIME_IP_VERSION", "ipv4"),
)
"""Environment variables that a version knows and the ones before it do not (upstream's ENVS.md and git history)."""


def image_version(image: str) -> Version | None:
    """The version in an image's tag, None for a tag that is not one: a digest, a branch, a local build."""
    match = re.search(r":v?(\d+)\.(\d+)\.(\d+)$", image)
    return Version(*(int(part) for part in match.groups())) if match else None


def version_environment(image: str) -> dict[str, str]:
    """The environment variables that this image knows beyond the ones that every version takes."""
    version = image_version(image)
    return {name: value for since, name, value in ENVIRONMENT_SINCE if version is not None and version >= since}
