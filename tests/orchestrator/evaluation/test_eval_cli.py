"""`orchestrate eval`: from the command to the report, with models and a judge on loopback."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from orchestrator.evaluation.questions import read_questions
from tests.orchestrator.evaluation.stub import (
    KEY,
    completion,
    is_rating,
    preference,
    rating,
    serving,
)

QUALITY = re.compile(r"Assistant: \w+ (\d)")
QUESTIONS = [
    {"question_id": 1, "category": "math", "turns": ["What is 2 + 2?"], "reference": ["4"]},
    {"question_id": 2, "category": "math", "turns": ["What is 3 + 3?"]},
    {"question_id": 3, "category": "talk", "turns": ["Hello?", "And then?"]},
]


@pytest.fixture
def questions(tmp_path):
    path = tmp_path / "questions.jsonl"
    path.write_text("".join(json.dumps(one) + "\n" for one in QUESTIONS))
    return path


@pytest.fixture
def good():
    with serving(lambda body: "good 9") as stub:
        yield stub


@pytest.fixture
def poor():
    with serving(lambda body: "poor 1") as stub:
        yield stub


def judged(body):
    """Judge by the number in the answers; a conversation of two turns has the same one twice."""
    shown = [int(one) for one in QUALITY.findall(body["messages"][1]["content"])]
    if is_rating(body):
        return rating(coherence=5 if shown[0] == 9 else 2)
    first, second = shown[0], shown[-1]
    return preference("tie" if first == second else "first" if first > second else "second")


@pytest.fixture
def judge():
    with serving(judged) as stub:
        yield stub


@pytest.fixture
def evaluate(orchestrate, tmp_path, questions, good, poor, judge):
    def run(*more):
        return orchestrate(
            *("eval", f"tuned={good.url}#good", "--baseline", f"base={poor.url}"),
            *("--judge", f"{judge.url}#judge", "--questions", questions),
            *("--output", tmp_path / "kept", "--json", *more),
        )

    return run


def test_a_better_model_wins_and_everything_is_in_the_report(evaluate, good, poor, judge, tmp_path):
    code, out, err = evaluate("--usd-per-million-tokens", "10", "20", "--yes")
    assert code == 0, err
    report = json.loads(out)
    assert report["schema_version"] == 1
    assert (report["model"]["name"], report["baseline"]["name"]) == ("tuned", "base")
    assert report["preference"]["wins"] == 3
    assert report["preference"]["win_rate"]["mean"] == 1
    assert report["model_scores"]["coherence"]["mean"] == 5
    assert report["baseline_scores"]["coherence"]["mean"] == 2
    assert report["model_scores"]["overall"]["mean"] == 4.25
    assert [one["name"] for one in report["categories"]] == ["math", "talk"]
    assert report["items"][2]["model"]["answers"] == ["good 9", "good 9"]
    # Ratings of two models and two orders, three questions; 100 tokens in and 20 out each.
    assert report["judging"]["requests"] == len(judge.asked) == 12
    assert float(report["judging"]["usd"]) == pytest.approx(12 * (100 * 10 + 20 * 20) / 1e6)
    assert len(good.asked) == len(poor.asked) == 4
    (second_turn,) = (one["messages"] for one in good.asked if len(one["messages"]) == 3)
    assert [one["content"] for one in second_turn] == ["Hello?", "good 9", "And then?"]
    assert "12 requests" in err
    kept = list((tmp_path / "kept" / "evaluations").glob("*.json"))
    assert [json.loads(path.read_text())["evaluation"] for path in kept] == [report["evaluation"]]


def test_the_same_command_again_asks_nobody_and_says_the_same(evaluate, good, poor, judge):
    _, first, _ = evaluate()
    num = [len(one.asked) for one in (good, poor, judge)]
    _, again, err = evaluate()
    assert [len(one.asked) for one in (good, poor, judge)] == num
    before, after = json.loads(first), json.loads(again)
    assert before["items"] == after["items"]
    assert before["evaluation"] == after["evaluation"]
    assert after["judging"]["asked_now"] == 0
    assert "0 requests, 12 more are known" in err


def test_people_get_a_table(evaluate, orchestrate, tmp_path, questions, good, poor, judge):
    page = tmp_path / "page.html"
    code, out, err = orchestrate(
        *("eval", f"tuned={good.url}#good", "--baseline", f"base={poor.url}"),
        *("--judge", judge.url, "--questions", questions, "--output", tmp_path, "--page", page),
    )
    assert code == 0, err
    assert "tuned against base, judged by stub" in out
    assert re.search(r"Win rate 100.0% \(\d+\.\d% to 100.0%\): 3 wins, 0 ties, 0 losses", out)
    assert "price unknown" in out
    text = page.read_text()
    assert "Answers side by side" in text
    assert "good 9" in text
    assert not re.search(r"(src|href)=", text)


def test_without_a_judge_answers_are_collected_and_judged_later(
    orchestrate, tmp_path, questions, good, poor, judge
):
    command = [
        *("eval", f"tuned={good.url}#good", "--baseline", f"base={poor.url}"),
        *("--questions", questions, "--output", tmp_path, "--page", tmp_path / "page.html"),
    ]
    code, out, err = orchestrate(*command)
    assert code == 0, err
    assert "not judged" in out
    page = (tmp_path / "page.html").read_text()
    assert "good 9" in page
    assert "Scores" not in page
    num = len(good.asked)
    code, out, _ = orchestrate(*command, "--judge", judge.url)
    assert code == 0
    assert "Win rate 100.0%" in out
    assert len(good.asked) == num


def test_a_judge_that_flips_is_counted(evaluate, judge):
    judge.say = lambda body: rating() if is_rating(body) else preference("first")
    report = json.loads(evaluate()[1])
    assert report["num_flipped"] == 3
    assert report["preference"]["ties"] == 3
    assert report["preference"]["win_rate"]["mean"] == 0.5


def test_failures_of_the_judge_are_counted_and_asked_again_next_time(evaluate, judge):
    def say(body):
        if is_rating(body):
            return 200, completion("", refusal="No.")
        return "Whatever."

    judge.say = say
    code, out, err = evaluate()
    report = json.loads(out)
    assert report["no_verdicts"] == {"refused": 6, "malformed": 3}
    # The second order of a pair is not paid for when the first has no verdict.
    assert len(judge.asked) == 6 + 3 * 3
    assert report["preference"]["win_rate"] is None
    assert report["preference"]["no_verdicts"] == 3
    assert report["model_scores"]["overall"] is None
    assert code == 4
    assert "gave no verdict at all" in err


def test_a_judge_that_is_down_leaves_a_report_and_an_exit_code_that_says_so(evaluate, judge):
    judge.say = lambda body: (429, {"error": {"message": "slower"}})
    code, out, err = evaluate("--parallel", "1")
    assert code == 4
    assert json.loads(out)["no_verdicts"] == {"rate limited": 9}
    assert "the same command goes on" in err
    judge.say = judged
    code, out, _ = evaluate("--parallel", "1")
    assert (code, json.loads(out)["no_verdicts"]) == (0, {})


def test_answers_that_are_cut_off_are_said_to_be(evaluate, good, tmp_path):
    good.say = lambda body: (200, completion("good 9", finish_reason="length"))
    code, out, err = evaluate("--page", tmp_path / "page.html")
    assert code == 0
    assert "3 of its answers are cut off at 1024 tokens" in err
    assert all(item["model"]["is_cut"] for item in json.loads(out)["items"])
    assert "cut off at the limit" in (tmp_path / "page.html").read_text()


def test_what_was_known_is_said_and_can_be_asked_anew(evaluate, good):
    evaluate()
    num = len(good.asked)
    _, _, err = evaluate()
    assert "Replies of tuned were known, from 20" in err
    evaluate("--fresh")
    assert len(good.asked) == 2 * num


def test_one_reply_to_two_equal_questions_is_paid_for_once(evaluate, poor, judge):
    poor.say = lambda body: "good 9"
    report = json.loads(evaluate("--usd-per-million-tokens", "10", "20", "--yes")[1])
    assert report["judging"]["requests"] == len(judge.asked)
    assert report["judging"]["usd"] == report["judging"]["usd_now"]


def test_what_others_have_cost_counts_towards_the_budget_before_anything_is_asked(evaluate, judge):
    price = ("--usd-per-million-tokens", "1000", "1000", "--yes")
    first = json.loads(evaluate(*price, "--category", "talk")[1])
    asked, spent = len(judge.asked), float(first["judging"]["usd"])
    code, out, _ = evaluate(*price, "--budget-usd", str(spent * 1.01))
    assert code == 4
    assert len(judge.asked) == asked
    assert float(json.loads(out)["judging"]["usd"]) == pytest.approx(spent)


def test_a_budget_is_kept(evaluate, judge):
    # Each request may cost up to its bytes and 700 tokens of reply: some are asked for, not all.
    code, out, err = evaluate(
        "--usd-per-million-tokens", "10", "20", "--budget-usd", "0.15", "--yes"
    )
    report = json.loads(out)
    assert code == 4
    assert "used up" in err
    assert float(report["judging"]["usd"]) <= 0.15
    assert 0 < len(judge.asked) < 12
    assert report["no_verdicts"]["budget used up"] > 0


def test_answers_come_from_files_too(orchestrate, tmp_path, questions, judge):
    ours, theirs = tmp_path / "ours.jsonl", tmp_path / "theirs.jsonl"
    ours.write_text(
        "".join(json.dumps({"question_id": n, "text": "good 9"}) + "\n" for n in (1, 2))
    )
    turns = [{"index": 0, "turns": ["poor 1", "poor 1"]}]
    theirs.write_text(
        "".join(
            json.dumps({"question_id": n, "text": "poor 1\u2028"}, ensure_ascii=False) + "\n\n"
            for n in (1, 2)
        )
        + json.dumps({"question_id": 3, "choices": turns})
        + "\n"
    )
    code, out, err = orchestrate(
        *("eval", ours, "--baseline", theirs, "--judge", judge.url, "--questions", questions),
        *("--output", tmp_path, "--json"),
    )
    assert code == 0, err
    report = json.loads(out)
    assert report["preference"]["wins"] == 2
    # The third question has no answer of ours: a comparison and a rating less.
    assert report["no_verdicts"] == {"no answer to judge": 2}
    assert report["items"][2]["baseline"]["answers"] == ["poor 1", "poor 1"]


def test_keys_go_to_whom_they_belong(evaluate, monkeypatch, good, poor, judge):
    for stub, name in ((good, "MODEL"), (poor, "BASELINE"), (judge, "JUDGE")):
        stub.key = f"{KEY}-{name}"
    code, _, err = evaluate()
    assert code == 3
    assert "refuses the key" in err
    for name in ("MODEL", "BASELINE", "JUDGE"):
        monkeypatch.setenv(f"ORCHESTRATE_{name}_API_KEY", f"{KEY}-{name}")
    code, out, err = evaluate()
    assert code == 0, err
    assert KEY not in out + err


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (["eval"], "needs a MODEL"),
        (["eval", "--judge", "http://127.0.0.1:9/v1"], "needs a MODEL"),
        (["eval", "ftp://x/v1", "--judge", "http://127.0.0.1:9/v1#m"], "ftp"),
        (["eval", "nothing-here", "--judge", "http://127.0.0.1:9/v1#m"], "nothing-here"),
        (["eval", "a.jsonl", "--judge", "http://127.0.0.1:9/v1#m"], "a.jsonl"),
        (["eval", "http://h/v1#m", "--judge", "b.jsonl"], "b.jsonl cannot judge"),
        (["eval", "http://h/v1#m", "--reviews", "r.jsonl"], "takes no MODEL"),
        (
            ["eval", "http://a:b@127.0.0.1/v1#m", "--judge", "http://127.0.0.1:9/v1#m"],
            "password",
        ),
        (["eval", "http://127.0.0.1:9/v1", "--judge", "http://127.0.0.1:9/v1#m"], "which models"),
        (
            ["eval", "http://h/v1#m", "--judge", "http://h/v1#m", "--budget-usd", "1"],
            "--usd-per-million-tokens",
        ),
        (["eval", "http://h/v1#m", "--judge", "http://h/v1#m", "--category", "maths"], "maths"),
        (["eval", "--reviews", "nowhere.jsonl"], "nowhere.jsonl"),
    ],
)
def test_bad_input_gets_two_lines_and_exit_code_2(orchestrate, arguments, what, tmp_path):
    code, out, err = orchestrate(*arguments)
    assert code == 2
    assert out == ""
    assert what in err
    assert len(err.strip().splitlines()) <= 3
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("{", "line 1"),
        ('{"question_id": 1, "category": "a", "turns": []}', "turns"),
        ('{"question_id": 1, "category": "a", "turns": [" "]}', "turn is empty"),
        ('{"question_id": 1, "turns": ["Why?"]}', "category"),
        ("", "no question"),
    ],
)
def test_questions_that_are_none_are_named(orchestrate, tmp_path, line, what):
    path = tmp_path / "q.jsonl"
    path.write_text(line)
    code, _, err = orchestrate(
        "eval", "http://h/v1#m", "--judge", "http://h/v1#m", "--questions", path
    )
    assert code == 2
    assert what in err


def test_the_questions_that_come_along_are_80_in_the_known_categories():
    questions = read_questions(None)
    assert len(questions) == 80
    assert len({one.turns for one in questions}) == 80
    assert [one.category for one in questions].count("fermi") == 10
    assert all(one.reference for one in questions if one.category == "math")


def test_a_file_of_published_reviews_is_added_up(orchestrate, tmp_path):
    reviews = [
        {"question_id": 1, "text": "9 8\nThe first.", "score": [9, 8]},
        {"question_id": 2, "text": "7 8.5\nThe second.", "score": [7, 8.5]},
        {"question_id": 3, "text": "Neither.", "score": [-1, -1]},
    ]
    path = tmp_path / "reviews.jsonl"
    path.write_text("".join(json.dumps(one) + "\n" for one in reviews))
    code, out, err = orchestrate("eval", "--reviews", path, "--json")
    assert code == 0, err
    document = json.loads(out)
    assert document["scores"] == {
        "first": {"total": 16, "num": 2},
        "second": {"total": 16.5, "num": 2},
    }
    assert document["second_against_first"]["win_rate"] == 0.5
    assert document["second_against_first"]["no_verdicts"] == 1
    assert document["scores_in_file"] == {"num": 3, "equal": 2}


def test_an_evaluation_that_is_killed_goes_on_where_it_was(tmp_path, questions, good, poor):
    """Real processes: SIGKILL after some verdicts, then the same command."""
    with serving(judged) as judge:
        command = [
            *(sys.executable, "-c", "from orchestrator.cli import main; main()"),
            *("eval", f"tuned={good.url}#good"),
            *("--baseline", f"base={poor.url}", "--judge", judge.url),
            *("--questions", questions, "--output", tmp_path / "kept", "--json"),
            *("--parallel", "1"),
        ]
        held = []

        def slow(body):
            held.append(body)
            if len(held) > 5:
                time.sleep(0.2)
            return judged(body)

        judge.say = slow
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=_environment(tmp_path))
        while len(held) < 7 and process.poll() is None:
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        assert process.returncode == -signal.SIGKILL
        before = len(judge.asked)
        done = subprocess.run(
            command, env=_environment(tmp_path), capture_output=True, text=True, check=True
        )
    report = json.loads(done.stdout)
    assert report["preference"]["wins"] == 3
    # What was under way when it was killed is asked for again, nothing else.
    assert report["judging"]["asked_now"] == len(judge.asked) - before
    assert 12 - before <= report["judging"]["asked_now"] <= 12 - before + 1
    assert len(good.asked) == 4


def _environment(tmp_path):
    return {
        **os.environ,
        "ORCHESTRATE_HOME": str(tmp_path / "home"),
        "PYTHONPATH": str(Path(__file__).parents[3]),
    }
