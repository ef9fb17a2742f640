"""A model on its way to replicas: staged once, fetched by each, and every byte verified."""

from __future__ import annotations

import pytest

from checkpoints.layout import EXPORT, SERVICES, exported_key
from checkpoints.store import open_store
from orchestrator.errors import InputError, RecordUnreadable, UsageError
from orchestrator.serving.service import create_service, read_service
from orchestrator.serving.staging import (
    describe_folder,
    fetch_model,
    own_folder,
    require_bucket,
    stage_export,
    staged_files,
)
from tests.orchestrator.serving.services import make_service, make_staged


@pytest.fixture
def model(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"weights" * 1000)
    (folder / "pytorch_model.bin").write_bytes(b"a pickle")
    return folder


@pytest.fixture
def url(tmp_path):
    return (tmp_path / "bucket" / "demo").as_uri()


def staged(url, model):
    files = stage_export(open_store(url), "step-1", model)
    return make_staged(folder=url).model_copy(update={"checkpoint": "step-1", "files": files})


def test_what_was_staged_is_what_replicas_have_without_pickles(url, model, tmp_path):
    fetched = fetch_model(staged(url, model), tmp_path / "node")
    assert fetched.name == "demo"
    assert {path.name for path in fetched.iterdir()} == {"config.json", "model.safetensors"}
    assert (fetched / "model.safetensors").read_bytes() == b"weights" * 1000


def test_it_is_there_only_as_a_whole(url, model):
    store = open_store(url)
    assert staged_files(store, "step-1") is None
    files = stage_export(store, "step-1", model)
    assert staged_files(store, "step-1") == files
    store.delete([exported_key("step-1", "files.json")])  # as an upload that was cut leaves it
    assert staged_files(store, "step-1") is None
    assert [entry.key for entry in store.list(EXPORT)]


def test_a_damaged_byte_is_refused(url, model, tmp_path):
    one = staged(url, model)
    key = exported_key("step-1", "model.safetensors")
    open_store(url).put(key, b"weightS" + b"weights" * 999)
    with pytest.raises(InputError, match=r"model\.safetensors is damaged"):
        fetch_model(one, tmp_path / "node")


def test_the_same_files_have_the_same_folder_and_others_another(model):
    first = own_folder("s3://b/runs", "chat", describe_folder(model))
    assert first == own_folder("s3://b/runs", "chat", describe_folder(model))
    (model / "config.json").write_text('{"a": 1}')
    assert own_folder("s3://b/runs", "chat", describe_folder(model)) != first


def test_a_folder_without_safetensors_is_refused(model):
    (model / "model.safetensors").unlink()
    with pytest.raises(InputError, match="no weights in safetensors"):
        describe_folder(model)


@pytest.mark.parametrize("url", ["file:///runs", "s3-local://runs", "memory://x"])
def test_a_store_that_nodes_on_clouds_cannot_read_is_refused(url):
    with pytest.raises(UsageError, match="cannot read"):
        require_bucket(url, "demo")


def test_a_service_is_read_as_it_was_written(url):
    store, service = open_store(url), make_service()
    create_service(store, service)
    assert read_service(store, service.service_id) == service


def test_a_service_of_a_newer_version_is_refused(url):
    store = open_store(url)
    store.put(f"{SERVICES}chat.json", b'{"schema_version": 9}')
    with pytest.raises(RecordUnreadable, match="schema_version 9"):
        read_service(store, "chat")
