"""Images that a test takes beside those of the stack, and does without where the engine has not got them."""

from __future__ import annotations

import os

import docker
import pytest
from docker.errors import ImageNotFound

NEWEST = os.environ.get("REALTIME_IMAGE_NEWEST") or "supabase/realtime:v2.129.8"
"""The newest Realtime that the stack is known to work with."""


def require_image(name: str, variable: str) -> None:
    """Skip the test when the engine has not got the image."""
    try:
        docker.from_env().images.get(name)
    except ImageNotFound:
        pytest.skip(f"no image {name} (set {variable} to another): `docker pull {name}`")
