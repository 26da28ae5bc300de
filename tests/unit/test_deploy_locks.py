"""A lock of a killed update is cleared, one of a living process never."""

import os
import socket
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from deploy.errors import DeployError
from deploy.locks import Lock, held_fault, is_abandoned, parse_lock, read_locks, remove_cut_off_attributes

# As pulumi v3.259.0 writes it: nanoseconds and Z.
CONTENT = '{"pid":7053,"username":"root","hostname":"vm","timestamp":"2026-11-23T17:54:44.014797116Z"}'


def lock(pid: int, *, host: str | None = None, since: datetime | None = None) -> Lock:
    return Lock(pid=pid, host=host or socket.gethostname(), user="me", since=since or datetime.now(UTC))


def locks_of_dev(backend: Path) -> Path:
    folder = backend / "locks/organization/supabase-realtime/dev"
    folder.mkdir(parents=True)
    return folder


def test_the_engines_lock_file_is_read(tmp_path: Path) -> None:
    (locks_of_dev(tmp_path) / "2a6dece9.json").write_text(CONTENT)
    (tmp_path / "locks/organization/supabase-realtime/dev/2a6dece9.json.attrs").write_text('{"md5": ""}')
    assert read_locks(tmp_path, "dev") == [
        Lock(pid=7053, host="vm", user="root", since=datetime(2026, 11, 23, 17, 54, 44, 14797, tzinfo=UTC))
    ]
    assert read_locks(tmp_path, "prod") == []


def test_no_lock_folder_means_no_lock(tmp_path: Path) -> None:
    assert read_locks(None, "dev") == []
    assert read_locks(tmp_path, "dev") == []


def test_attributes_that_were_cut_off_are_removed_and_nothing_else(tmp_path: Path) -> None:
    stacks = tmp_path / "stacks/supabase-realtime"
    stacks.mkdir(parents=True)
    whole = '{"user.content_type": "text/plain; charset=utf-8", "user.metadata": null, "md5": "GV0M"}'
    (stacks / "dev.json").write_text("")
    (stacks / "dev.json.attrs").write_text("")
    (stacks / "dev.json.bak.attrs").write_text(whole)
    (stacks / "prod.json.attrs").write_text("")
    (locks_of_dev(tmp_path) / "1.json.attrs").write_text(whole[:20])
    removed = remove_cut_off_attributes(tmp_path, "dev")
    assert sorted(path.name for path in removed) == ["1.json.attrs", "dev.json.attrs"]
    assert sorted(path.name for path in stacks.iterdir()) == ["dev.json", "dev.json.bak.attrs", "prod.json.attrs"]
    assert remove_cut_off_attributes(tmp_path, "dev") == []
    assert remove_cut_off_attributes(None, "dev") == []


@pytest.mark.parametrize("content", ["", "[]", '{"pid": 1}', CONTENT.replace("2026-11", "soon")])
def test_an_unreadable_lock_is_not_guessed_at(content: str) -> None:
    with pytest.raises(DeployError, match="clear it with `pulumi cancel`"):
        parse_lock("2a6dece9.json", content)


def test_a_running_process_keeps_its_lock() -> None:
    assert not is_abandoned(lock(os.getpid()))


def test_the_lock_of_an_ended_process_is_abandoned() -> None:
    ended = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True)
    assert is_abandoned(lock(int(ended.stdout)))


def test_a_process_that_nobody_has_reaped_yet_is_ended_too() -> None:
    with subprocess.Popen([sys.executable, "-c", ""], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.read()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert is_abandoned(lock(process.pid))


def test_another_process_with_the_same_number_does_not_keep_the_lock() -> None:
    assert is_abandoned(lock(os.getpid(), since=datetime.now(UTC) - timedelta(days=3650)))


def test_a_process_on_another_machine_is_never_called_dead() -> None:
    assert not is_abandoned(lock(2**22 - 1, host="another-machine"))


def test_who_holds_the_stack_is_said_in_one_line() -> None:
    assert held_fault(parse_lock("x", CONTENT), "prod") == (
        "stack prod is being updated by root@vm, process 7053, since 2026-11-23 17:54:44 UTC; "
        "wait for it to end, or, if it is dead, run `pulumi cancel --stack prod`"
    )
