"""Where data and models come from: files, buckets, the web, and the Hugging Face hub."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from checkpoints.store import open_store
from orchestrator.errors import InputError
from orchestrator.sources import with_local_sources
from tests.orchestrator.histories import make_spec

COMMIT = "0123456789abcdef0123456789abcdef01234567"
CONFIG = b'{"model_type": "llama"}'


class Web(BaseHTTPRequestHandler):
    """Serves /data.json, and one model as the hub's API does."""

    def log_message(self, *args: object) -> None:
        return

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path == "/data.json":
            self._reply(b"[1, 2]")
        elif path == "/api/models/owner/tiny/revision/main":
            siblings = [{"rfilename": "config.json"}, {"rfilename": "training_args.bin"}]
            found = {"id": "owner/tiny", "sha": COMMIT, "siblings": siblings}
            self._reply(json.dumps(found).encode())
        elif path == f"/owner/tiny/resolve/{COMMIT}/config.json":
            self._reply(CONFIG)
        else:
            self.send_error(404)

    def _reply(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", f'"{hashlib.sha1(body).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)


@contextmanager
def web() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Web)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("ORCHESTRATE_HOME", str(tmp_path / "home"))
    return tmp_path


@pytest.fixture
def model(tmp_path):
    (tmp_path / "model").mkdir()
    return {"base": str(tmp_path / "model")}


def data_of(source: str, model: dict[str, str]) -> bytes:
    spec = make_spec(model=model, data={"train": source})
    return Path(with_local_sources(spec).data.train).read_bytes()


def test_data_in_a_bucket_is_fetched_anew_each_time(s3_url, model):
    store = open_store(f"{s3_url}/datasets")
    for content in (b"first", b"second and longer"):
        store.put("chat/data.json", content)
        assert data_of(f"{s3_url}/datasets/chat/data.json", model) == content


def test_data_on_the_web_is_fetched(model):
    with web() as address:
        assert data_of(f"{address}/data.json", model) == b"[1, 2]"


def test_what_is_not_there_is_said(s3_url, model, tmp_path):
    with web() as address:
        sources = {
            f"{address}/missing.json": "cannot be fetched",
            f"{s3_url}/datasets/nowhere.json": "does not exist",
            str(tmp_path / "nowhere.json"): "does not exist",
            str(tmp_path): "is not a file",
            "ftp://host/data.json": "unknown scheme",
        }
        for source, complaint in sources.items():
            with pytest.raises(InputError, match=complaint):
                data_of(source, model)


def test_a_model_of_the_hub_is_fetched_without_what_training_does_not_read(tmp_path):
    script = (
        "from orchestrator.sources import _model_folder\n"
        "folder = _model_folder('owner/tiny')\n"
        "print({path.name: path.read_bytes() for path in folder.iterdir()})"
    )
    with web() as address:
        environment = {**os.environ, "HF_ENDPOINT": address, "HF_HOME": str(tmp_path / "hub")}
        # The hub's client reads its address once per process.
        done = subprocess.run(
            [sys.executable, "-c", script],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip() == str({"config.json": CONFIG})
        missing = subprocess.run(
            [sys.executable, "-c", script.replace("tiny", "none")],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert "InputError: model.base owner/none is no folder here" in missing.stderr


@pytest.mark.parametrize("base", ["nowhere", "/nowhere/at/all", "./none/here", "a/b/c"])
def test_what_is_neither_a_folder_nor_an_id_is_refused(base, tmp_path):
    (tmp_path / "data.json").write_text("[]")
    spec = make_spec(model={"base": base}, data={"train": str(tmp_path / "data.json")})
    with pytest.raises(InputError, match="is not a folder"):
        with_local_sources(spec)
