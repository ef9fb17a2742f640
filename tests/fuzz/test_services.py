"""What services answer: clouds' metadata, and servers that call themselves OpenAI's."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from orchestrator.agent.metadata import open_notices
from orchestrator.agent.notice import SourceSilent
from orchestrator.agent.whereabouts import find_whereabouts
from orchestrator.chat.server import End, Sampling, Server
from orchestrator.errors import ServerUnusable
from orchestrator.evaluation.verdicts import Rating, parse
from orchestrator.offers import Market
from orchestrator.serving.held_head import carries_content
from orchestrator.serving.sampling import Refused, read_request
from tests.fuzz.mutation import RAW, foreseen, fuzzed, json_texts
from train.spool import Notice, Risk

CHUNK = {
    "id": "1",
    "object": "chat.completion.chunk",
    "created": 0,
    "model": "tiny",
    "choices": [
        {"index": 0, "delta": {"role": "assistant", "content": "Hi"}, "finish_reason": None}
    ],
    "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
}
MODELS = {"object": "list", "data": [{"id": "tiny", "object": "model"}]}
ACTION = {"action": "terminate", "time": "2026-01-01T00:02:00Z"}
EVENTS = {
    "DocumentIncarnation": 1,
    "Events": [
        {
            "EventType": "Preempt",
            "Resources": ["node-1"],
            "NotBefore": "Thu, 01 Jan 2026 12:10:00 GMT",
        }
    ],
}
RATING = {"explanation": "", "coherence": 5, "relevance": 4, "fluency": 3, "engagement": 1}
PLACE = {"location": "eastus", "zone": "1", "priority": "Spot", "vmSize": "Standard_ND96"}


class Says(ThreadingHTTPServer):
    """A server that answers whatever it is asked with `body`."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.body = b""
        self.kind = "application/json"


class _Handler(BaseHTTPRequestHandler):
    server: Says

    def do_GET(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.send_response(200)
        self.send_header("Content-Type", self.server.kind)
        self.send_header("Content-Length", str(len(self.server.body)))
        self.end_headers()
        self.wfile.write(self.server.body)

    do_PUT = do_POST = do_GET

    def log_message(self, format: str, *arguments: object) -> None:
        """Say nothing."""


@pytest.fixture(scope="module")
def says() -> Iterator[Says]:
    with Says() as server, pytest.MonkeyPatch.context() as patch:
        Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        address = f"127.0.0.1:{server.server_port}"
        patch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", f"http://{address}")
        patch.setenv("GCE_METADATA_HOST", address)
        patch.setenv("AZURE_METADATA_SERVICE_ENDPOINT", f"http://{address}")
        yield server
        server.shutdown()


@fuzzed
@given(
    cloud=st.sampled_from(["aws", "gcp", "azure"]),
    body=json_texts(ACTION) | json_texts(EVENTS) | st.sampled_from(RAW).map(str.encode),
)
@example(cloud="aws", body=json.dumps({**ACTION, "time": "0001-01-01T00:00:00+14:00"}).encode())
def test_a_changed_notice_is_a_notice_or_silence(says, cloud, body):
    says.body = body
    try:
        found = open_notices(cloud)()
    except SourceSilent:
        return
    if isinstance(found, Notice):
        assert Notice.model_validate_json(found.model_dump_json()) == found
    else:
        assert found is None or isinstance(found, Risk)


@fuzzed
@given(
    cloud=st.sampled_from(["aws", "gcp", "azure"]),
    body=json_texts(PLACE) | st.sampled_from(RAW).map(str.encode) | st.binary(max_size=20),
)
@example(cloud="azure", body=b"[1]")
@example(cloud="azure", body=RAW[6].encode())
def test_a_node_knows_where_it_is_or_that_it_does_not(says, cloud, body):
    says.body = body
    found = find_whereabouts(cloud)
    if found is not None:
        assert found.market in Market
        assert all(
            isinstance(text, str) for text in (found.region, found.instance_type, *found.zones)
        )


@fuzzed
@given(body=json_texts(CHUNK))
@example(body=json.dumps({**CHUNK, "choices": [{"delta": {"content": 5}}]}).encode())
@example(body=json.dumps({**CHUNK, "choices": {"a": 1}}).encode())
@example(body=RAW[6].encode())
def test_a_changed_stream_is_an_answer_in_text_or_one_error(says, body):
    says.kind = "text/event-stream"
    says.body = (
        b"data: " + json.dumps(CHUNK).encode() + b"\n\ndata: " + body + b"\n\ndata: [DONE]\n\n"
    )
    shown: list[str] = []
    with closing(Server(f"http://127.0.0.1:{says.server_port}/v1", {})) as server:
        try:
            answer = server.answer("tiny", [], Sampling(), shown.append)
        except ServerUnusable as error:
            foreseen(error)
            return
    assert answer.text == "".join(shown)
    assert answer.end in End
    assert answer.num_tokens >= 0


@fuzzed
@given(body=json_texts(MODELS))
def test_a_changed_list_of_models_has_names_or_is_one_error(says, body):
    says.kind = "application/json"
    says.body = body
    with closing(Server(f"http://127.0.0.1:{says.server_port}/v1", {})) as server:
        try:
            names = server.models()
        except ServerUnusable as error:
            foreseen(error)
            return
    assert names
    assert all(isinstance(name, str) for name in names)


@fuzzed
@given(text=json_texts(RATING), is_fenced=st.booleans())
@example(text=RAW[6].encode(), is_fenced=True)
def test_a_changed_verdict_is_read_as_it_stands_or_is_none(text, is_fenced):
    said = text.decode(errors="replace")
    rating = parse(Rating, f"```json\n{said}\n```" if is_fenced else said)
    if rating is not None:
        assert json.loads(said) == rating.model_dump()


@fuzzed
@given(body=json_texts({"model": "m", "messages": [], "temperature": 1, "max_tokens": 5, "n": 1}))
@example(body=RAW[6].encode())
def test_a_changed_request_is_passed_on_or_refused(tmp_path_factory, body):
    try:
        passed, sampling = read_request(body, tmp_path_factory.getbasetemp())
    except Refused:
        return
    assert 0 <= sampling.temperature <= 2
    assert json.loads(passed)["generation_config"]


@fuzzed
@given(body=json_texts(CHUNK))
@example(body=RAW[6].encode())
def test_any_event_of_a_stream_says_something_or_nothing(body):
    assert carries_content(b"data: " + body + b"\n\n") in (True, False)
