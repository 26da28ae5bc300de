"""The console's page in a real browser, as an operator has it open."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any, Literal

from playwright.async_api import Browser, Page, async_playwright, expect

from tests.stack.conftest import Deployment

State = Literal["live", "connecting", "offline"]

LIVE_SECONDS = 45
"""Realtime lets the first subscriber wait up to 5 s, and one after a restart until the tenant is connected again."""
ROWS_SECONDS = 20
STARTS_SECONDS = 30
OFFLINE_SECONDS = 10
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
QUIET = (
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
"""Nothing of the browser's own goes out."""


@contextmanager
def console(deployment: Deployment, *options: str) -> Iterator[str]:
    """`make console` of a stack; the URL that it printed."""
    with subprocess.Popen(
        [sys.executable, "-m", "doctor", "console", "--stack", deployment.stack, "--no-open", "--port", "0", *options],
        cwd=deployment.folder,
        env=deployment.environ,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        printed = process.stdout.readline()
        try:
            assert printed.startswith(f"console of stack {deployment.stack}: http://127.0.0.1:"), printed
            yield printed.split()[-1]
        finally:
            process.terminate()
            process.wait(timeout=STARTS_SECONDS)
        assert process.returncode == 0


@asynccontextmanager
async def chromium() -> AsyncIterator[Browser]:
    """A headless browser with a profile of its own."""
    assert CHROMIUM is not None
    sandbox = ("--no-sandbox",) if os.getuid() == 0 else ()
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=[*QUIET, *sandbox])
        try:
            yield browser
        finally:
            await browser.close()


@dataclass(frozen=True)
class Operator:
    """Somebody who looks at the page, and what the page asked of whom and complained of."""

    page: Page
    requests: list[str]
    complaints: list[str]

    async def sees(self, state: State, *, seconds: float = LIVE_SECONDS) -> None:
        await expect(self.page.locator("html")).to_have_attribute("data-state", state, timeout=seconds * 1000)

    async def sees_row(self, key: object, text: str, *, seconds: float = ROWS_SECONDS) -> None:
        await expect(self.row(key)).to_contain_text(text, timeout=seconds * 1000)

    async def misses_row(self, key: object, *, seconds: float = ROWS_SECONDS) -> None:
        await expect(self.row(key)).to_have_count(0, timeout=seconds * 1000)

    def row(self, *key: object) -> Any:
        return self.page.locator(f"[data-key='{json.dumps(key, separators=(',', ':'))}']")

    async def counts(self, rows: int, *, seconds: float = ROWS_SECONDS) -> None:
        """Of all rows, those out of view too."""
        await expect(self.page.get_by_test_id("row-count")).to_have_text(str(rows), timeout=seconds * 1000)

    async def number(self, name: str) -> int:
        return int(await self.page.get_by_test_id(name).inner_text())

    async def hop(self, name: str, status: str, *, seconds: float = ROWS_SECONDS) -> None:
        await expect(self.page.get_by_test_id(f"hop-{name}")).to_have_attribute(
            "data-status", status, timeout=seconds * 1000
        )


@asynccontextmanager
async def looking(browser: Browser, url: str, *, viewport: tuple[int, int] = (1280, 900)) -> AsyncIterator[Operator]:
    """The page, opened at the URL that the console printed."""
    context = await browser.new_context(viewport={"width": viewport[0], "height": viewport[1]})
    page = await context.new_page()
    operator = Operator(page=page, requests=[], complaints=[])
    page.on("request", lambda request: operator.requests.append(request.url))
    page.on("websocket", lambda socket: operator.requests.append(socket.url))
    page.on("pageerror", lambda error: operator.complaints.append(str(error)))
    page.on("console", lambda said: operator.complaints.append(said.text) if _complains(said.type, said.text) else None)
    try:
        await page.goto(url)
        yield operator
    finally:
        await context.close()


def _complains(kind: str, text: str) -> bool:
    """What breaks the content security policy, or the program; a server that is gone is reported by the browser too."""
    return kind == "error" and ("Content Security Policy" in text or "Uncaught" in text)


def origins(urls: Sequence[str]) -> set[str]:
    """Scheme, host and port of each."""
    return {"/".join(url.split("/")[:3]) for url in urls if not url.startswith(("data:", "blob:"))}
