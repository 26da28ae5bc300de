"""The subcommand ``console`` of ``python -m doctor``."""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import socket
import sys
import threading
import webbrowser
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import uvicorn

from doctor import outputs
from doctor.console.access import Access
from doctor.console.app import STATIC, UNBUILT, Console
from doctor.console.identity import LEAST_SECONDS
from doctor.examine import COULD_NOT_LOOK, stack_setup
from settings import DEVELOPMENT_STACK

HOST = "127.0.0.1"
PORT = 4747
TOKEN_SECONDS = 3600
DAY_SECONDS = 86_400
GRACE_SECONDS = 6
"""What is being answered at the end has so long, which is longer than the database has."""
INTERRUPTED = 130


def add_arguments(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the subcommand. It sets ``run`` in the parsed arguments."""
    serving = subparsers.add_parser(
        "console",
        help="open a page on this machine that shows the stack live",
        description="Serves a page on 127.0.0.1 that shows what flows and what does not, and a table as it changes, "
        "until Ctrl-C or SIGTERM. Test rows that were made on it are removed at the end. Exit 0, 3 could not begin.",
    )
    which = serving.add_mutually_exclusive_group()
    which.add_argument("--stack", help=f"stack to show (default: {DEVELOPMENT_STACK})")
    which.add_argument(
        "--outputs", metavar="FILE", help="`pulumi stack output --json --show-secrets` in a file; - for standard input"
    )
    serving.add_argument("--port", type=_port, default=PORT, metavar="N", help="default: %(default)s; 0 for a free one")
    serving.add_argument("--no-open", action="store_true", help="do not open the browser")
    serving.add_argument(
        "--token-lifetime",
        type=_lifetime,
        default=TOKEN_SECONDS,
        metavar="S",
        help="seconds that a token of the page is valid, before it asks for another (default: %(default)s)",
    )
    serving.set_defaults(run=run)


def run(given: argparse.Namespace) -> int:
    """Serves the console of the stack in the arguments; the exit status."""
    name = given.stack or (_name(given.outputs) if given.outputs else DEVELOPMENT_STACK)
    try:
        setup = stack_setup(given.stack, given.outputs, environ=os.environ)
        listener = socket.create_server((HOST, given.port))
    except outputs.OutputsError as unreadable:
        print(unreadable, file=sys.stderr)
        return COULD_NOT_LOOK
    except OSError as refused:
        print(
            f"--port: {HOST}:{given.port} cannot be had ({os.strerror(refused.errno or 0)}); choose another",
            file=sys.stderr,
        )
        return COULD_NOT_LOOK
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    with setup, listener:
        console = Console(setup, name=name, lifetime=given.token_lifetime)
        return asyncio.run(serve(console, listener, tell=lambda access: _announce(name, access, given.no_open)))


async def serve(
    console: Console,
    listener: socket.socket,
    *,
    tell: Callable[[Access], None],
    ended: asyncio.Event | None = None,
) -> int:
    """Serves until SIGINT or SIGTERM, or until ``ended`` is set; then removes the test rows. The exit status.

    ``tell`` is called with the way in, once requests are answered.
    """
    access = Access(listener.getsockname()[1])
    server = _Server(
        uvicorn.Config(
            console.app(access),
            http="h11",
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,  # it would have the token of the URL
            server_header=False,
            proxy_headers=False,
            timeout_graceful_shutdown=GRACE_SECONDS,
        )
    )

    def stop() -> None:
        server.should_exit = True
        console.streams.end()

    stopping = None if ended is None else asyncio.create_task(_call_after(ended, stop))
    with _on_signals(stop):
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        try:
            await asyncio.wait({serving, asyncio.create_task(server.ready.wait())}, return_when=asyncio.FIRST_COMPLETED)
            if server.ready.is_set():
                tell(access)
            await serving
        finally:
            if stopping is not None:
                stopping.cancel()
            left = await console.made.remove_all()
    if left:
        print(f"{len(left)} test rows could not be removed; remove them by hand:", *left, sep="\n", file=sys.stderr)
    return 0


class _Server(uvicorn.Server):
    """uvicorn, whose signals are the console's to handle: its own would raise them once more at the end."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.ready = asyncio.Event()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.ready.set()


async def _call_after(happened: asyncio.Event, call: Callable[[], None]) -> None:
    await happened.wait()
    call()


@contextmanager
def _on_signals(stop: Callable[[], None]) -> Iterator[None]:
    numbers = (signal.SIGINT, signal.SIGTERM) if threading.current_thread() is threading.main_thread() else ()
    loop = asyncio.get_running_loop()
    for number in numbers:
        loop.add_signal_handler(number, stop)
    try:
        yield
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)


def _announce(name: str, access: Access, no_open: bool) -> None:
    print(f"console of stack {name}: {access.url}", flush=True)
    if not (STATIC / "index.html").is_file():
        print(UNBUILT, file=sys.stderr, flush=True)
    elif not no_open and sys.stdout.isatty() and _has_windows(sys.platform):
        threading.Thread(target=webbrowser.open, args=(access.url_for_once(),), daemon=True).start()


def _has_windows(platform: str) -> bool:
    """Whether a browser would be a window: one in the terminal would be in the way of what is printed there."""
    return platform in ("darwin", "win32") or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


def _name(file: str) -> str:
    return "standard input" if file == "-" else Path(file).name


def _port(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text) <= 65_535):  # noqa: PLR2004
        raise argparse.ArgumentTypeError(f"{text} is not a port, 0 to 65535")
    return int(text)


def _lifetime(text: str) -> int:
    if not (text.isascii() and text.isdigit() and LEAST_SECONDS <= int(text) <= DAY_SECONDS):
        raise argparse.ArgumentTypeError(f"{text} is not between {LEAST_SECONDS} and {DAY_SECONDS} seconds")
    return int(text)
