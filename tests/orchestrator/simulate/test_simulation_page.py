"""The page of a simulation: all that was asked is in it, and nothing comes from elsewhere."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser

from orchestrator.dashboard.simulation import build_simulation, render_simulation
from orchestrator.policy.named import POLICIES
from orchestrator.simulate.study import study
from orchestrator.simulate.terms import Terms
from orchestrator.simulate.what_if import Key, Question, Value, answer, keep_zones, make_cases
from tests.orchestrator.simulate.markets import TICK_S, zone

TICK = TICK_S / 3600
HOSTILE = "<script>alert(1)</script>\" onload='x' http://evil.example/"
VOID = {"meta", "link", "br", "img", "input", "hr"}
QUESTION = Question(
    record="records/market",
    traces=(
        zone("za", "110" * 20, region="a", spot=0.5),
        zone("zb", "1" * 60, region="b", spot=1.0),
        zone(HOSTILE, "0" * 60, region="c"),
    ),
    num_nodes=1,
    terms=Terms(work=1.0, deadline=3.0, restart=TICK / 2),
)


class Page(HTMLParser):
    """Collects tags, attributes and text, and checks that what opens closes."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str | None]] = []
        self.text: list[str] = []
        self.open: list[str] = []
        self.feed(page)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.handle_startendtag(tag, attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.text.append(data)


def deadline(hours):
    def change(question):
        return replace(question, terms=replace(question.terms, deadline=hours))

    return Value(key=Key.DEADLINE, text=f"{hours:g}h", number=hours, change=change)


def zones(text, *names):
    return Value(
        key=Key.ZONES, text=text, number=None, change=lambda question: keep_zones(question, names)
    )


def answers_to(choices, policies):
    found = []
    for case in make_cases(QUESTION, choices, 5, seed=0):
        outcomes = []
        if case.market is not None:
            outcomes = list(study(case.market, case.starts, case.question.terms, policies))
        found += answer(case, outcomes, policies)
    return found


def check(page: str) -> str:
    """Return the text of a page that loads nothing, runs nothing and is well formed."""
    parsed = Page(page)
    assert not {"script", "link", "img", "iframe", "object"} & parsed.tags
    names = {name for name, _ in parsed.attributes}
    assert not {"src", "href", "xlink:href", "srcset", "action", "style"} & names
    assert not {name for name in names if name.startswith("on")}
    assert "@import" not in page
    assert set(re.findall(r"url\(([^)]*)\)", page)) == {"#hatch"}
    for _, value in parsed.attributes:
        assert "nan" not in (value or "").split()
    return " ".join(" ".join(parsed.text).split())


def test_the_page_compares_every_policy_with_the_optimum():
    page = render_simulation(HOSTILE, QUESTION, answers_to([], list(POLICIES)))
    text = check(page)
    for name in (*POLICIES, "optimal"):
        assert name in text
        assert f"The median job: {name}" in text or name == "optimal"
    assert HOSTILE in text
    assert "deadline" in text
    assert "prefers-color-scheme: dark" in page


def test_the_page_shows_every_value_that_was_asked_about():
    choices = [
        [deadline(1.1), deadline(2.0), deadline(3.0)],
        [zones("za", "za"), zones("zb", "zb")],
    ]
    answers = answers_to(choices, ["greedy"])
    text = check(render_simulation("run", QUESTION, answers))
    for words in ("deadline 1.1h", "deadline 2h", "deadline 3h", "zones za", "zones zb"):
        assert words in text
    assert "not possible: 1 h of work" in text
    assert "least mean cost" in text
    found = build_simulation("run", QUESTION, answers)
    assert len(found.curves) == 2
    for curve in found.curves:
        assert len(curve.blocked) == 1
        assert curve.band
        assert len(curve.line.split()) == 2
    assert len(found.stories) == 1


def test_values_without_an_order_are_not_joined_by_a_line():
    answers = answers_to([[zones("za", "za"), zones("zb", "zb")]], ["greedy"])
    (curve,) = build_simulation("run", QUESTION, answers).curves
    assert not curve.line
    assert len(curve.whiskers) == 2


def test_a_page_of_nothing_possible_says_so():
    text = check(render_simulation("run", QUESTION, answers_to([[deadline(1.1)]], ["greedy"])))
    assert "None of the values is possible." in text


def test_the_timeline_tells_spot_from_starts_and_marks_what_was_lost():
    answers = answers_to([[zones("za", "za")]], ["greedy"])
    (story,) = build_simulation("run", QUESTION, answers).stories
    kinds = {part.segment.kind for row in story.timeline.rows for part in row.segments}
    assert {"spot", "startup", "waiting"} <= kinds
    assert [row.label for row in story.timeline.rows][:2] == ["za", "waiting"]
    assert len(story.timeline.rows[0].marks) >= 1
    assert story.progress.rules[0].label == "deadline"
