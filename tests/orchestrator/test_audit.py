"""What is written down of a command that changes a run."""

from __future__ import annotations

import pytest

from orchestrator import audit
from orchestrator.ledger.facts import parse_entries
from tests.orchestrator.histories import Ledger

CANARY = "canary-0123456789abcdef"


@pytest.mark.parametrize(
    "word",
    [
        f"data.train=https://b.example/c.json?X-Amz-Signature={CANARY}&X-Amz-Expires=60",
        f"data.train=https://me:{CANARY}@example.com/a.json",
        f"api_key={CANARY}",
    ],
)
def test_a_command_is_kept_without_its_secrets(monkeypatch, word):
    monkeypatch.setattr("sys.argv", ["/somewhere/bin/orchestrate", "launch", "a.yaml", word])
    monkeypatch.setenv("LOGNAME", "ada")
    command = audit.this_command()
    assert (command.user, command.argv[:3]) == ("ada", ("orchestrate", "launch", "a.yaml"))
    assert "[hidden]" in command.argv[3]
    assert CANARY not in command.model_dump_json()


def test_a_user_without_a_name_is_a_number(monkeypatch):
    def nameless():
        raise OSError("no username set in the environment")  # as Python 3.13 says it

    monkeypatch.setattr("getpass.getuser", nameless)
    assert audit.this_command().user.isdecimal()


def test_facts_of_earlier_versions_name_nobody():
    ledger = Ledger()
    ledger.launched()
    earlier = ledger.entries[0].model_copy(update={"schema_version": 4})
    text = earlier.model_dump_json(exclude={"body": {"command"}}).encode()
    assert b"command" not in text
    assert parse_entries(text, "events/x/0.jsonl")[0].body.command is None
