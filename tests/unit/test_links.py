"""Links lead somewhere: those between the pages of this repository, and in their form those out of it."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from doctor.causes import CAUSES, Cause

PROJECT = Path(__file__).parents[2]
PAGES = [PROJECT / "README.md", *sorted((PROJECT / "docs").glob("*.md"))]
LINK = re.compile(r"\]\(([^()\s]+)\)")
FENCED = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)


def anchors(page: Path) -> set[str]:
    """What a fragment may name in a page: its headings as GitHub spells them, and anchors of its own."""
    text = FENCED.sub("", page.read_text())
    headings = re.findall(r"^#+ +(.+?) *$", text, re.MULTILINE)
    slugs = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
    return slugs | set(re.findall(r'<a id="([^"]+)">', text))


def missing(page: Path, link: str) -> str | None:
    """What a link of a page lacks to lead somewhere in this repository; None when it does, or leads out of it."""
    if urlsplit(link).scheme:
        return None
    path, _, fragment = link.partition("#")
    target = page.parent / path if path else page
    if not target.exists():
        return f"{link}: no such file"
    return f"{link}: no such anchor" if fragment and fragment not in anchors(target) else None


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_between_the_pages_lead_to_a_file_and_an_anchor(page: Path) -> None:
    links = LINK.findall(FENCED.sub("", page.read_text()))
    assert [fault for link in links if (fault := missing(page, link))] == []


def test_a_link_to_nothing_is_seen(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text('# The *one* heading, `code`\n<a id="own"></a>\n')
    assert all(missing(page, link) is None for link in ("page.md", "#the-one-heading-code", "page.md#own"))
    assert missing(page, "other.md") == "other.md: no such file"
    assert missing(page, "#other") == "#other: no such anchor"


@pytest.mark.parametrize("cause", CAUSES.values(), ids=lambda cause: cause.id)
def test_the_page_of_a_cause_is_a_whole_address(cause: Cause) -> None:
    """Pages of upstream: https, a host, a path and perhaps an anchor, with nothing left to fill in."""
    address = urlsplit(cause.page)
    assert address.scheme == "https"
    assert re.fullmatch(r"[a-z0-9-]+(\.[a-z0-9-]+)+", address.netloc)
    assert re.fullmatch(r"/[\w./~-]+", address.path)
    assert re.fullmatch(r"[\w-]*", address.fragment)
    assert not address.query
    assert "//" not in address.path
