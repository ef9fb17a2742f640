"""Cleaning runs: real processes, any number of workers, killed at any moment, same bytes."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from train.data.clean import main
from train.data.conversations import read_conversations

ROOT = Path(__file__).parents[2]
NUM = 2200
# What is done instead of the nth fsync; a commit has four of them, so it is cut at any place.
FAULT = """
import os, signal, sys
real, left, fault = os.fsync, int(os.environ["NTH"]), os.environ["FAULT"]
def fsync(file):
    global left
    left -= 1
    if left == 0:
        signal.pause() if fault == "hang" else os.kill(os.getpid(), signal.SIGKILL)
    real(file)
os.fsync = fsync
from train.data.clean import main
if __name__ == "__main__":
    sys.exit(main())
"""


def start(source, output, *options, fault=None, **popen):
    command = [sys.executable, "-m", "train.data.clean", source, output, *options]
    if fault is not None:
        script = output.with_name("faulty.py")
        script.write_text(FAULT)
        command[1:3] = [script]
        nth, what = fault
        popen["env"] = {**os.environ, "PYTHONPATH": str(ROOT), "NTH": str(nth), "FAULT": what}
    return subprocess.Popen(
        [str(part) for part in command],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **popen,
    )


def run(source, output, *options):
    process = start(source, output, *options)
    printed, said = process.communicate(timeout=120)
    assert "Traceback" not in said
    return process.returncode, json.loads(printed), said


def write_conversations(path, count, *, as_array=True):
    items = [
        {
            "id": f"c{number}",
            "conversations": [
                {
                    "from": "human",
                    "value": f"Question {number // 2 * 2 if number % 7 == 1 else number}",
                },
                {"from": "gpt", "value": "<p>An <b>answer</b></p>" if number % 50 else ""},
            ],
        }
        for number in range(count)
    ]
    text = json.dumps(items, indent=1)
    if not as_array:
        text = "".join(json.dumps(item) + "\n" for item in items)
    path.write_text(text)
    return path


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return write_conversations(tmp_path_factory.mktemp("clean") / "in.json", NUM)


@pytest.fixture(scope="module")
def expected(source):
    output = source.with_name("expected.jsonl")
    code, report, _ = run(source, output, "--workers", "1")
    assert code == 0
    return output.read_bytes(), Path(report["report"]).read_bytes()


def test_the_report_names_every_change_and_the_trainer_reads_the_output(source, expected):
    output, report = expected[0], json.loads(expected[1])
    assert report["num_read"] == NUM == report["num_kept"] + report["num_dropped"]
    assert report["num_written"] == len(output.splitlines())
    assert len(report["dropped"]) == report["num_dropped"] > NUM // 50
    assert len(report["changed"]) == report["num_changed"]
    assert {entry["reason"] for entry in report["dropped"]} == {
        "no-answered-question",
        "duplicate-opening",
    }
    kept = [json.loads(line)["id"] for line in output.splitlines()]
    conversations, notes = read_conversations(source.with_name("expected.jsonl"))
    assert ([conversation.id for conversation in conversations], notes) == (kept, [])
    dropped = {entry["id"] for entry in report["dropped"]}
    assert kept == [f"c{n}" for n in range(NUM) if f"c{n}" not in dropped]
    assert sum(report["reasons"].values()) == len(report["dropped"]) + len(report["changed"])


def test_workers_and_json_lines_make_no_difference(source, expected, tmp_path):
    lines = write_conversations(tmp_path / "in.jsonl", NUM, as_array=False)
    code, _, _ = run(lines, tmp_path / "out.jsonl", "--workers", "3")
    assert code == 0
    assert (tmp_path / "out.jsonl").read_bytes() == expected[0]


def test_a_killed_run_goes_on_and_ends_in_the_same_bytes(source, expected, tmp_path):
    output = tmp_path / "out.jsonl"
    resumed = []
    # In the first commit, in the second, before the third is there, in the fourth, in the report.
    for nth in (3, 6, 8, 5, 9):
        with start(source, output, "--workers", "1", fault=(nth, "kill")) as process:
            resumed.append(process.stderr.read())
        assert process.returncode == -signal.SIGKILL
        assert not output.exists()
    code, _, said = run(source, output, "--workers", "1")
    assert code == 0
    assert [text.partition("Going on after ")[2].split(" ")[0] for text in (*resumed, said)] == [
        *("", "", "512", "1,024", "1,536", "2,200")
    ]
    assert output.read_bytes() == expected[0]
    report = output.with_name("out.jsonl.report.json")
    assert report.read_bytes() == expected[1]
    (tmp_path / "faulty.py").unlink()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.jsonl", report.name]


def test_workers_end_with_their_run_and_that_with_its_caller(source, tmp_path):
    state = tmp_path / ".out.jsonl.partial" / "state.json"
    with start(
        *(source, tmp_path / "out.jsonl", "--workers", "2", "--with-parent"),
        fault=(6, "hang"),
        stdin=subprocess.PIPE,
    ) as process:
        while not state.exists():
            assert process.poll() is None
        process.stdin.close()
        # It ends when the last process that could write to it is gone.
        process.stdout.read()
        assert process.wait(60) == 1
    code, report, said = run(source, tmp_path / "out.jsonl")
    assert (code, report["num_read"]) == (0, NUM)
    assert "Going on after 512" in said


def test_other_options_start_anew_and_say_so(source, tmp_path):
    output = tmp_path / "out.jsonl"
    with start(source, output, "--workers", "1", fault=(6, "kill")):
        pass
    code, report, said = run(source, output, "--workers", "1", "--keep-html")
    assert (code, report["num_read"]) == (0, NUM)
    assert "starting anew" in said
    assert "html-converted" not in report["reasons"]


def test_the_same_again_is_done_and_another_output_is_not_replaced(tmp_path):
    source = write_conversations(tmp_path / "in.json", 5)
    output = tmp_path / "out.jsonl"
    first = run(source, output, "--workers", "1")
    again = run(source, output, "--workers", "1")
    assert again[:2] == first[:2]
    assert "there already" in again[2]
    code, problem, _ = run(source, output, "--workers", "1", "--block-phrase", "answer")
    assert (code, problem["kind"]) == (2, "OutputConflict")
    output.write_text("mine")
    assert run(source, output, "--workers", "1")[1]["kind"] == "OutputConflict"
    assert output.read_text() == "mine"
    assert run(source, output, "--workers", "1", "--force")[0] == 0
    assert output.read_text() != "mine"


def test_items_that_are_no_conversation_are_dropped_and_reported(tmp_path):
    good = {
        "id": "a",
        "conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}],
    }
    bad = [None, 3, {"id": "x"}, {"id": "\ud800", "conversations": [{"from": "gpt"}]}, good]
    source = tmp_path / "in.json"
    source.write_text(json.dumps([*bad, {**good, "extra": 1}]))
    code, report, _ = run(source, tmp_path / "out.jsonl", "--workers", "1")
    assert (code, report["num_written"]) == (0, 1)
    assert report["reasons"] == {"duplicate-id": 1, "not-a-conversation": 4}
    assert json.loads((tmp_path / "out.jsonl").read_text()) == good


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (None, "cannot be read"),
        (b"", "it is empty"),
        (b"[1, 2", "is not JSON"),
        (b"\xff\xfe", "not UTF-8"),
        (b'[{"id": 1, "conversations": []}]', "no-answered-question 1"),
        (b"[" * 100_000, "is not JSON"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing_behind(tmp_path, capsys, content, what):
    source = tmp_path / "in.json"
    if content is not None:
        source.write_bytes(content)
    assert main([str(source), str(tmp_path / "out.jsonl"), "--workers", "1"]) == 2
    printed, said = capsys.readouterr()
    assert what in json.loads(printed)["what"]
    assert said == ""
    assert [path for path in tmp_path.iterdir() if path != source] == []


# A process counts what its parent held when it was forked, so a small one measures.
MEASURE = """
import resource, subprocess, sys
subprocess.run([sys.executable, "-m", "train.data.clean", *sys.argv[1:]], check=True)
sys.stderr.write(str(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss))
"""


@pytest.mark.slow
def test_memory_stays_flat(tmp_path):
    peaks = []
    for count in (20_000, 80_000):
        source = write_conversations(tmp_path / f"{count}.json", count)
        command = [sys.executable, "-c", MEASURE, source, tmp_path / f"{count}.jsonl"]
        done = subprocess.run(
            [*command, "--workers", "1", "--keep-html"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        )
        peaks.append(int(done.stderr.splitlines()[-1]) / 1024)
    # 200 bytes per conversation for the digests, and what the allocator rounds up.
    assert peaks[1] - peaks[0] < 25
