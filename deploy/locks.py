"""What an update that was killed leaves behind in a file backend: its lock, and a file cut off in the middle."""

from __future__ import annotations

import json
import socket
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import psutil

from deploy.errors import DeployError
from settings import NAMESPACE


@dataclass(frozen=True)
class Lock:
    """Who holds the stack, and since when."""

    pid: int
    host: str
    user: str
    since: datetime


def read_locks(backend: Path | None, stack: str) -> list[Lock]:
    """The locks of a stack in a file backend, none for other backends.

    Source: pulumi/pulumi, pkg/backend/diy/lock.go, stackLockDir and lockContent. Raises DeployError for a file that
    is none of the engine's.
    """
    if backend is None:
        return []
    folder = backend / "locks" / "organization" / NAMESPACE / stack
    return [parse_lock(path.name, path.read_text()) for path in sorted(folder.glob("*.json"))]


def remove_cut_off_attributes(backend: Path | None, stack: str) -> list[Path]:
    """Remove the attributes of a stack's files that a killed engine was writing; which those were.

    The backend's files are replaced atomically, but the ``.attrs`` beside each is not, and one that is cut off makes
    the engine refuse the whole stack (`failed to load checkpoint: EOF`); without it the file is read as it is.
    Only to be called when nobody holds the stack. Source: gocloud.dev/blob/fileblob, attrs.go, setAttrs and getAttrs.
    """
    if backend is None:
        return []
    found = [
        *backend.glob("meta.yaml*.attrs"),
        *(backend / "stacks" / NAMESPACE).glob(f"{stack}.json*.attrs"),
        *(backend / "locks" / "organization" / NAMESPACE / stack).glob("*.attrs"),
        *(backend / "history" / NAMESPACE / stack).glob("*.attrs"),
        *(backend / "backups" / NAMESPACE / stack).glob("*.attrs"),
    ]
    cut_off = [path for path in found if not is_json(path.read_bytes())]
    for path in cut_off:
        path.unlink()
    return cut_off


def is_json(content: bytes) -> bool:
    """Whether it is a whole JSON document."""
    try:
        json.loads(content)
    except ValueError:
        return False
    return True


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
