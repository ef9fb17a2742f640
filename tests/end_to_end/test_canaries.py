"""A secret of its own wherever one is given, and a search for each in every byte that comes out."""

from __future__ import annotations

import base64
import json
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.error import HTTPError
from urllib.parse import quote
from urllib.request import urlopen

import psutil
import pytest
import yaml

from tests.end_to_end.conftest import EXAMPLES, ORCHESTRATE
from tests.message_service import receiving
from tests.orchestrator.evaluation.stub import is_rating, preference, rating, serving
from tests.orchestrator.skypilot.test_service import beside_skypilot

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

# What W&B's client takes for a key has 40 characters.
SECRETS = {
    "WANDB_API_KEY": "ca11ab1e00c0ffee00c0ffee00c0ffee00c0ffee",
    "HF_TOKEN": "hf_canaryOfTheHubThatNobodyMaySee",
    "AWS_ACCESS_KEY_ID": "AKIACANARYCANARYCANA",
    "AWS_SECRET_ACCESS_KEY": "canaryOfAwsThatNobodyMaySee/+abcdefghijk",
    "ORCHESTRATE_SERVE_API_KEY": "canary-of-the-served-model-0001",
    "ORCHESTRATE_MODEL_API_KEY": "canary-of-the-model-0002",
    "ORCHESTRATE_BASELINE_API_KEY": "canary-of-the-baseline-0003",
    "ORCHESTRATE_JUDGE_API_KEY": "canary-of-the-judge-0004",
    "OPENAI_API_KEY": "sk-canary-of-openai-0005",
}
SIGNATURE = "ca7a4100516e0a7u4e0006"
NOTIFY_SECRET = "canary-of-the-webhook-0007"
PROXY_SECRET = "canary-of-the-proxy-0008"
URL_SECRET = "canary-of-an-address-0009"
CANARIES = [*SECRETS.values(), SIGNATURE, NOTIFY_SECRET, PROXY_SECRET, URL_SECRET]
FORWARDED = {"WANDB_API_KEY", "HF_TOKEN", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"}
TASK = """
import os
from orchestrator.cloud.skypilot.task import build_task
from orchestrator.inputs import InputFile
from tests.orchestrator.histories import START, make_offer, make_record

record = make_record(infra=["aws"], local=None, store="s3://bucket/runs")
wheel = InputFile(name="w.whl", sha256="0" * 64, size=1)
offers = [make_offer("us-east-1", zone="us-east-1a")]
task = build_task(
    record, wheel, offers, launched_at=START, has_strategy=True,
    addresses=os.environ["ORCHESTRATE_NOTIFY"],
)
print(json.dumps({
    "secrets": {name: value.get_secret_value() for name, value in task.secrets.items()},
    "envs": task.envs,
    "shown": task.to_yaml_config(use_user_specified_yaml=True),
    "task": task.to_yaml_config(),
}))
"""


def found_in(data: bytes) -> set[str]:
    """Return the canaries that are somewhere in the bytes: as they are, quoted, or in base64."""
    return {
        one
        for one in CANARIES
        if any(form in data for form in (one.encode(), quote(one, safe="").encode(), *_base64(one)))
    }


def _base64(secret: str) -> list[bytes]:
    """Return its forms wherever it begins, without what depends on the bytes around it."""
    return [base64.b64encode(bytes(before) + secret.encode())[4:-4] for before in range(3)]


@pytest.mark.parametrize("user", ["", "u:", "me:", "user:"])
def test_a_canary_is_found_in_base64_wherever_it_begins(user):
    header = base64.b64encode(f"{user}{CANARIES[0]}".encode())
    assert CANARIES[0] in found_in(header)


def found_below(folder: Path) -> dict[str, set[str]]:
    """Return the files that hold canaries, and which; a file's name counts, too."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    seen = {str(path): found_in(path.read_bytes() + str(path).encode()) for path in files}
    return {path: canaries for path, canaries in seen.items() if canaries}


@contextmanager
def data_server() -> Iterator[str]:
    """Serve the example's conversations under an address that is signed."""

    class Handler(SimpleHTTPRequestHandler):
        def __init__(self, *arguments):
            super().__init__(*arguments, directory=str(EXAMPLES))

        def log_message(self, *arguments):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@contextmanager
def watching_arguments() -> Iterator[set[str]]:
    """Yield what grows to the arguments of every process that runs meanwhile."""
    seen: set[str] = set()
    is_over = threading.Event()

    def watch() -> None:
        while not is_over.wait(0.05):
            for process in psutil.process_iter():
                with suppress(psutil.Error):
                    seen.add(" ".join(process.cmdline()))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield seen
    finally:
        is_over.set()
        thread.join()


@pytest.fixture
def place(workplace):
    home = workplace.folder / "user"
    home.mkdir()
    workplace.environment |= SECRETS
    workplace.environment |= {
        "HOME": str(home),
        "WANDB_MODE": "online",
        "WANDB_BASE_URL": "http://127.0.0.1:9",  # nobody listens
        "HTTPS_PROXY": f"http://me:{PROXY_SECRET}@127.0.0.1:9",
        "NO_PROXY": "127.0.0.1,localhost",
    }
    return workplace


def test_no_secret_is_in_anything_that_a_run_writes_prints_or_starts(place):
    said: list[tuple[tuple[object, ...], str]] = []

    def run(*arguments: object) -> None:
        done = place.run(*arguments)
        said.append((arguments, f"exit {done.returncode}\n{done.stdout}{done.stderr}"))

    with receiving() as service, data_server() as data, watching_arguments() as arguments:
        service.status = 500
        place.environment["ORCHESTRATE_NOTIFY"] = (
            f"json://user:{NOTIFY_SECRET}@127.0.0.1:{service.port}/{NOTIFY_SECRET}"
        )
        signed = f"{data}/conversations.json?X-Amz-Signature={SIGNATURE}&X-Amz-Expires=60"
        spec = place.write_spec(
            data={"train": signed},
            train={"num_steps": 8, "global_batch": 8, "micro_batch": 4, "precision": "fp32"},
            tracking={"wandb": {"project": "tests"}, "notify": {}},
            local={"ranks": 1, "time_scale": 60, "preemptions": [{"after_step": 5}]},
        )
        run("plan", spec)
        run("doctor", spec)
        run("launch", spec, "--yes")
        for command in ("status", "cost", "logs"):
            run(command, "small")
        for command in ("status", "cost"):
            run(command, "small", "--json")
        run("dashboard", "small", "--export", place.folder / "page.html")
        run("checkpoints", "export", "small", "--output", place.folder / "model")
        gone = f"data.train={data}/gone.json?X-Amz-Signature={SIGNATURE}"
        run("launch", spec, "--yes", "--set", "name=gone", "--set", gone)
        secret = f"data.train=https://me:{URL_SECRET}@example.com/a.json"
        run("launch", spec, "--yes", "--set", "name=secret", "--set", secret)
        run("chat", f"http://me:{URL_SECRET}@127.0.0.1:9")
        place.wait_until_quiet()
        assert service.num_refused > 0  # it was tried
    # What we gave to the program ourselves is no leak of its.
    given = (str(spec), gone, secret, URL_SECRET)
    spec.unlink()

    codes = [text.partition("\n")[0] for _, text in said]
    assert codes == ["exit 0", codes[1], *["exit 0"] * 8, "exit 2", "exit 2", "exit 2"], said
    leaks = {words: found_in(text.encode()) for words, text in said}
    assert not {words: leak for words, leak in leaks.items() if leak}
    assert len(arguments) > 10
    ours = [line for line in arguments if not any(one in line for one in given)]
    assert not [line for line in ours if found_in(line.encode())]
    assert found_below(place.folder) == {}
    record = json.loads((place.folder / "store" / "small" / "run.json").read_text())
    assert record["spec"]["data"]["train"] == f"{data}/conversations.json"
    assert {"page.html", "model"} <= {path.name for path in place.folder.iterdir()}
    assert list((place.home / "runs").rglob("supervisor.log"))

    # The search itself: what is there is found, whatever its form.
    forms = [" ".join(CANARIES).encode(), quote("&".join(CANARIES), safe="").encode()]
    forms += [b"\0".join(base64.b64encode(one.encode()) for one in CANARIES)]
    for number, form in enumerate(forms):
        (place.folder / f"planted-{number}").write_bytes(form)
    assert found_below(place.folder) == {
        str(place.folder / f"planted-{number}"): set(CANARIES) for number in range(len(forms))
    }


def test_no_secret_is_in_what_is_served_judged_or_chatted(place):
    """Each key opens a door that nothing else opens; one judge says the key that it refuses."""
    told: dict[str, str] = {}
    spec = place.write_spec(train={"num_steps": 2, "global_batch": 4, "precision": "fp32"})
    assert place.run("launch", spec, "--yes").returncode == 0
    questions = place.folder / "questions.jsonl"
    asked = {"question_id": 1, "category": "math", "turns": ["What is 2 + 2?"]}
    questions.write_text(json.dumps(asked))

    def judged(body):
        return rating() if is_rating(body) else preference("tie")

    def refuse(body):
        said = f"Incorrect API key provided: {SECRETS['ORCHESTRATE_JUDGE_API_KEY']}."
        return 401, {"error": {"message": said}}

    with ExitStack() as stack:
        arguments = stack.enter_context(watching_arguments())
        says = {"MODEL": lambda body: "4", "BASELINE": lambda body: "5", "JUDGE": judged}
        stubs = {name: stack.enter_context(serving(say)) for name, say in says.items()}
        for name, stub in stubs.items():
            stub.key = SECRETS[f"ORCHESTRATE_{name}_API_KEY"]
        refusing = stack.enter_context(serving(refuse))
        for name, judge in (("eval", stubs["JUDGE"]), ("eval refused", refusing)):
            done = place.run(
                *("eval", f"mine={stubs['MODEL'].url}#stub", "--questions", questions, "--yes"),
                *("--baseline", f"base={stubs['BASELINE'].url}#stub", "--judge"),
                *(f"{judge.url}#stub", "--output", place.folder / name),
                *("--page", place.folder / f"{name}.html"),
            )
            told[name] = f"exit {done.returncode}\n{done.stdout}{done.stderr}"
        assert all(stub.asked for stub in stubs.values())

        server = stack.enter_context(place.start("serve", "--local", "small", "--port", "0"))
        stack.callback(server.kill)
        url = server.stdout.readline().split()[0]
        with pytest.raises(HTTPError) as refused:
            urlopen(f"{url}/chat/completions", data=b"{}", timeout=60)
        assert refused.value.code == 401
        told["refusal"] = refused.value.read().decode()
        refused.value.close()
        chatted = subprocess.run(
            [ORCHESTRATE, "chat", url, "--max-tokens", "3"],
            input="Hello?",
            capture_output=True,
            text=True,
            timeout=120,
            env=place.environment,
            cwd=place.folder,
            check=False,
        )
        told["chat"] = chatted.stdout + chatted.stderr
        assert chatted.returncode == 0, told["chat"]
        server.send_signal(signal.SIGINT)
        told["serve"] = "".join(server.communicate(timeout=60))
        assert server.returncode == 0, told["serve"]
    place.wait_until_quiet()
    assert told["eval"].startswith("exit 0"), told["eval"]
    assert "refuses the key" in told["eval refused"]
    leaks = {name: found_in(text.encode()) for name, text in told.items()}
    assert not {name: leak for name, leak in leaks.items() if leak}
    assert not [line for line in arguments if found_in(line.encode())]
    assert found_below(place.folder) == {}
    assert (place.folder / "eval.html").exists()


def test_the_task_of_a_launch_has_its_secrets_as_secrets_alone(tmp_path, monkeypatch):
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("AWS_SESSION_TOKEN", raising=False)
    monkeypatch.setenv("ORCHESTRATE_NOTIFY", f"json://user:{NOTIFY_SECRET}@host/x")
    found = beside_skypilot(tmp_path, TASK)
    expected = {name: SECRETS[name] for name in FORWARDED}
    assert found["secrets"] == {
        **expected,
        "ORCHESTRATE_NOTIFY": f"json://user:{NOTIFY_SECRET}@host/x",
    }
    # What SkyPilot cuts the secrets out of before it shows it, and keeps for starting again.
    kept = [found["task"], yaml.safe_load(found["task"].pop("_user_specified_yaml"))]
    assert [one.pop("secrets") for one in kept] == [found["secrets"]] * 2
    for part in (found["envs"], found["shown"], *kept):
        assert found_in(json.dumps(part).encode()) == set()
