"""The list of bugs that are made on purpose: each can still be made, and documents count them."""

from __future__ import annotations

from tests.mutations import MUTATIONS, ROOT


def test_what_each_bug_replaces_is_there_once():
    for one in MUTATIONS:
        assert (ROOT / one.path).read_text().count(one.before) == 1, one.name


def test_documents_say_how_many_there_are():
    count = len(MUTATIONS)
    assert f"| {count} of {count} caught |" in (ROOT / "README.md").read_text()
    assert f"puts {count} of them" in (ROOT / "docs" / "reliability.md").read_text()
