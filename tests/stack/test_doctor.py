"""The doctor on a real stack: it finds nothing when nothing is wrong, and what is wrong when something is."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator

import pytest

from doctor.causes import CAUSES
from doctor.checks.finding import Status
from doctor.checks.setup import Need
from doctor.examination import CHECKS, Examination, examine
from tests.stack.conftest import new_deployment, removed, unique_stack
from tests.stack.faults import FAULTS, NEWEST, Fault, Patient, until

TIME_LIMIT_SECONDS = 20
SEVEN_FAILURES = {
    1: {
        "rlimit-nofile-missing:without RLIMIT_NOFILE",
        "schema-of-tenants-missing:realtime_starts_without_its_schema",
    },
    2: {"tenant-missing:only_realtime_dev_is_seeded"},
    3: {"search-path-wrong:search_path to realtime"},
    4: {"route-path-wrong:the route of the notes", "route-preserves-host:the client's host is handed on"},
    5: {
        "select-policy-missing:no SELECT policy for anon",
        "select-grant-missing:SELECT was revoked",
        "table-not-published:the table was taken out",
    },
    6: {"insert-policy-missing:no INSERT policy"},
    7: {"realtime-not-listening:realtime_is_not_listening_yet"},
}
"""The failures that the README lists, in its order."""
CHEAP = {
    "gateway-config-invalid:the_gateway_file_is_broken",
    "postgres-version-unsupported:postgres_is_of_version_13",
    "replication-slots-exhausted:other_slots_take_all",
    "tenant-secret-differs:the_tenant_has_another_secret",
    "key-expired:the_key_has_expired",
    "container-paused:realtime_is_paused",
    "container-cannot-start:somebody_took_the_port_of_the_gateway",
    "publication-empty:somebody_published_no_table",
    "probe-failed:a_trigger_throws_the_rows_away",
}
"""One of each kind of fault, among those that cost a second or two."""
ALWAYS = set().union(*SEVEN_FAILURES.values(), CHEAP)
LONG = pytest.mark.skipif(
    os.environ.get("STACK_TESTS") != "all", reason="a hundred faults more take ten minutes: set STACK_TESTS=all"
)


@pytest.fixture(scope="module")
def patient(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Patient]:
    """One stack of this module's own, on which every fault is brought about and undone."""
    deployment = new_deployment(tmp_path_factory.mktemp("doctor"), stack=unique_stack("doctor"), settings={})
    try:
        deployment.up()
        yield Patient.of(deployment)
    finally:
        removed(deployment)


def troubles(examination: Examination) -> list[str]:
    """The causes of everything that failed, in order."""
    return [str(finding.cause) for finding in examination.of(Status.FAILED)]


def healthy(patient: Patient) -> None:
    """Everything is ok again; Realtime's log of the last fault may take its time to fall silent."""

    def well() -> bool:
        return examine(patient.setup).exit_status == 0

    until(well, "a healthy stack", seconds=90)


def test_a_healthy_stack_has_no_trouble(patient: Patient) -> None:
    healthy(patient)
    done = patient.deployment.run(sys.executable, "-m", "doctor", "--stack", patient.deployment.stack, "--json")
    report = json.loads(done.stdout)
    assert report["seconds"] < TIME_LIMIT_SECONDS
    assert {finding["status"] for finding in report["findings"]} == {"ok"}
    for secret in patient.secrets:
        assert secret not in done.stdout + done.stderr


def test_looking_changes_nothing(patient: Patient) -> None:
    counts = (
        "SELECT array[(SELECT count(*) FROM public.wells), (SELECT count(*) FROM pg_replication_slots "
        "WHERE slot_name LIKE 'doctor%%'), (SELECT count(*) FROM _realtime.tenants)]"
    )
    rows = patient.value("SELECT count(*) FROM public.wells")
    examine(patient.setup)
    assert patient.value(counts) == [rows, 0, 1]


def test_the_probe_is_only_run_when_asked_for_and_cleans_up(patient: Patient) -> None:
    rows = patient.value("SELECT count(*) FROM public.wells")
    examination = examine(patient.setup, writing=True)
    assert examination.finding("change.arrives").status is Status.OK
    assert examination.exit_status == 0
    assert patient.value("SELECT count(*) FROM public.wells") == rows
    assert all(finding.check != "change.arrives" for finding in examine(patient.setup).findings)


def test_a_set_up_known_by_url_and_dsn_is_examined_and_what_it_does_not_tell_is_skipped_with_the_reason(
    patient: Patient,
) -> None:
    assert patient.setup.dsn is not None
    assert patient.setup.url is not None
    done = patient.deployment.run(
        *(sys.executable, "-m", "doctor", "--url", patient.setup.url, "--json"),
        environ={"DOCTOR_DSN": patient.setup.dsn.get_secret_value(), "DOCTOR_ANON_KEY": patient.setup.key},
    )
    report = json.loads(done.stdout)
    of = {status: {f["check"] for f in report["findings"] if f["status"] == status} for status in Status}
    reasons = {finding["check"]: finding["seen"] for finding in report["findings"] if finding["status"] == "skipped"}
    assert (of[Status.FAILED], of[Status.WARNING], of[Status.NOT_REACHED]) == (set(), set(), set())
    for check in CHECKS:
        if Need.DOCKER in check.needs:
            assert reasons[check.id] == "this program did not make the set-up, so that its containers are not known"
        elif Need.REALTIME in check.needs:
            assert reasons[check.id] == "where Realtime listens, without the gateway, is not known"
    assert reasons["tenant.encryption"].startswith("db_enc_key is not known: this program did not make the set-up")
    assert {"postgres.wal2json", "tables.privileges", "tenant.present", "gateway.websocket"} <= of[Status.OK]
    for secret in patient.secrets:
        assert secret not in done.stdout + done.stderr


def test_the_command_line_says_what_is_wrong_and_exits_2(patient: Patient) -> None:
    patient.run("REVOKE SELECT ON public.wells FROM anon")
    try:
        done = patient.deployment.run(
            sys.executable, "-m", "doctor", "examine", "--stack", patient.deployment.stack, check=False
        )
    finally:
        patient.run("GRANT SELECT ON public.wells TO anon")
    assert done.returncode == 2
    assert "GRANT SELECT ON public.wells TO anon" in done.stdout
    assert "[select-grant-missing]" in done.stdout


def test_the_faults_of_every_run_are_among_all_faults() -> None:
    assert {fault.label for fault in FAULTS} >= ALWAYS


def test_every_cause_is_brought_about_by_a_fault() -> None:
    assert {fault.cause for fault in FAULTS} | {"database-newer-than-realtime"} == set(CAUSES)


@pytest.mark.parametrize(
    "fault", [pytest.param(one, id=one.label, marks=() if one.label in ALWAYS else LONG) for one in FAULTS]
)
def test_names_the_fault_first_and_no_other_check_lies(patient: Patient, fault: Fault) -> None:
    patient.whole(but=fault.leaves)
    with fault.bring_about(patient) as setup:
        examination = examine(setup or patient.setup, writing=fault.writing)
    report = examination.model_dump_json(indent=2)
    assert examination.root == fault.cause, report
    assert examination.seconds < TIME_LIMIT_SECONDS
    expected = set() if fault.warns else {fault.cause}
    assert {cause for cause in troubles(examination) if cause not in fault.also} == expected, report
    assert examination.unlooked == (), report
    assert examination.exit_status == (1 if fault.warns else 2)
    for secret in patient.secrets:
        assert secret not in report


def test_the_stack_is_healthy_when_every_fault_is_undone(patient: Patient) -> None:
    patient.whole()
    healthy(patient)
    assert examine(patient.setup, writing=True).exit_status == 0


@LONG
def test_the_newest_realtime_is_understood_and_the_way_back_from_it_is_named(patient: Patient) -> None:
    """The last test: the newest version migrates the database, and there is no way back."""
    if not patient.engine.images.list(NEWEST):
        pytest.skip(f"no image {NEWEST} (set REALTIME_IMAGE_NEWEST to another): `docker pull {NEWEST}`")
    patient.replace("realtime", image=NEWEST)
    patient.healthy("realtime")
    newest = examine(patient.setup, writing=True)
    assert [finding.cause for finding in newest.of(Status.WARNING)] == ["image-differs"], newest.model_dump_json()
    assert newest.exit_status == 1
    patient.whole()
    back = examine(patient.setup)
    assert troubles(back) == ["database-newer-than-realtime"], back.model_dump_json(indent=2)
