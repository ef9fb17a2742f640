"""`orchestrate chat`: through a pipe in this process, and in a real terminal."""

from __future__ import annotations

import io
import os
import pty
import select
import sys
import time
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import psutil
import pytest

from orchestrator.chat.address import find_key, is_exposed
from orchestrator.errors import UsageError
from orchestrator.openai_api import resolve_url
from tests.openai_service import BROKEN, CUT, ENDLESS, LONG, SILENT, openai_service

KEY = "k-of-the-tests"
# Starting Python and openai takes a second; these machines may be busy with other tests.
PATIENCE_S = 60.0


@pytest.fixture
def server():
    with openai_service() as service:
        yield service


@pytest.fixture
def ask(orchestrate, monkeypatch):
    """Ask through a pipe; returns (exit code, stdout, stderr)."""
    for name in ("ORCHESTRATE_SERVE_API_KEY", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)

    def run(url, question, *options):
        monkeypatch.setattr("sys.stdin", io.StringIO(question))
        return orchestrate("chat", url, *options)

    return run


def test_a_piped_question_gets_its_answer_alone_on_stdout(ask, server):
    assert ask(server.url, "hello\nthere\n") == (0, "You said: hello\nthere \n", "")
    assert server.requests == [
        {
            "model": "tiny",
            "messages": [{"role": "user", "content": "hello\nthere"}],
            "stream": True,
        }
    ]


def test_options_reach_the_server(ask, server):
    ask(server.url, "q", "--system", "Be brief.", "--max-tokens", 5, "--temperature", 0)
    asked = server.requests[0]
    assert asked["messages"][0] == {"role": "system", "content": "Be brief."}
    assert (asked["max_tokens"], asked["temperature"]) == (5, 0)


@pytest.mark.parametrize(
    ("question", "code", "out", "err"),
    [
        (CUT, 2, "You said: cut \n", "The answer is cut off"),
        (LONG, 0, "You said: long \n", "--max-tokens N allows more"),
        (SILENT, 0, "\n", "The model said nothing."),
        (BROKEN, 2, "", "refused (out of memory)"),
        ("", 2, "", "There is no question on stdin."),
    ],
)
def test_what_is_wrong_with_an_answer_is_said(ask, server, question, code, out, err):
    found = ask(server.url, question)
    assert found[:2] == (code, out)
    assert err in found[2]
    assert "Traceback" not in found[2]


def test_an_answer_cannot_move_the_cursor_or_break_the_terminal(ask):
    with openai_service(odd_answer="a\x1b[2J\x07\rb\x9b\tc\n\ud83d d") as service:
        code, out, _ = ask(service.url, "q")
    assert (code, out) == (0, "a\ufffd[2J\ufffdb\ufffd\tc\n? d \n")


def test_of_several_models_one_has_to_be_named(ask):
    with openai_service(models=["one", "two"]) as service:
        code, _, err = ask(service.url, "q")
        assert (code, "several models: one, two" in err, "--model NAME" in err) == (2, True, True)
        assert ask(service.url, "q", "--model", "two")[0] == 0
        assert service.requests[0]["model"] == "two"
        code, _, err = ask(service.url, "q", "--model", "three")
        assert (code, "There is no model three" in err) == (2, True)


def test_a_key_is_sent_to_the_server_it_is_for_and_not_shown(ask, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-another-server")
    monkeypatch.setenv("OPENAI_ORG_ID", "org-of-another-server")
    with openai_service(key=KEY) as service:
        code, out, err = ask(service.url, "q")
        assert code == 2
        assert "refused the key (This key is not known)" in err
        assert "ORCHESTRATE_SERVE_API_KEY" in err
        monkeypatch.setenv("ORCHESTRATE_SERVE_API_KEY", KEY)
        assert ask(service.url, "q")[0] == 0
        assert "another-server" not in str(service.headers)
    assert KEY not in out + err
    assert os.environ["OPENAI_ORG_ID"] == "org-of-another-server"


def test_openais_own_key_goes_to_openai_alone():
    environ = {"OPENAI_API_KEY": "a"}
    assert find_key("https://api.openai.com/v1", environ) == "a"
    assert find_key("https://api.openai.com.example/v1", environ) is None
    assert find_key("http://127.0.0.1:1/v1", environ) is None
    assert find_key("http://127.0.0.1:1/v1", environ | {"ORCHESTRATE_SERVE_API_KEY": "b"}) == "b"


def test_addresses_are_taken_as_people_write_them():
    assert resolve_url("http://localhost:8000") == "http://localhost:8000/v1"
    assert resolve_url("http://localhost:8000/") == "http://localhost:8000/v1"
    assert resolve_url("https://host/some/v1/") == "https://host/some/v1"
    assert not is_exposed("http://127.0.0.1:1/v1")
    assert is_exposed("http://10.0.0.1/v1")
    for wrong in ("vicuna-7b", "runs/model", "localhost:8000", "file:///etc"):
        with pytest.raises(UsageError) as error:
            resolve_url(wrong)
        assert "orchestrate serve --local" in error.value.next_step


def test_a_server_that_is_not_there_is_one_error(ask, server):
    with openai_service() as gone:
        url = gone.url
    code, out, err = ask(url, "q")
    assert (code, out) == (2, "")
    assert f"{url}/v1 cannot be reached" in err
    assert len(err.splitlines()) == 2


def test_a_proxy_is_not_asked_for_loopback(ask, server, monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    assert ask(server.url, "q")[0] == 0


def test_what_is_no_such_server_is_said_to_be_none(ask, tmp_path):
    (tmp_path / "v1").mkdir()
    (tmp_path / "v1" / "models").write_text("<html>")
    with serve_files(tmp_path) as url:
        code, _, err = ask(url, "q")
    assert code == 2
    assert "does not speak the OpenAI API" in err


@contextmanager
def serve_files(folder):
    class Handler(SimpleHTTPRequestHandler):
        def __init__(self, *arguments):
            super().__init__(*arguments, directory=str(folder))

        def log_message(self, *arguments):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


class Terminal:
    """The command in a terminal of its own."""

    def __init__(self, url, *options):
        program = str(Path(sys.executable).with_name("orchestrate"))
        self.pid, self.screen = pty.fork()
        if self.pid == 0:
            os.environ["TERM"] = "xterm"
            os.execv(program, [program, "chat", url, *options])
        self.seen = ""

    def type(self, text):
        os.write(self.screen, text.encode())

    def interrupt(self):
        """Type Ctrl-C once the program waits: one that comes as the prompt appears is heeded only
        at the next key (CPython's readline)."""
        give_up_at = time.monotonic() + PATIENCE_S
        while psutil.Process(self.pid).status() != psutil.STATUS_SLEEPING:
            assert time.monotonic() < give_up_at
            time.sleep(0.01)
        self.type("\x03")

    def wait_for(self, what):
        """Return what came until then."""
        give_up_at = time.monotonic() + PATIENCE_S
        while what not in self.seen:
            assert time.monotonic() < give_up_at, self.seen
            if select.select([self.screen], [], [], 1.0)[0]:
                self.seen += os.read(self.screen, 65536).decode(errors="replace")
        before, _, self.seen = self.seen.partition(what)
        return before + what

    def exit_code(self):
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


def test_a_terminal_remembers_stops_and_leaves(server):
    terminal = Terminal(server.url)
    terminal.wait_for("> ")
    terminal.type("one\n")
    assert "You said: one" in terminal.wait_for("tokens/s")
    terminal.wait_for("> ")
    terminal.type("two\n")
    terminal.wait_for("tokens/s")
    assert [one["content"] for one in server.requests[-1]["messages"]] == [
        "one",
        "You said: one ",
        "two",
    ]
    terminal.wait_for("> ")
    terminal.type(f"{ENDLESS}\n")
    terminal.wait_for("on on")
    terminal.type("\x03")
    terminal.wait_for("> ")
    assert server.was_left.wait(PATIENCE_S)
    terminal.type("/clear\n")
    terminal.wait_for("Begun anew.")
    terminal.wait_for("> ")
    terminal.type(f"{CUT}\n")
    terminal.wait_for("It is not remembered: ask again.")
    terminal.wait_for("> ")
    terminal.type("/etc/passwd is what?\n")
    terminal.wait_for("tokens/s")
    assert len(server.requests[-1]["messages"]) == 1
    terminal.wait_for("> ")
    terminal.interrupt()
    terminal.wait_for("Ctrl-C again leaves.")
    terminal.wait_for("> ")
    terminal.interrupt()
    assert terminal.exit_code() == 0


@pytest.mark.parametrize("pasted", ["\x1b[200~a\nb\nc\x1b[201~", "a\nb\nc"])
def test_pasted_lines_are_one_question(pasted):
    with openai_service(models=["x", "y"]) as service:
        terminal = Terminal(service.url)
        terminal.wait_for("Which one?")
        terminal.type("2\n")
        terminal.wait_for("> ")
        terminal.type(pasted)
        terminal.wait_for("c")
        assert service.requests == []
        terminal.type("\n")
        terminal.wait_for("tokens/s")
        terminal.wait_for("> ")
        terminal.type("/model\n")
        terminal.wait_for("* y")
        terminal.wait_for("> ")
        terminal.type("/model x\n")
        terminal.wait_for("x answers from now on")
        terminal.wait_for("> ")
        terminal.type("\x04")
        assert terminal.exit_code() == 0
    (asked,) = service.requests
    assert asked["model"] == "y"
    assert asked["messages"] == [{"role": "user", "content": "a\nb\nc"}]
