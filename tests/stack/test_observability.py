"""What Prometheus reads of a running stack: every figure of the dashboard, and no secret."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import docker
import httpx
import pytest
import yaml

from tests.dashboard import names_in
from tests.stack.conftest import PROJECT, Deployment, free_port
from tests.stack.secret_search import leaked, secret_values
from tests.stack.subscriber import subscribed

SAMPLE = re.compile(r"^([a-zA-Z_:][\w:]*)(?:\{[^\n]*\})? \S+", re.MULTILINE)
FIGURES_SECONDS = 60
"""Realtime looks at its own figures every few seconds."""


@pytest.fixture(scope="module")
def exporter(live: Deployment) -> Iterator[str]:
    """The doctor's exporter, as `make metrics` runs it."""
    address = f"127.0.0.1:{free_port()}"
    with subprocess.Popen(
        [sys.executable, "-m", "doctor", "metrics", "--stack", live.stack, "--listen", address],
        cwd=live.folder,
        env=live.environ,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == f"figures of the database at http://{address}/metrics\n"
        yield address
        process.terminate()
        assert process.wait(timeout=20) == 0


@pytest.fixture(scope="module")
def config(live: Deployment, exporter: str) -> Iterator[dict[str, Any]]:
    """What `make scrape-config` prints. The token that it wrote for Prometheus goes with it."""
    printed = live.deploy("scrape-config", "--exporter", exporter).stdout
    document: dict[str, Any] = yaml.safe_load(printed)
    yield document
    (live.folder / "observability" / f"{live.stack}-metrics.token").unlink()


def scraped(job: dict[str, Any]) -> str:
    """What a job's target answers to Prometheus."""
    headers = {}
    if authorization := job.get("authorization"):
        token = Path(authorization["credentials_file"]).read_text()
        headers["Authorization"] = f"{authorization['type']} {token}"
    ((target,),) = (group["targets"] for group in job["static_configs"])
    answer = httpx.get(f"http://{target}/metrics", headers=headers, trust_env=False)
    assert answer.status_code == 200, f"{job['job_name']} answers {answer.status_code}"
    return answer.text


async def use(live: Deployment) -> None:
    """Changes while somebody listens, so that there is something to count."""
    async with subscribed(live.outputs(), "public.wells"):
        await asyncio.to_thread(live.probe, "--count", "3")


def test_every_figure_of_the_dashboard_is_one_that_the_stack_gives(live: Deployment, config: dict[str, Any]) -> None:
    shown = names_in(PROJECT / "observability/dashboard.json")
    seen = {"up"}  # Prometheus's own
    deadline = time.monotonic() + FIGURES_SECONDS
    while missing := shown - seen:
        assert time.monotonic() < deadline, f"no server gives {sorted(missing)}"
        asyncio.run(use(live))
        for job in config["scrape_configs"]:
            seen |= set(SAMPLE.findall(scraped(job)))
    assert shown


def test_no_figure_holds_a_secret(live: Deployment, config: dict[str, Any]) -> None:
    outputs = live.outputs()
    httpx.get(f"{outputs['url']}/realtime/v1/api/broadcast", params={"apikey": outputs["service_role_key"]})
    for job in config["scrape_configs"]:
        assert leaked(scraped(job).encode(), secret_values(live)) == [], job["job_name"]
    assert leaked(json.dumps(config).encode(), secret_values(live)) == []


def test_realtimes_figures_are_closed_without_the_token_and_the_gateway_leads_to_none(
    live: Deployment, config: dict[str, Any]
) -> None:
    outputs = live.outputs()
    key = {"Authorization": f"Bearer {outputs['service_role_key']}", "apikey": outputs["service_role_key"]}
    ((target,),) = (group["targets"] for group in config["scrape_configs"][0]["static_configs"])
    for headers in ({}, key):
        assert httpx.get(f"http://{target}/metrics", headers=headers).status_code == 403
    for path in (
        "/metrics",
        "/status",
        "/realtime/v1/metrics",
        "/realtime/v1/api/metrics",
        "/realtime/v1/../../metrics",
    ):
        assert httpx.get(f"{outputs['url']}{path}", headers=key).status_code in (403, 404), path


def test_kongs_figures_are_on_loopback_alone(live: Deployment) -> None:
    published = docker.from_env().containers.get(live.container_name("gateway")).attrs["NetworkSettings"]["Ports"]
    assert [binding["HostIp"] for binding in published["8100/tcp"]] == ["127.0.0.1"]
