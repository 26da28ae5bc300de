"""What a stack has to do by itself after something in it ended: deliver events again."""

from __future__ import annotations

import time

from tests.stack.conftest import Deployment

HEAL_SECONDS = 150


def assert_heals(deployment: Deployment) -> None:
    """The probe passes again within HEAL_SECONDS, without a command."""
    deadline = time.monotonic() + HEAL_SECONDS
    while True:
        probe = deployment.probe("--count", "3", check=False)
        if probe.returncode == 0:
            return
        assert time.monotonic() < deadline, f"not healed in {HEAL_SECONDS} s:\n{probe.stdout}{probe.stderr}"
