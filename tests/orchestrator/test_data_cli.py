"""`orchestrate data prepare` and `orchestrate data show` as users call them."""

import json
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from train.data.conversations import read_conversations
from train.data.template import SYSTEM_PROMPT

ROOT = Path(__file__).parents[2]


def orchestrate(*arguments, cwd, **environment):
    command = [sys.executable, "-c", "from orchestrator.cli import main; main()", *arguments]
    return subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


@pytest.fixture
def source(tmp_path):
    turns = [("human", "What is a cat, in a few words?"), ("gpt", "<p>An <b>animal</b></p>")]
    items = [
        {"id": name, "conversations": [{"from": who, "value": said} for who, said in turns]}
        for name in "ab"
    ]
    (tmp_path / "in.json").write_text(json.dumps(items))
    # A folder of this name where the user is must not be taken for ours.
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "__init__.py").write_text("raise RuntimeError")
    return tmp_path


def test_what_was_done_is_a_table_and_a_report(source):
    done = orchestrate("data", "prepare", "in.json", "out.jsonl", "--workers", "1", cwd=source)
    assert done.returncode == 0, done.stderr
    assert "duplicate-opening" in done.stdout
    assert "Next:" in done.stderr
    (line,) = (source / "out.jsonl").read_text().splitlines()
    assert json.loads(line)["conversations"][1]["value"] == "An **animal**"
    report = json.loads((source / "out.jsonl.report.json").read_text())
    assert [entry["id"] for entry in report["dropped"]] == ["b"]


def test_json_is_one_document_with_its_version_first(source):
    done = orchestrate("data", "prepare", "in.json", "o", "--workers=1", "--json", cwd=source)
    document = json.loads(done.stdout)
    assert next(iter(document)) == "schema_version"
    assert (document["num_read"], document["num_written"]) == (2, 1)
    assert document["reasons"] == {"duplicate-opening": 1, "html-converted": 1}


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (("absent.json", "o"), "cannot be read"),
        (("in.json", "in.json"), "is the input"),
        (("in.json", "none/o"), "no folder"),
        (("in.json", "o", "--max-length", "9"), "go together"),
        (("in.json", "o", "--max-length", "9", "--tokenizer", "."), "no tokenizer.json"),
        (("in.json", "o", "--language", "english"), "is no language"),
        (("in.json", "o", "--augment", "paraphrase"), "needs --endpoint"),
        (("in.json", "o", "--budget-usd", "1"), "goes with --augment"),
    ],
)
def test_bad_input_is_two_lines_and_exit_2(source, arguments, what):
    done = orchestrate("data", "prepare", *arguments, cwd=source)
    assert done.returncode == 2
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 2
    assert what in done.stderr


@pytest.mark.parametrize(
    ("library", "options"),
    [
        ("py3langid", ["--language", "en"]),
        ("markdownify", []),
        ("tokenizers", ["--max-length", "9", "--tokenizer", "."]),
    ],
)
def test_a_missing_library_is_named_with_its_remedy(source, library, options):
    hidden = source / "hidden"
    hidden.mkdir()
    (hidden / f"{library}.py").write_text(f"raise ModuleNotFoundError('No module {library}')")
    done = orchestrate(
        *("data", "prepare", "in.json", "o", *options),
        cwd=source,
        PYTHONPATH=f"{hidden}:{ROOT}",
    )
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 2
    assert library in done.stderr
    assert "pip install" in done.stderr


class _Paraphraser(BaseHTTPRequestHandler):
    def do_POST(self):
        self.rfile.read(int(self.headers["content-length"]))
        message = {"content": "Briefly, what is a cat?"}
        payload = json.dumps({"choices": [{"message": message}]}).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(payload)))
        self.end_headers()
        self.wfile.write(payload)

    def log_message(self, *_):
        pass


def test_augmented_conversations_come_on_top(source):
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Paraphraser)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    command = ("data", "prepare", "in.json", "o", "--workers=1", "--json", "--share=1")
    command += ("--augment=paraphrase", "--model=m")
    endpoint = f"--endpoint=http://127.0.0.1:{server.server_port}/v1"
    try:
        done = orchestrate(*command, endpoint, cwd=source)
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["num_written"] == 2
    assert document["augmentation"]["num_added"] == 1
    items = [json.loads(line) for line in (source / "o").read_text().splitlines()]
    assert [item["id"] for item in items] == ["a", "a-paraphrase"]
    # The server is gone: what it has answered is not asked again.
    (source / "o").unlink()
    again = orchestrate(*command, endpoint, cwd=source)
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout)["augmentation"]["num_asked"] == 0


FILE = ROOT / "examples" / "conversations.json"


def show(*arguments):
    return orchestrate("data", "show", *arguments, cwd=ROOT)


def test_the_document_holds_whole_conversations_whose_pieces_are_the_text():
    conversation = read_conversations(FILE)[0][3]
    done = show(FILE, "--id", conversation.id, "--json")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert next(iter(document)) == "schema_version"
    (shown,) = document["conversations"]
    assert list(shown) == ["id", "token_ids", "trained", "pieces"]
    turns = [f"USER: {one.user} ASSISTANT: {one.assistant}</s>" for one in conversation.pairs]
    assert "".join(shown["pieces"]) == f"<s>{SYSTEM_PROMPT} {''.join(turns)}"
    trained = [text for text, flag in zip(shown["pieces"], shown["trained"], strict=True) if flag]
    assert "".join(trained) == "".join(f" {one.assistant}</s>" for one in conversation.pairs)


def test_without_colours_what_is_trained_stands_in_brackets():
    conversation = read_conversations(FILE)[0][0]
    done = show(FILE, "--id", conversation.id)
    assert f"ASSISTANT:[[ {conversation.pairs[0].assistant}</s>]]" in done.stdout


def test_of_a_long_file_the_first_are_shown_and_the_rest_is_named():
    done = show(FILE)
    assert done.stdout.count(" trained ") == 3
    assert "--id" in done.stderr


def test_an_id_that_is_not_there_is_one_line_and_exit_2():
    done = show(FILE, "--id", "nobody")
    assert done.returncode == 2
    assert "nobody" in done.stderr
    assert len(done.stderr.splitlines()) == 2
