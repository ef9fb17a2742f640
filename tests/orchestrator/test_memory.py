"""GPU memory before the launch: the published recipes fit, and what does not is told what would."""

import re

import pytest

from orchestrator.errors import SpecError
from orchestrator.memory import estimate_memory, require_memory
from orchestrator.spec_file import load_spec
from tests.end_to_end.conftest import EXAMPLES


def spec(name="vicuna-13b", **changes):
    given = [f"{key.replace('__', '.')}={value}" for key, value in changes.items()]
    return load_spec(EXAMPLES / f"{name}.yaml", given)


@pytest.mark.parametrize("name", ["vicuna-7b", "vicuna-13b"])
def test_the_published_recipes_fit(name):
    assert require_memory(spec(name)).needed < 80e9


def test_the_state_is_16_bytes_per_parameter_shared_by_all_gpus():
    assert estimate_memory(spec()).state == 16 * 13e9 / 8
    assert estimate_memory(spec(nodes__count=2)).state == 16 * 13e9 / 8  # once per node


def test_checkpointing_activations_saves_most_of_them():
    full, none = (
        estimate_memory(spec(train__activation_checkpointing=kind)) for kind in ("full", "none")
    )
    assert none.activations > 8 * full.activations
    assert none.state == full.state


@pytest.mark.parametrize(
    ("changes", "fits"),
    [
        ({"model__base": "meta-llama/Llama-2-70b-hf"}, r"nodes\.count: \d"),
        (
            {"nodes__accelerators": "A100:8", "model__base": "x/30b"},
            r"nodes\.accelerators: A100-80GB",
        ),
        (
            {"train__micro_batch": 16, "train__activation_checkpointing": "none"},
            r"activation_checkpointing: full, or train\.micro_batch: 1",
        ),
    ],
    ids=["more nodes", "larger GPUs", "less at a time"],
)
def test_what_does_not_fit_is_refused_with_what_would(changes, fits):
    with pytest.raises(SpecError, match="GB on each GPU") as caught:
        require_memory(spec(**changes))
    assert re.search(fits, caught.value.next_step)


def test_a_model_of_unknown_size_is_not_refused():
    assert require_memory(spec(model__base="x/mystery")) is None
