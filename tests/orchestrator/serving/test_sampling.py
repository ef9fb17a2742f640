"""What a request's words mean to a server that would pass over some of them."""

from __future__ import annotations

import json

import pytest

from orchestrator.serving.sampling import Refused, read_request


def ask(tmp_path, settings=None, **asked):
    if settings is not None:
        (tmp_path / "generation_config.json").write_text(json.dumps(settings))
    body, sampling = read_request(json.dumps({"model": "m", **asked}).encode(), tmp_path)
    document = json.loads(body)
    return document, json.loads(document["generation_config"]), sampling


def test_a_model_that_does_not_sample_is_greedy_unless_asked(tmp_path):
    _, _, sampling = ask(tmp_path, {"do_sample": False, "temperature": 0.6})
    assert sampling.temperature < 1e-3


def test_a_model_that_samples_does_so_with_its_own_settings(tmp_path):
    _, _, sampling = ask(tmp_path, {"do_sample": True, "temperature": 0.6, "top_p": 0.9})
    assert (sampling.temperature, sampling.top_p) == (0.6, 0.9)


def test_a_request_overrides_the_models_settings(tmp_path):
    settings = {"do_sample": True, "temperature": 0.6, "top_p": 0.9}
    _, _, greedy = ask(tmp_path, settings, temperature=0)
    _, _, warm = ask(tmp_path, settings, temperature=1.5, top_p=0.5)
    assert greedy.temperature < 1e-3
    assert (warm.temperature, warm.top_p) == (1.5, 0.5)


def test_the_first_request_makes_room_for_every_later_temperature(tmp_path):
    # The server sets its sampling up from the first request, and leaves out what is 1 there.
    _, settings, _ = ask(tmp_path, {}, temperature=1, top_p=1)
    assert settings["do_sample"] is True
    assert settings["temperature"] != 1
    assert settings["top_p"] < 1


@pytest.mark.parametrize("field", ["max_tokens", "max_completion_tokens"])
def test_both_names_of_the_limit_are_one(field, tmp_path):
    document, settings, _ = ask(tmp_path, {}, **{field: 7})
    assert settings["max_new_tokens"] == 7
    assert field not in document


def test_the_models_end_of_text_is_kept(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": 2, "hidden_size": 8}))
    _, settings, _ = ask(tmp_path)
    assert settings["eos_token_id"] == 2
    assert "hidden_size" not in settings


@pytest.mark.parametrize(
    "asked",
    [
        *({"stop": ["x"]}, {"n": 2}, {"logprobs": True}, {"frequency_penalty": 0.5}),
        *({"max_tokens": 0}, {"max_tokens": "7"}, {"temperature": "warm"}, {"top_p": 2}),
        *({"generation_config": "{}"}, {"functions": [{"name": "f"}]}, {"audio": {"voice": "a"}}),
        *({"tool_choice": "required"}, {"tool_choice": "none", "tools": [{"type": "function"}]}),
        *({"function_call": {"name": "f"}}, {"reasoning_effort": "high"}, {"echo": True}),
        *({"prediction": {"content": "x"}}, {"best_of": 2}, {"modalities": ["text", "audio"]}),
        {"web_search_options": {}},
    ],
)
def test_what_would_be_passed_over_in_silence_is_refused(asked, tmp_path):
    with pytest.raises(Refused):
        ask(tmp_path, {}, **asked)


def test_fields_that_ask_for_nothing_are_no_reason_to_refuse(tmp_path):
    nothing = {"stop": None, "n": 1, "logprobs": False, "frequency_penalty": 0, "echo": False}
    document, _, _ = ask(tmp_path, {}, **nothing, tool_choice="none", best_of=1, functions=[])
    assert set(document) == {"model", "generation_config"}


def test_what_changes_no_answer_is_let_through(tmp_path):
    kept = {"seed": 1, "user": "u", "metadata": {}, "store": False, "service_tier": "auto"}
    kept |= {"stream_options": {"include_usage": True}, "parallel_tool_calls": True}
    document, _, _ = ask(tmp_path, {}, **kept)
    assert document.items() >= kept.items()


def test_what_is_no_request_is_refused(tmp_path):
    with pytest.raises(Refused, match="no JSON"):
        read_request(b"{", tmp_path)


def test_an_answer_without_a_limit_is_as_long_as_there_is_room_for(tmp_path):
    _, _, free = ask(tmp_path, {})
    _, _, limited = ask(tmp_path, {}, max_tokens=100)
    assert free.room(100, 8192) == 1024
    assert free.room(500, 512) == 12
    assert limited.room(412, 512) == 100
    for sampling, num_prompt in ((free, 512), (free, 600), (limited, 413)):
        with pytest.raises(Refused, match="512"):
            sampling.room(num_prompt, 512)
