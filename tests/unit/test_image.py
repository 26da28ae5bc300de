"""What a container is made of once its image is pinned, and which Postgres reads which data."""

from __future__ import annotations

from typing import Any

import pytest

from providers.image import reference, still_names
from providers.postgres_major import Majors, parsed

A, B = "sha256:" + "a" * 64, "sha256:" + "b" * 64


def attributes(identity: str, *digests: str) -> dict[str, Any]:
    """What the engine says of an image, as far as it matters."""
    return {"Id": identity, "RepoDigests": list(digests)}


@pytest.mark.parametrize(
    ("image", "digests", "pinned"),
    [
        ("supabase/realtime:v2.32.12", [f"supabase/realtime@{B}"], f"supabase/realtime:v2.32.12@{B}"),
        ("kong:2.8.1", [f"mirror.example.com/kong@{A}", f"kong@{B}"], f"kong:2.8.1@{B}"),
        ("localhost:5000/kong:2.8.1", [f"localhost:5000/kong@{B}"], f"localhost:5000/kong:2.8.1@{B}"),
        (f"supabase/realtime@{B}", [f"supabase/realtime@{B}"], f"supabase/realtime@{B}"),
        (f"supabase/realtime:v2.32.12@{B}", [f"supabase/realtime@{B}"], f"supabase/realtime:v2.32.12@{B}"),
        # Of an image that was built here, or pulled under another name, nothing but the id is for ever.
        ("built-here/realtime:v2.32.12", [], A),
        ("built-here/realtime:v2.32.12", [f"supabase/realtime@{B}"], A),
    ],
)
def test_an_image_is_pinned_by_its_digest_and_a_local_one_by_its_id(
    image: str, digests: list[str], pinned: str
) -> None:
    assert reference(image, attributes(A, *digests)) == pinned


def test_a_tag_has_moved_when_it_names_another_image() -> None:
    assert still_names(A, attributes(A))
    assert not still_names(A, attributes(B))
    pulled = f"supabase/realtime:v2.32.12@{A}"
    assert still_names(pulled, attributes(B, f"supabase/realtime@{A}"))
    assert not still_names(pulled, attributes(B, f"supabase/realtime@{B}"))


def test_an_image_that_got_a_digest_since_is_the_same() -> None:
    """As when it was built here and pushed, or pulled by a second digest of the same content."""
    assert still_names(A, attributes(A, f"supabase/realtime@{B}"))
    assert still_names(f"supabase/realtime:v2.32.12@{A}", attributes(B, f"x@{B}", f"supabase/realtime@{A}"))


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        ("15\npostgres (PostgreSQL) 15.8\n", Majors(15, 15)),
        ("15\npostgres (PostgreSQL) 17.4 (Debian 17.4-1.pgdg120+2)\n", Majors(15, 17)),
        ("15\n(PostgreSQL) 17\n", Majors(15, 17)),
        ("15\n(PostgreSQL) unknown\n", Majors(15, None)),
    ],
)
def test_the_major_versions_are_read_from_the_volume_and_from_the_image(answer: str, found: Majors) -> None:
    assert parsed(answer) == found
