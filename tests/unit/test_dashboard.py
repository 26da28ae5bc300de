"""The Grafana dashboard is one that Grafana imports, and asks for the stack that is chosen."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.dashboard import expressions, names

DASHBOARD = Path(__file__).parents[2] / "observability/dashboard.json"


@pytest.fixture
def dashboard() -> dict[str, Any]:
    document: dict[str, Any] = json.loads(DASHBOARD.read_text())
    return document


def test_every_panel_has_a_title_a_unit_and_a_query_of_the_chosen_source(dashboard: dict[str, Any]) -> None:
    for panel in dashboard["panels"]:
        assert panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"]
        assert panel["datasource"] == {"type": "prometheus", "uid": "${source}"}
        assert panel["targets"]


def test_panels_do_not_overlap(dashboard: dict[str, Any]) -> None:
    places = [
        (x, y)
        for panel in dashboard["panels"]
        for x in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"])
    ]
    assert len(set(places)) == len(places)
    assert max(x for x, _ in places) < 24
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])


def test_every_query_is_of_the_chosen_stack(dashboard: dict[str, Any]) -> None:
    assert {variable["name"] for variable in dashboard["templating"]["list"]} == {"source", "stack"}
    for expression in expressions(DASHBOARD):
        assert expression.count('{stack="$stack"') == len(names(expression)), expression


@pytest.mark.parametrize(
    ("expression", "found"),
    [
        ('up{stack="a"}', {"up"}),
        ('sum by (code) (rate(kong_http_status{stack="a"}[$__rate_interval]))', {"kong_http_status"}),
        ("histogram_quantile(0.95, sum by (le) (rate(a_bucket[5m])))", {"a_bucket"}),
        ('a{x="b"} / on (stack) c', {"a", "c"}),
        ("1 - min(a) > bool 2", {"a"}),
    ],
)
def test_the_figures_of_a_query_are_found(expression: str, found: set[str]) -> None:
    assert names(expression) == found
