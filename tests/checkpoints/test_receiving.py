"""Receiving straight into memory: what it can do, and that whatever else happens is obstore's."""

import secrets
import socket

import pytest

from checkpoints.errors import Damaged, ObjectMissing
from checkpoints.receiving import Receiver
from checkpoints.remote_clients import open_client
from checkpoints.store import open_store
from tests.checkpoints.saving import read_range
from tests.loose_s3 import BUCKET


@pytest.fixture
def server(loose):
    loose.objects["a"] = bytes(range(100))
    return loose


@pytest.fixture
def receiver(server):
    return Receiver(open_client("s3", BUCKET))


def receive(receiver, *, start, length, path="a"):
    memory = bytearray(length)
    return memory if receiver.receive(path, start, [memoryview(memory)]) else None


def test_a_connection_is_used_again(receiver, server):
    for start in range(5):
        assert receive(receiver, start=start, length=7) == bytes(range(start, start + 7))
    assert len(server.connections) == 1


@pytest.mark.parametrize(("start", "path"), [(98, "a"), (100, "a"), (0, "b")])
def test_what_is_not_there_is_not_received(receiver, server, start, path):
    assert receive(receiver, start=start, length=3, path=path) is None
    assert receive(receiver, start=0, length=3) == b"\0\1\2"


def test_a_store_receives_so_and_asks_obstore_where_that_is_refused(server):
    store = open_store(f"s3://{BUCKET}")
    assert read_range(store, "a", 10, 5) == bytes(range(10, 15))
    assert server.num_presigned == 1
    server.refuses_presigned = True
    for start in range(3):
        assert read_range(store, "a", start, 5) == bytes(range(start, start + 5))
    assert server.num_presigned == 4  # it has worked: credentials may have changed meanwhile


def test_a_bucket_that_refuses_from_the_start_is_tried_once(server):
    server.refuses_presigned = True
    store = open_store(f"s3://{BUCKET}")
    for start in range(3):
        assert read_range(store, "a", start, 5) == bytes(range(start, start + 5))
    assert server.num_presigned == 1


def test_an_answer_that_ends_in_the_middle_is_asked_for_again(server):
    store = open_store(f"s3://{BUCKET}")
    server.num_to_cut = 1
    assert read_range(store, "a", 10, 50) == bytes(range(10, 60))
    assert server.num_to_cut == 0
    assert read_range(store, "a", 10, 50) == bytes(range(10, 60))


def test_a_connection_that_the_server_has_closed_is_replaced(server):
    store = open_store(f"s3://{BUCKET}")
    assert read_range(store, "a", 0, 2) == b"\0\1"
    server.close_connections()
    assert read_range(store, "a", 2, 2) == b"\2\3"


def test_proxies_are_left_to_obstore(server, monkeypatch):
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    assert receive(Receiver(open_client("s3", BUCKET)), start=0, length=3) is None
    assert server.connections == []


def test_where_nobody_listens_it_is_tried_once(server, monkeypatch):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{listener.getsockname()[1]}")
        receiver = Receiver(open_client("s3", BUCKET))
        assert receive(receiver, start=0, length=3) is None
        listener.listen()
        listener.setblocking(False)
        assert receive(receiver, start=0, length=3) is None
        with pytest.raises(BlockingIOError):
            listener.accept()


@pytest.mark.xdist_group("s3")
def test_a_real_server_s_bytes_go_where_they_belong(s3_url):
    bucket, name = s3_url.removeprefix("s3://"), secrets.token_hex(6)
    data = secrets.token_bytes(40 << 20)
    store = open_store(f"{s3_url}/{name}")
    store.put("large", data)
    receiver = Receiver(open_client("s3", bucket))
    memory = bytearray(len(data) - 3)
    view = memoryview(memory)
    assert receiver.receive(f"{name}/large", 1, [view[: 7 << 20], view[7 << 20 :]])
    assert memory == data[1:-2]
    with pytest.raises(Damaged, match="2 bytes too short"):
        read_range(store, "large", len(data) - 3, 5)
    with pytest.raises(ObjectMissing):
        read_range(store, "small", 0, 1)
