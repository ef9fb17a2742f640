"""The command line: whatever stands in place of a value, it is done or refused in two lines."""

from __future__ import annotations

import contextlib
import io
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from checkpoints import remote_clients
from orchestrator import cli as cli_module
from tests.fuzz.mutation import VALUES, fuzzed
from tests.fuzz.test_addresses import addresses

SPEC = str(Path(__file__).parents[2] / "examples" / "quickstart.yaml")
# Any more than that is a hang, on a machine that does other things besides.
_MOST_S = 10.0
_FINE = (0, 2, 3, 4)
TIMES = (
    "0",
    "0s",
    "1ms",
    "1h",
    "9h",
    "9999999d",
    "1e5h",
    "1h1h",
    "\u0663h",
    "-1h",
    "h",
    "inf",
    "nan",
)
texts = st.sampled_from(VALUES).map(str) | st.text(max_size=8)
numbers = st.sampled_from(
    [*("0", "1", "-1", "1e308", "inf", "nan", "0x1", "1_0", "\u0663"), "9" * 30, "9" * 6000]
)
times = st.sampled_from(TIMES)
paths = texts | st.sampled_from(["/", "/dev/zero", "/proc/self/maps", "/proc/self/pagemap", "pipe"])
stores = texts | addresses | st.sampled_from(["s3://b/runs", "gs://b/runs", "az://b/r", "s3://a b"])
# Words, and what is drawn in their places; none of them can get so far as to do anything.
COMMANDS = (
    ("status", texts),
    ("status", "x", "--store", stores),
    ("cost", "x", texts, "--store", stores),
    ("cost", "x", "--reconcile", paths | addresses, "--store", "."),
    ("logs", "x", "--attempt", numbers, "--node", numbers, "--store", "."),
    ("dashboard", texts, "--export", paths),
    ("dashboard", "x", "--port", numbers, "--host", texts, "--name", texts, "--store", "."),
    ("stop", texts, "--store", stores),
    ("resume", texts, "--set", texts, "--store", stores),
    ("delete", texts, "--confirm", texts, "--store", "."),
    ("checkpoints", "list", texts, "--store", stores),
    ("checkpoints", "pin", "x", numbers, "--store", "."),
    ("checkpoints", "unpin", "x", numbers, "--store", "."),
    ("checkpoints", "verify", "x", "--step", numbers, "--against", texts, "--store", "."),
    ("checkpoints", "prune", "x", "--keep-last", numbers, "--keep-every", numbers, "--store", "."),
    ("checkpoints", "export", texts, "--output", paths, "--step", numbers, "--store", "."),
    ("checkpoints", "apply-delta", paths, paths, "--output", paths),
    ("plan", paths),
    ("plan", SPEC, "--set", addresses.map("data.train={}/d.json".format)),
    ("plan", SPEC, "--traces", paths, "--spot-price", numbers, "--on-demand-price", numbers),
    ("launch", paths, "--yes"),
    ("doctor", paths, "--offline"),
    ("simulate", SPEC, "--traces", ".", "--work", times, "--deadline", times),
    ("simulate", SPEC, "--traces", ".", "--restart", times, "--lost-work", times, "--state", texts),
    ("simulate", SPEC, "--traces", ".", "--starts", numbers, "--nodes", numbers, "--seed", numbers),
    ("simulate", SPEC, "--traces", ".", "--what-if", texts),
    ("simulate", SPEC, "--traces", ".", "--what-if", times.map("deadline=1h,{}".format)),
    ("eval", addresses, "--yes"),
    ("eval", "http://127.0.0.1:1#m", "--judge", addresses, "--yes"),
    ("eval", "http://127.0.0.1:1#m", "--questions", paths, "--timeout", numbers),
    ("eval", "m", "--first", numbers, "--max-tokens", numbers, "--budget-usd", numbers),
    ("eval", "--reviews", paths),
    ("serve", "--local", texts, "--host", texts, "--port", numbers),
    ("serve", "--local", "m", "--replicas", numbers, "--drain", numbers, "--max-queued", numbers),
    ("serve", "m", "--accelerators", texts, "--infra", texts, "--name", texts, "--store", "."),
    ("chat", addresses, "--model", texts, "--temperature", numbers, "--max-tokens", numbers),
    ("data", "prepare", "missing", paths, "--workers", numbers, "--share", numbers),
    ("data", "prepare", "missing", "out", "--max-length", numbers, "--budget-usd", numbers),
    ("data", "show", texts.map("missing/{}".format)),
    ("completion", texts),
    (texts, texts),
)


NAMED = {
    " ".join("_" if not isinstance(word, str) else word.replace(SPEC, "SPEC") for word in one): one
    for one in COMMANDS
}


@pytest.fixture(scope="module", autouse=True)
def offline(tmp_path_factory) -> Iterator[None]:
    """A home of its own, and no network: names are not known, nobody listens."""

    def look_up(host: str | bytes | None, *_: object, **__: object) -> None:
        if isinstance(host, str):
            host.encode("idna")
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    home = tmp_path_factory.mktemp("home")
    os.mkfifo(home / "pipe")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        for name in ("ORCHESTRATE_HOME", "SKY_RUNTIME_DIR", "HOME"):
            patch.setenv(name, str(home / name.lower()))
        for name in ("AWS_ENDPOINT_URL", "GOOGLE_BASE_URL", "AZURE_STORAGE_ENDPOINT"):
            patch.setenv(name, "http://127.0.0.1:1")
        patch.setenv("AWS_ACCESS_KEY_ID", "x")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "x")
        patch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "a")
        patch.setenv("GOOGLE_SKIP_SIGNATURE", "true")
        patch.setattr(remote_clients, "_RETRY", {"max_retries": 0})
        patch.setattr(socket, "getaddrinfo", look_up)
        patch.setattr(time, "sleep", lambda seconds: None)
        yield


def run(arguments: list[str]) -> tuple[int, str]:
    """Run the command line in this process; return its exit code and what it said."""
    out, err = io.StringIO(), io.StringIO()
    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        patch.setattr("sys.argv", ["orchestrate", *arguments])
        patch.setattr("sys.stdin", io.StringIO("Hello?"))
        with pytest.raises(SystemExit) as ended:
            cli_module.main()
    code = ended.value.code
    return code if isinstance(code, int) else 0, err.getvalue()


@fuzzed
@given(data=st.data())
@pytest.mark.parametrize("command", NAMED)
def test_whatever_stands_in_place_of_a_value_is_done_or_refused(data, command):
    drawn = [word if isinstance(word, str) else data.draw(word) for word in NAMED[command]]
    # Nobody can give an argument with a NUL in it.
    began = time.monotonic()
    code, said = run([word.replace("\0", "") for word in drawn])
    assert time.monotonic() - began < _MOST_S
    assert code in _FINE
    assert code == 0 or said.strip()
    assert "Traceback" not in said
