"""What [NAME=]WHERE stands for."""

from __future__ import annotations

import pytest

from orchestrator.errors import InputError, UnknownRun, UsageError
from orchestrator.serving.models import find_model, find_models


@pytest.fixture
def model(tmp_path):
    folder = tmp_path / "tuned"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"")
    return folder


def test_a_folder_is_called_by_its_name(model):
    found = find_model(str(model))
    assert (found.name, found.folder) == ("tuned", model)


def test_a_folder_can_be_given_another_name(model):
    assert find_model(f"mine={model}").name == "mine"


def test_two_models_of_one_name_are_refused(model):
    with pytest.raises(UsageError, match="Two models are called 'tuned'"):
        find_models([str(model), str(model)], None)


@pytest.mark.parametrize("name", ["a/b", "a@b", "-a", "a b"])
def test_a_name_that_servers_would_take_for_something_else_is_refused(name, model):
    with pytest.raises(UsageError, match="cannot be a model's name"):
        find_model(f"{name}={model}")


def test_a_folder_without_a_model_is_named(tmp_path):
    with pytest.raises(InputError, match=r"holds no config\.json"):
        find_model(str(tmp_path))


def test_a_folder_without_weights_is_named(model):
    (model / "model.safetensors").unlink()
    with pytest.raises(InputError, match="holds no weights"):
        find_model(str(model))


def test_what_is_no_folder_is_a_run(tmp_path):
    with pytest.raises(UnknownRun, match="knows no run 'nobody'"):
        find_model("nobody")


def test_a_step_is_a_number():
    with pytest.raises(UsageError, match="names no step"):
        find_model("run@last")
