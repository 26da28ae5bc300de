"""Which version of Realtime an image is, and what that version knows."""

from __future__ import annotations

from typing import Any

import pytest

import settings
from deploy.generated import generate
from realtime_versions import (
    ENVIRONMENT_SINCE,
    OLDEST,
    POINTS_OF_NO_RETURN,
    SETTABLE_SINCE,
    Version,
    image_version,
)
from settings import NAMESPACE, RealtimeSettings, SettingsError

DIGEST = "@sha256:" + "0" * 64


def realtime(**values: Any) -> RealtimeSettings:
    """The section of a stack with these settings of Realtime."""
    config = {f"{NAMESPACE}:{key}": generate(key) for key in settings.secret_keys()}
    config |= {f"{NAMESPACE}:realtime.{key}": value for key, value in values.items()}
    return settings.load(config, stack="staging", environ={}).realtime


def faults(**values: Any) -> list[str]:
    with pytest.raises(SettingsError) as faulty:
        realtime(**values)
    return faulty.value.faults


@pytest.mark.parametrize(
    ("image", "version"),
    [
        ("supabase/realtime:v2.32.12", Version(2, 32, 12)),
        ("registry.example.com:5000/realtime:2.129.8", Version(2, 129, 8)),
        (f"supabase/realtime:v2.129.8{DIGEST}", Version(2, 129, 8)),
        (f"supabase/realtime{DIGEST}", None),
        ("supabase/realtime:main", None),
        ("supabase/realtime:v2.129.8-rc1", None),
    ],
)
def test_the_version_is_what_the_tag_says(image: str, version: Version | None) -> None:
    assert image_version(image) == version


def test_an_image_whose_tag_says_nothing_has_the_version_that_is_set() -> None:
    assert realtime(image="example.com/realtime:ours").release is None
    assert realtime(image="example.com/realtime:ours", version="2.129.8").release == Version(2, 129, 8)
    assert realtime(image=f"example.com/realtime{DIGEST}", version="v2.129.8").release == Version(2, 129, 8)


@pytest.mark.parametrize("version", ["newest", "2", "2.129", "2.129.x"])
def test_a_version_that_is_none_is_refused(version: str) -> None:
    (fault,) = faults(version=version)
    assert fault == f"{NAMESPACE}:realtime.version: {version!r} is not a version; write it like 2.32.12"


def test_a_version_beside_a_tag_that_says_another_is_refused() -> None:
    (fault,) = faults(image="supabase/realtime:v2.129.8", version="2.32.12")
    assert fault.startswith(f"{NAMESPACE}:realtime.version: is 2.32.12, and the tag of realtime.image says 2.129.8; ")
    assert realtime(image="supabase/realtime:v2.129.8", version="2.129.8").release == Version(2, 129, 8)


@pytest.mark.parametrize(
    ("values", "key"),
    [
        ({"image": "supabase/realtime:v2.32.11"}, "realtime.image"),
        ({"image": "example.com/realtime:ours", "version": "1.0.0"}, "realtime.version"),
    ],
)
def test_a_version_older_than_any_that_was_run_is_refused(values: dict[str, str], key: str) -> None:
    (fault,) = faults(**values)
    assert fault.startswith(f"{NAMESPACE}:{key}: is Realtime ")
    assert fault.endswith("and 2.32.12 is the oldest that this stack can run; take that or newer")


def test_a_variable_that_the_version_knows_is_accepted() -> None:
    known = realtime(image="supabase/realtime:v2.36.13", environment='["TENANT_CACHE_EXPIRATION_IN_MS=10000"]')
    assert known.environment == ("TENANT_CACHE_EXPIRATION_IN_MS=10000",)


def test_a_variable_that_the_version_does_not_know_is_an_error_with_key_version_and_cure() -> None:
    assert faults(image="supabase/realtime:v2.36.12", environment='["TENANT_CACHE_EXPIRATION_IN_MS=10000"]') == [
        f"{NAMESPACE}:realtime.environment[0]: sets TENANT_CACHE_EXPIRATION_IN_MS, which Realtime 2.36.12 does not "
        "know; set realtime.image to 2.36.13 or newer, or leave the variable out"
    ]


def test_of_an_image_that_does_not_tell_its_version_only_what_all_know_is_accepted() -> None:
    assert realtime(image="example.com/realtime:ours", environment='["DB_POOL_SIZE=10"]').environment
    (fault,) = faults(image="example.com/realtime:ours", environment='["RUN_JANITOR=true"]')
    assert fault.endswith("and realtime.image does not say its version; set realtime.version")


@pytest.mark.parametrize("name", ["DB_PASSWORD", "LOG_LEVEL", "API_JWT_SECRET_NEXT", "CLUSTER_STRATEGIES", "POOLSIZE"])
def test_what_the_stack_sets_itself_and_secrets_are_refused(name: str) -> None:
    (fault,) = faults(image="supabase/realtime:v2.129.8", environment=f'["{name}=a-value"]')
    assert f"environment[0]: sets {name}, which is not a variable of Realtime, a secret, or this stack's own" in fault
    assert "TENANT_CACHE_EXPIRATION_IN_MS" in fault
    assert "a-value" not in fault


@pytest.mark.parametrize("variable", ["DB_POOL_SIZE", "db_pool_size=1", "=1", "DB POOL=1"])
def test_what_is_no_variable_is_refused(variable: str) -> None:
    (fault,) = faults(environment=f'["{variable}"]')
    assert fault.endswith("is not a variable; write it like TENANT_CACHE_EXPIRATION_IN_MS=10000")


def test_a_variable_is_set_once() -> None:
    (fault,) = faults(environment='["DB_POOL_SIZE=1", "DB_POOL_SIZE=2"]')
    assert fault.endswith("sets DB_POOL_SIZE, which realtime.environment[0] sets already; keep one")


def test_the_tables_agree() -> None:
    """Nothing may be set that the stack sets by itself, and every point of no return is newer than the oldest."""
    assert not {name for _, name, _ in ENVIRONMENT_SINCE} & set(SETTABLE_SINCE)
    assert all(since >= OLDEST for since in SETTABLE_SINCE.values())
    assert list(POINTS_OF_NO_RETURN) == sorted(POINTS_OF_NO_RETURN)
    assert all(point.since > OLDEST for point in POINTS_OF_NO_RETURN)
