"""A recorded run of the quickstart: the bill that docs/cost.md reckons by hand is the bill."""

from __future__ import annotations

import json
import re
from datetime import datetime, timezone
from pathlib import Path

import pytest

from checkpoints.store import ObjectStore, open_store
from orchestrator.report import cost_document, status_document
from orchestrator.view import RunView, RunViewer

RECORDED = Path(__file__).with_name("recorded_quickstart.json")
PAGE = Path(__file__).parents[2] / "docs" / "cost.md"


def fill(store: ObjectStore, *, backwards: bool = False) -> ObjectStore:
    found = json.loads(RECORDED.read_text())
    for key in sorted(found, reverse=backwards):
        store.create(key, found[key].encode())
    return store


def look(store: ObjectStore) -> RunView:
    return RunViewer(store).look(datetime(2026, 11, 30, tzinfo=timezone.utc))


@pytest.fixture(scope="module")
def view() -> RunView:
    return look(fill(open_store("memory://recorded")))


def amounts_in(section: str) -> list[str]:
    """Return the numbers of a section of the page that begins with these words in bold."""
    text = PAGE.read_text().partition(f"**{section}")[2]
    return re.findall(r"\d+\.\d{6}", re.split(r"\n\n\*\*", text)[0])


def test_parts_of_the_bill_are_those_reckoned_by_hand(view):
    document = cost_document(view)
    parts = document["parts"]
    for section, amount in (
        ("Compute.", parts["compute"]),
        ("Storage.", parts["storage"]),
        ("Requests.", parts["requests"]),
        ("Egress.", parts["egress"]),
        ("Total.", document["total_usd"]),
        ("On demand.** Attempts", document["on_demand_usd"]),
    ):
        assert amounts_in(section)[-1] == f"{amount:.6f}", section
    assert f"{document['savings_fraction']:.0%}" == "57%"


def test_costs_of_steps_and_tokens_are_those_reckoned_by_hand(view):
    document = cost_document(view)
    units = ("usd_per_thousand_steps", "usd_per_million_tokens")
    assert {f"{document[unit]:.6f}" for unit in units} < set(amounts_in("Per unit."))


def test_attempts_are_those_reckoned_by_hand(view):
    for row in cost_document(view)["attempts"]:
        assert f"{row['usd']:.6f}" in amounts_in("Compute.")
    assert f"{view.goodput.billed.total_seconds():.6f}" in amounts_in("Compute.")


def test_seconds_are_those_on_the_page(view):
    document = cost_document(view)
    seconds = [*document["seconds"].values(), document["wall_seconds"], document["billed_seconds"]]
    assert amounts_in("Seconds") == [f"{one:.6f}" for one in seconds]


def test_a_copy_of_the_folder_gives_the_same_bytes(view):
    again = look(fill(open_store("memory://copy"), backwards=True))
    for document in (status_document, cost_document):
        assert json.dumps(document(again)) == json.dumps(document(view))
