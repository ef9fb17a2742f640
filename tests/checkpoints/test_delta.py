"""Deltas: base + delta is the release to the bit, and nothing else comes of anything else."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from checkpoints import tensor_files
from checkpoints.casting import cast
from checkpoints.delta import apply_delta, check_base, write_delta
from checkpoints.delta_record import DELTA_NAME
from checkpoints.errors import Damaged, RecordInvalid
from checkpoints.manifest import DTYPE_SIZES
from checkpoints.tensor_files import TensorSpec, make_header, read_file, read_folder, write_index

# Of the tests' own, so that tensors of some kB have several blocks.
BLOCK_BYTES = 1024


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(tensor_files, "BLOCK_BYTES", BLOCK_BYTES)


def write_model(folder, tensors, num_files=1):
    """Write random bytes of these specs; every bit pattern is one that a tensor may hold."""
    folder.mkdir(parents=True)
    names, files = list(tensors), {}
    size = math.ceil(len(names) / num_files)
    for number in range(num_files):
        file = tensor_files.file_name("model", number + 1, num_files)
        files[file] = {
            name: tensors[name][0] for name in names[number * size : (number + 1) * size]
        }
        data = b"".join(tensors[name][1] for name in files[file])
        (folder / file).write_bytes(make_header(files[file]) + data)
    if num_files > 1:
        write_index(folder, files, "model")


def make(random, shape, dtype="F16"):
    spec = TensorSpec(dtype=dtype, shape=shape)
    return spec, random.bytes(spec.num_bytes)


def small_model(seed=0, rows=40, **more):
    random = np.random.default_rng(seed)
    return {
        "embed": make(random, (rows, 64)),
        "layer.weight": make(random, (64, 64), "BF16"),
        "norm": make(random, (64,), "F32"),
        "scale": make(random, ()),
        **{name: make(random, shape) for name, shape in more.items()},
    }


def files_of(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def write(base, release, output, **options):
    output.mkdir()
    return write_delta(base, release, output, base_name="the base", **options)


def restore(base, delta, output):
    output.mkdir()
    check_base(base, delta)
    return apply_delta(base, delta, output)


@pytest.fixture
def pair(tmp_path):
    """A base and a release of it, each in its folder."""
    base, release = tmp_path / "base", tmp_path / "release"
    write_model(base, small_model(1))
    write_model(release, small_model(2), num_files=2)
    return base, release


def test_base_and_delta_are_the_releases_files_byte_for_byte(pair, tmp_path):
    base, release = pair
    told = []
    write(base, release, tmp_path / "delta", progress=told.append)
    restored = restore(base, tmp_path / "delta", tmp_path / "restored")
    assert files_of(tmp_path / "restored") == files_of(release)
    assert sorted(restored) == sorted(files_of(release))
    assert sum(told) == sum(one.spec.num_bytes for one in read_folder(release).values())


def test_no_file_of_a_delta_is_taken_for_weights(pair, tmp_path):
    base, release = pair
    write(base, release, tmp_path / "delta")
    assert not list((tmp_path / "delta").glob("model*"))
    with pytest.raises(RecordInvalid, match=r"holds no model\.safetensors"):
        read_folder(tmp_path / "delta")


def test_the_delta_itself_is_not_the_release(pair, tmp_path):
    base, release = pair
    write(base, release, tmp_path / "delta")
    released = read_folder(release)
    for name, one in read_folder(tmp_path / "delta", "delta").items():
        assert b"".join(one.blocks()) != b"".join(released[name].blocks())


@given(
    data=st.data(),
    dtype=st.sampled_from(sorted(DTYPE_SIZES)),
    width=st.lists(st.integers(1, 5), max_size=2),
    rows=st.tuples(st.integers(0, 300), st.integers(0, 300)),
)
def test_any_dtype_and_number_of_rows_comes_back(data, dtype, width, rows, tmp_path_factory):
    folder = tmp_path_factory.mktemp("any")
    specs = [TensorSpec(dtype=dtype, shape=(count, *width)) for count in rows]
    for name, spec in zip(("base", "release"), specs, strict=True):
        # Hypothesis shrinks a seed better than so many bytes.
        random = np.random.default_rng(data.draw(st.integers(0, 1000)))
        write_model(folder / name, {"w": (spec, random.bytes(spec.num_bytes))})
    write(folder / "base", folder / "release", folder / "delta")
    restore(folder / "base", folder / "delta", folder / "restored")
    assert files_of(folder / "restored") == files_of(folder / "release")


def test_added_rows_of_a_vocabulary_are_in_the_delta_and_come_back(tmp_path):
    write_model(tmp_path / "base", small_model(1, rows=40))
    write_model(tmp_path / "release", small_model(2, rows=43))
    write(tmp_path / "base", tmp_path / "release", tmp_path / "delta")
    restore(tmp_path / "base", tmp_path / "delta", tmp_path / "restored")
    assert files_of(tmp_path / "restored") == files_of(tmp_path / "release")


def test_what_the_base_lacks_is_published_only_by_name(tmp_path):
    write_model(tmp_path / "base", small_model(1))
    write_model(tmp_path / "release", small_model(2, head=(40, 64)))
    with pytest.raises(RecordInvalid, match="lacks head, which would be published whole"):
        write(tmp_path / "base", tmp_path / "release", tmp_path / "delta")
    assert files_of(tmp_path / "delta") == {}
    record = write(tmp_path / "base", tmp_path / "release", tmp_path / "named", whole=("head",))
    assert [name for name, one in record.tensors.items() if one.base is None] == ["head"]
    restore(tmp_path / "base", tmp_path / "named", tmp_path / "restored")
    assert files_of(tmp_path / "restored") == files_of(tmp_path / "release")


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        (TensorSpec(dtype="F32", shape=(40, 64)), r"F32 in .* and F16 in the release"),
        (TensorSpec(dtype="F16", shape=(40, 32)), r"\[40, 32\] in .* and \[40, 64\]"),
    ],
)
def test_a_base_of_another_dtype_or_width_is_refused(spec, said, tmp_path):
    write_model(tmp_path / "base", small_model(1) | {"embed": (spec, bytes(spec.num_bytes))})
    write_model(tmp_path / "release", small_model(2))
    with pytest.raises(RecordInvalid, match=said):
        write(tmp_path / "base", tmp_path / "release", tmp_path / "delta")
    assert files_of(tmp_path / "delta") == {}


def test_another_base_is_refused_by_the_first_tensor_that_differs(pair, tmp_path):
    base, release = pair
    write(base, release, tmp_path / "delta")
    write_model(tmp_path / "other", small_model(1) | {"norm": small_model(3)["norm"]})
    with pytest.raises(RecordInvalid, match="not the base of this delta: its norm differs"):
        check_base(tmp_path / "other", tmp_path / "delta")
    write_model(tmp_path / "poor", {"embed": small_model(1)["embed"]})
    with pytest.raises(RecordInvalid, match=r"its layer\.weight is missing"):
        check_base(tmp_path / "poor", tmp_path / "delta")


@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_any_changed_bit_of_a_delta_is_found(place, bit, tmp_path_factory):
    folder = tmp_path_factory.mktemp("bits")
    write_model(folder / "base", small_model(1))
    write_model(folder / "release", small_model(2))
    write(folder / "base", folder / "release", folder / "delta")
    path = folder / "delta" / "delta.safetensors"
    data = bytearray(path.read_bytes())
    data[int(place * len(data))] ^= 1 << bit
    path.write_bytes(data)
    try:
        restore(folder / "base", folder / "delta", folder / "restored")
    except (Damaged, RecordInvalid):
        return
    # A space of the header's padding is the one thing that may change.
    assert files_of(folder / "restored") == files_of(folder / "release")


def test_a_delta_that_was_cut_off_is_refused(pair, tmp_path):
    base, release = pair
    write(base, release, tmp_path / "delta")
    path = tmp_path / "delta" / "delta-00002-of-00002.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(RecordInvalid, match="bytes of tensors instead of"):
        restore(base, tmp_path / "delta", tmp_path / "restored")


def test_a_delta_without_its_record_is_none(pair, tmp_path):
    base, release = pair
    write(base, release, tmp_path / "delta")
    (tmp_path / "delta" / DELTA_NAME).unlink()
    with pytest.raises(RecordInvalid, match=r"holds no delta\.json"):
        check_base(base, tmp_path / "delta")


def test_an_index_cannot_name_files_elsewhere(pair):
    _, release = pair
    index = release / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"embed": "model/../../secret"}}))
    with pytest.raises(RecordInvalid, match="which is not there"):
        read_folder(release)


def test_files_of_safetensors_itself_are_read_and_ours_read_by_it(tmp_path):
    tensors = {"b": torch.randn(3, 5), "a": torch.randn(7).to(torch.bfloat16)}
    save_file(tensors, tmp_path / "theirs.safetensors", metadata={"format": "pt"})
    held = read_file(tmp_path / "theirs.safetensors")
    data = b"".join(b"".join(one.blocks()) for one in held.values())
    header = make_header({name: one.spec for name, one in held.items()})
    (tmp_path / "ours.safetensors").write_bytes(header + data)
    found = load_file(tmp_path / "ours.safetensors")
    assert all(torch.equal(found[name], tensors[name]) for name in tensors)


@pytest.mark.parametrize(("target", "kind"), [("F16", torch.float16), ("BF16", torch.bfloat16)])
def test_casting_rounds_as_torch_does(target, kind):
    # Every exponent that float16 has, ties among them, and both zeros.
    bits = np.random.default_rng(0).integers(0, 2**32, 200_000, dtype=np.uint32)
    values = torch.from_numpy(bits.view(np.float32).copy())
    ties = torch.arange(2048, 4096).float() + 0.5
    values = torch.cat([values[values.abs() < 65504], ties, torch.tensor([0.0, -0.0, 1e-8])])
    expected = values.to(kind).view(torch.int16).numpy().tobytes()
    assert bytes(cast("w", values.numpy().tobytes(), "F32", target)) == expected


def test_values_that_a_dtype_cannot_hold_are_refused():
    for target, value in (("F16", 65520.0), ("BF16", 3.4e38)):
        with pytest.raises(RecordInvalid, match="beyond the largest"):
            cast("w", np.float32([value]).tobytes(), "F32", target)
