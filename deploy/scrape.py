"""What Prometheus is told about a stack, and the token with which it reads Realtime's metrics."""

from __future__ import annotations

import os
import secrets
from pathlib import Path
from typing import Any

import yaml

from deploy.errors import DeployError
from settings import Settings
from tokens import bearer_token

LOOPBACK = "127.0.0.1"
EXPORTER = f"{LOOPBACK}:9187"
"""Where ``python -m doctor metrics`` listens unless told."""


def scrape_config(settings: Settings, *, token_file: Path, exporter: str) -> dict[str, Any]:
    """A configuration for Prometheus, for ``--config.file`` or to take the jobs from. Holds no secret.

    Jobs: ``realtime`` (its /metrics wants a token, which Prometheus reads from ``token_file``), ``postgres`` (the
    doctor's exporter), and ``gateway`` (Kong's status listener) when ``gateway.status_port`` publishes it.
    """

    def job(name: str, target: str, **more: Any) -> dict[str, Any]:
        return {
            "job_name": name,
            **more,
            "static_configs": [{"targets": [target], "labels": {"stack": settings.stack}}],
        }

    jobs = [
        job(
            "realtime",
            f"{LOOPBACK}:{settings.realtime.host_port}",
            authorization={"type": "Bearer", "credentials_file": str(token_file)},
        ),
        job("postgres", exporter),
    ]
    if settings.gateway.status_port:
        jobs.append(job("gateway", f"{LOOPBACK}:{settings.gateway.status_port}"))
    return {"global": {"scrape_interval": "15s"}, "scrape_configs": jobs}


def rendered(document: dict[str, Any]) -> str:
    """The configuration as YAML."""
    return yaml.safe_dump(document, sort_keys=False)


def write_token(settings: Settings, path: Path) -> None:
    """Write the token of Realtime's metrics into a file that only its owner may read, in place of an older one.

    Raises DeployError when it cannot be written.
    """
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with os.fdopen(descriptor, "w") as file:
                file.write(bearer_token(settings.realtime.metrics_jwt_secret.get_secret_value()))
            partial.rename(path)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as failed:
        raise DeployError(f"{path} cannot be written ({failed.strerror}); name another with --token-file") from None
