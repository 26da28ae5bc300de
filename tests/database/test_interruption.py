"""A removal under way when Ctrl-C is pressed once more: the row is removed all the same."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from doctor.outputs import Outputs
from tests.database.conftest import Connection, until
from tests.database.test_probe_row import WELLS, open_to_anon, outputs_of

PROJECT = Path(__file__).parents[2]
PROBING = """
import asyncio, random, sys
from doctor import interruption, outputs
from doctor.database import connected
from doctor.plan import choose, write
from doctor.removal import in_any_case, remove
from doctor.sample_row import sample_row

async def one_row(stack):
    async with connected(stack, 20) as connection:
        chosen, _ = await choose(connection, stack, random.SystemRandom())
        row = await sample_row(connection, chosen.table, random.SystemRandom())
        written = await write(connection, chosen, row, stack)
        await connection.commit()
        try:
            print("committed", flush=True)
            await asyncio.sleep(60)  # its event does not come
        finally:
            assert await in_any_case(remove(stack, connection, chosen.table, written, committed=True)) is None

try:
    interruption.run(one_row(outputs.read_file("-")))
except KeyboardInterrupt:
    sys.exit(interruption.INTERRUPTED)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_row_is_removed_though_the_removal_is_interrupted_too(
    number: signal.Signals, database: str, admin: Connection, superuser: Connection
) -> None:
    admin.execute(WELLS)
    open_to_anon(admin, "public.wells")
    stack = outputs_of(database, ("public.wells", "anon", "anon"))
    with subprocess.Popen(
        [sys.executable, "-c", PROBING], cwd=PROJECT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(document(stack))
        process.stdin.close()
        assert process.stdout.readline() == "committed\n"
        with admin.transaction():
            admin.execute("LOCK TABLE public.wells IN EXCLUSIVE MODE")
            process.send_signal(number)
            until(superuser, "SELECT FROM pg_stat_activity WHERE query LIKE 'DELETE%' AND wait_event_type = 'Lock'")
            process.send_signal(number)
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(0.5)
        assert process.wait(20) == 130
    assert admin.execute("SELECT count(*) FROM public.wells").fetchone() == (0,)


def document(stack: Outputs) -> str:
    """The outputs as `pulumi stack output --json --show-secrets` prints them."""
    secrets = {name: getattr(stack, name).get_secret_value() for name in ("service_role_key", "database_password")}
    masked = stack.model_dump(mode="json", exclude_computed_fields=True)
    return json.dumps(masked | secrets)
