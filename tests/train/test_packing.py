"""Packing: nothing is lost, nothing is too long, little is wasted, the past does not change."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from train.config import Untrainable
from train.data.dataset import Dataset
from train.data.packing import pack
from train.data.prepare import prepare
from train.errors import DataInvalid

EXAMPLES = Path(__file__).parents[2] / "examples"
lengths = st.lists(st.integers(1, 100), max_size=200)


@given(lengths=lengths, window=st.integers(1, 50), seed=st.randoms())
def test_every_sample_is_in_one_sequence_that_is_not_too_long(lengths, window, seed):
    order = list(range(len(lengths)))
    seed.shuffle(order)
    sequences = list(pack(lengths, order, 100, window))
    assert sorted(index for one in sequences for index in one) == list(range(len(lengths)))
    assert all(sum(lengths[index] for index in one) <= 100 for one in sequences)


@given(lengths=lengths, more=lengths, window=st.integers(1, 50))
def test_what_comes_later_changes_nothing_in_the_windows_before(lengths, more, window):
    whole = len(lengths) // window * window
    first = list(pack(lengths, range(whole), 100, window))
    longer = list(pack([*lengths, *more], range(len(lengths) + len(more)), 100, window))
    assert longer[: len(first)] == first


@given(lengths=st.lists(st.integers(1, 100), min_size=1, max_size=200))
def test_at_most_11_ninths_of_the_fewest_sequences_are_used(lengths):
    fewest = -(-sum(lengths) // 100)
    largest = sum(length > 50 for length in lengths)
    assert len(list(pack(lengths, range(len(lengths)), 100))) <= max(
        11 / 9 * max(fewest, largest) + 6 / 9, 1.5 * max(fewest, largest)
    )


def prepared(tmp_path, **options):
    arguments = {"max_length": 2048, "eval_fraction": 0.05, "seed": 0, **options}
    summary = prepare(
        model=EXAMPLES / "tiny-llama",
        train=EXAMPLES / "conversations.json",
        output=tmp_path / "out",
        **arguments,
    )
    return summary, Dataset(tmp_path / "out" / "train.safetensors")


def test_prepared_sequences_hold_the_same_samples_packed_or_not(tmp_path):
    loose, one_by_one = prepared(tmp_path, packing=False)
    packed, together = prepared(tmp_path)
    assert loose.num_sequences == loose.num_samples == packed.num_samples
    assert packed.num_sequences < loose.num_sequences
    assert 0.95 <= packed.fill <= 1.0

    def samples(dataset):
        found = [one.tokens.tolist() for index in range(len(dataset)) for one in dataset[index]]
        return sorted(found)

    assert samples(together) == samples(one_by_one)
    counts = [dataset.count(range(len(dataset))) for dataset in (together, one_by_one)]
    assert counts[0] == counts[1]
    assert counts[0].num_tokens == packed.num_tokens
    assert counts[0].num_trained_tokens == packed.num_trained_tokens


def test_a_conversation_that_would_train_on_nothing_is_an_error_with_its_id(tmp_path):
    items = [
        {
            "id": name,
            "conversations": [{"from": "human", "value": q}, {"from": "gpt", "value": "a"}],
        }
        for name, q in (("fine", "short"), ("endless", "word " * 2000))
    ]
    (tmp_path / "train.json").write_text(json.dumps(items))
    arguments = {
        "model": EXAMPLES / "tiny-llama",
        "train": tmp_path / "train.json",
        "max_length": 200,
        "eval_fraction": 0.0,
        "seed": 0,
        "output": tmp_path / "out",
    }
    with pytest.raises(DataInvalid, match="endless"):
        prepare(**arguments)
    summary = prepare(**arguments, untrainable=Untrainable.DROP)
    assert summary.num_samples == 1
    assert "endless" in {note.id for note in summary.dropped}
