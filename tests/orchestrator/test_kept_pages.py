"""Pages that take long are answered with the last one, and made anew meanwhile."""

from __future__ import annotations

import threading

import pytest

from orchestrator.dashboard import kept
from orchestrator.dashboard.kept import KeptPages


class Maker:
    """Makes numbered pages, each when it is told to go on."""

    def __init__(self) -> None:
        self.num_made = 0
        self.goes_on = threading.Event()
        self.goes_on.set()
        self.is_done = threading.Event()

    def __call__(self) -> str:
        assert self.goes_on.wait(30)
        self.num_made += 1
        self.is_done.set()
        return f"page {self.num_made}"


@pytest.fixture
def clock(monkeypatch):
    """Return what is added to the clock with each look at it."""
    step = {"now": 0.0, "by": 0.0}

    def monotonic() -> float:
        step["now"] += step["by"]
        return step["now"]

    monkeypatch.setattr(kept.time, "monotonic", monotonic)
    return step


def test_what_is_quick_is_made_for_each_visitor(clock):
    pages, make = KeptPages(), Maker()
    assert [pages.get("/", make, waits=False) for _ in range(3)] == ["page 1", "page 2", "page 3"]


def test_what_takes_long_is_answered_at_once_and_made_once_meanwhile(clock):
    clock["by"] = 1.0
    pages, make = KeptPages(), Maker()
    assert pages.get("/", make, waits=False) == "page 1"
    make.goes_on.clear()
    make.is_done.clear()
    assert [pages.get("/", make, waits=False) for _ in range(3)] == ["page 1"] * 3
    make.goes_on.set()
    assert make.is_done.wait(30)
    assert make.num_made == 2
    assert pages.get("/", make, waits=True) == "page 3"  # the script of a page that is shown
    assert pages.get("/other", make, waits=False) == "page 4"


def test_who_asks_after_a_failure_is_told_of_it(clock):
    clock["by"] = 1.0
    pages, make = KeptPages(), Maker()
    pages.get("/", make, waits=False)
    failed = threading.Event()

    def fail() -> str:
        failed.set()
        raise OSError("the disk is gone")

    pages.get("/", fail, waits=False)
    assert failed.wait(30)
    with pytest.raises(OSError, match="the disk is gone"):
        ask_until_told(pages, fail)


def ask_until_told(pages: KeptPages, make) -> None:
    while True:
        pages.get("/", make, waits=False)
