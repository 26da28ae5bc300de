"""Runs what writes rows: Ctrl-C or SIGTERM, however often, cancels it and lets it clean up."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

ResultT = TypeVar("ResultT")

INTERRUPTED = 130
"""The exit status after either signal: what a shell gives a command that Ctrl-C ended."""


def run(work: Coroutine[Any, Any, ResultT]) -> ResultT:
    """The result of a coroutine, as ``asyncio.run`` has it. SIGINT and SIGTERM cancel it, and do nothing more.

    Raises KeyboardInterrupt after either. asyncio alone leaves its loop at a second SIGINT, and a SIGTERM ends the
    process: rows that were being removed would stay. Another thread than the main one gets no signals.
    """
    signalled = False

    async def working() -> ResultT:
        task = asyncio.current_task()
        assert task is not None, "a coroutine under asyncio.run has a task"

        def interrupt() -> None:
            nonlocal signalled
            signalled = True
            task.cancel()

        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                asyncio.get_running_loop().add_signal_handler(number, interrupt)
        return await work

    try:
        return asyncio.run(working())
    except asyncio.CancelledError:
        if signalled:
            raise KeyboardInterrupt from None
        raise
    finally:
        work.close()  # not begun, if a signal came before
