"""The lock of a file backend, which an update that was killed leaves behind."""

from __future__ import annotations

import json
import socket
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import psutil

from deploy.errors import DeployError


@dataclass(frozen=True)
class Lock:
    """Who holds the stack, and since when."""

    pid: int
    host: str
    user: str
    since: datetime


def read_locks(directory: Path | None) -> list[Lock]:
    """The locks in a backend's lock directory, none for a backend without files.

    Source of the format: pulumi/pulumi, pkg/backend/diy/lock.go, lockContent. Raises DeployError for a file that
    is none of the engine's.
    """
    if directory is None or not directory.is_dir():
        return []
    return [parse_lock(path.name, path.read_text()) for path in sorted(directory.glob("*.json"))]


def parse_lock(name: str, content: str) -> Lock:
    """One lock file."""
    try:
        fields = json.loads(content)
        return Lock(
            pid=int(fields["pid"]),
            host=str(fields["hostname"]),
            user=str(fields["username"]),
            since=datetime.fromisoformat(fields["timestamp"]),
        )
    except (ValueError, KeyError, TypeError):
        raise DeployError(
            f"the backend's lock {name} says nothing about who holds it; when no update is running, "
            "clear it with `pulumi cancel`"
        ) from None


def is_abandoned(lock: Lock) -> bool:
    """Whether the process that took the lock is known to be gone: on this host, and ended.

    A process of the same number that started after the lock was taken is another one.
    """
    if lock.host != socket.gethostname():
        return False
    try:
        process = psutil.Process(lock.pid)
        return bool(process.status() == psutil.STATUS_ZOMBIE or process.create_time() > lock.since.timestamp() + 1)
    except psutil.NoSuchProcess:
        return True


def held_fault(lock: Lock, stack: str) -> str:
    """The one line that says who holds the stack and how to end it."""
    return (
        f"stack {stack} is being updated by {lock.user}@{lock.host}, process {lock.pid}, since "
        f"{lock.since:%Y-%m-%d %H:%M:%S %Z}; wait for it to end, or, if it is dead, run `pulumi cancel --stack {stack}`"
    )
