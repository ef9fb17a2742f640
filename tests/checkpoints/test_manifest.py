"""Records: what is written can be read, and nothing else can."""

from datetime import datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from checkpoints import layout
from checkpoints.errors import RecordInvalid
from checkpoints.manifest import (
    DTYPE_SIZES,
    Chunk,
    Claim,
    Head,
    Manifest,
    ObjectRecord,
    TensorRecord,
)

names = st.text(max_size=8)
positives = st.integers(1, 10**12)
instants = st.datetimes(
    min_value=datetime(2000, 1, 1),  # noqa: DTZ001 the zone is drawn apart
    max_value=datetime(2100, 1, 1),  # noqa: DTZ001
    timezones=st.sampled_from([timezone.utc, timezone(timedelta(hours=-7))]),
)
json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | names,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3),
    max_leaves=6,
)


@st.composite
def tensor_records(draw, key):
    """Draw a tensor cut into blocks of rows, empty ones among them."""
    dtype = draw(st.sampled_from(sorted(DTYPE_SIZES)))
    rest = tuple(draw(st.lists(st.integers(0, 4), max_size=2)))
    cuts = draw(st.lists(st.integers(0, 5), min_size=1, max_size=4))
    row_bytes = DTYPE_SIZES[dtype]
    for size in rest:
        row_bytes *= size
    chunks, first = [], 0
    for num_rows in cuts:
        chunks.append(
            Chunk(
                offsets=(first, *[0] * len(rest)),
                shape=(num_rows, *rest),
                object=key,
                start=draw(st.integers(0, 100)),
                length=num_rows * row_bytes,
                crc64=f"{draw(st.integers(0, 2**64 - 1)):016x}" if num_rows * row_bytes else "",
            )
        )
        first += num_rows
    order = draw(st.permutations(chunks))
    return TensorRecord(dtype=dtype, shape=(first, *rest), chunks=tuple(order))


@st.composite
def manifests(draw):
    key = "checkpoints/step-00000007.a001/rank-00000-of-00001.safetensors"
    return Manifest(
        run=draw(names),
        attempt=draw(positives),
        step=draw(st.integers(0, 10**12)),
        parent=draw(st.none() | names),
        world_size=draw(positives),
        created_at=draw(instants),
        objects=(ObjectRecord(key=key, size=draw(st.integers(5000, 10**12))),),
        tensors=draw(st.dictionaries(names, tensor_records(key), max_size=3)),
        state=draw(st.dictionaries(names, json_values, max_size=3)),
    )


def small_manifest(**changes):
    chunk = Chunk(offsets=(0, 0), shape=(2, 3), object="o", start=8, length=24, crc64="0" * 16)
    fields = {
        "run": "r",
        "attempt": 1,
        "step": 5,
        "parent": None,
        "world_size": 1,
        "created_at": datetime(2026, 1, 1, tzinfo=timezone.utc),
        "objects": (ObjectRecord(key="o", size=32),),
        "tensors": {"w": TensorRecord(dtype="F32", shape=(2, 3), chunks=(chunk,))},
        "state": {"loss": 0.1},
    }
    return Manifest(**{**fields, **changes})


@given(manifests())
def test_a_manifest_survives_the_round_trip(manifest):
    assert Manifest.from_json(manifest.to_json()) == manifest


@given(manifests(), st.data())
def test_a_changed_manifest_never_passes(manifest, data):
    stored = bytearray(manifest.to_json())
    index = data.draw(st.integers(0, len(stored) - 1))
    stored[index] ^= data.draw(st.integers(1, 255))
    with pytest.raises(RecordInvalid):
        Manifest.from_json(bytes(stored))


@given(manifests(), st.data())
def test_a_truncated_manifest_never_passes(manifest, data):
    stored = manifest.to_json()
    with pytest.raises(RecordInvalid):
        Manifest.from_json(stored[: data.draw(st.integers(0, len(stored) - 1))])


@pytest.mark.parametrize("record", [Manifest, Head, Claim])
@given(data=st.binary(max_size=60) | json_values.map(lambda value: repr(value).encode()))
def test_any_other_bytes_raise_only_record_invalid(record, data):
    with pytest.raises(RecordInvalid):
        record.from_json(data)


@given(positives, st.integers(0, 10**12), st.booleans())
def test_a_head_survives_the_round_trip(attempt, step, is_saved):
    manifest = layout.manifest_key(step, attempt) if is_saved else None
    head = Head(attempt=attempt, step=step if is_saved else 0, manifest=manifest, parent=manifest)
    assert Head.from_json(head.to_json()) == head


@given(positives, instants, st.dictionaries(names, names, max_size=3))
def test_a_claim_survives_the_round_trip(number, claimed_at, offer):
    claim = Claim(
        attempt=number,
        step=0,
        parent=None,
        claimed_by="agent",
        claimed_at=claimed_at,
        world_size=number,
        offer=offer,
    )
    assert Claim.from_json(claim.to_json()) == claim


@pytest.mark.parametrize("version", [1, 3])
def test_a_record_of_another_version_is_told_from_a_broken_one(version):
    other = b'{"schema_version":%d,"attempt":1,"step":0,"manifest":null,"surprise":1}' % version
    with pytest.raises(RecordInvalid, match=f"schema version {version}") as caught:
        Head.from_json(other)
    assert "version that wrote it" in caught.value.next_step


@pytest.mark.parametrize(
    "head",
    [
        {"attempt": 1, "step": 3, "manifest": None},
        {"attempt": 1, "step": 3, "manifest": "elsewhere/manifest.json"},
        {"attempt": 1, "step": 3, "manifest": layout.manifest_key(4, 1)},
        {"attempt": 1, "step": 3, "manifest": layout.manifest_key(3, 2)},
        {"attempt": 0, "step": 0, "manifest": None},
    ],
)
def test_a_head_names_a_manifest_of_its_own_step_and_past(head):
    with pytest.raises(ValidationError):
        Head(**head)


@pytest.mark.parametrize(
    "changes",
    [
        {"offsets": (1, 0)},
        {"offsets": (0, 1)},
        {"offsets": (0,)},
        {"shape": (1, 3), "length": 12},
        {"shape": (2, 2), "length": 16},
        {"length": 20},
        {"length": 28},
        {"crc64": ""},
        {"crc64": "0" * 32},
        {"crc64": "g" * 16},
    ],
)
def test_chunks_that_do_not_tile_their_tensor_are_refused(changes):
    chunk = {"offsets": (0, 0), "shape": (2, 3), "object": "o", "start": 8, "length": 24}
    with pytest.raises(ValidationError):
        TensorRecord(
            dtype="F32", shape=(2, 3), chunks=(Chunk(**{**chunk, "crc64": "0" * 16, **changes}),)
        )


def test_an_overlap_is_refused():
    chunk = Chunk(offsets=(0,), shape=(2,), object="o", start=0, length=8, crc64="0" * 16)
    with pytest.raises(ValidationError, match="overlap"):
        TensorRecord(dtype="F32", shape=(2,), chunks=(chunk, chunk))


@pytest.mark.parametrize(
    "objects",
    [
        (),
        (ObjectRecord(key="p", size=32),),
        (ObjectRecord(key="o", size=31),),
        (ObjectRecord(key="o", size=32, header_length=16, header_crc64="0" * 16),),
        (ObjectRecord(key="o", size=32), ObjectRecord(key="o", size=64)),
    ],
)
def test_chunks_outside_their_objects_are_refused(objects):
    with pytest.raises(ValidationError):
        small_manifest(objects=objects)


@pytest.mark.parametrize("value", [float("nan"), [float("inf")], {"a": [{"b": float("-inf")}]}])
def test_state_that_json_cannot_hold_is_refused(value):
    with pytest.raises(ValidationError, match="JSON cannot"):
        small_manifest(state={"x": value})


@given(st.integers(0, 10**12), positives)
def test_a_checkpoint_s_keys_tell_its_step_and_attempt(step, attempt):
    prefix = layout.checkpoint_prefix(step, attempt)
    assert layout.parse_checkpoint_prefix(prefix) == (step, attempt)
    assert layout.parse_checkpoint_prefix(layout.manifest_key(step, attempt)) == (step, attempt)
    assert layout.parse_checkpoint_prefix(layout.shard_key(step, attempt, 0, 2)) == (step, attempt)


@pytest.mark.parametrize("key", ["checkpoints/step-1.a1", "x", "checkpoints/", "HEAD.json"])
def test_other_keys_are_no_checkpoints(key):
    assert layout.parse_checkpoint_prefix(key) is None


def test_the_keys_are_those_of_the_design():
    assert layout.attempt_key(3) == "attempts/000003.json"
    assert layout.checkpoint_prefix(1200, 3) == "checkpoints/step-00001200.a003"
    assert layout.shard_key(1200, 3, 0, 16).endswith("a003/rank-00000-of-00016.safetensors")
    assert layout.event_key("agent-3-x", 0) == "events/agent-3-x/00000000.jsonl"
    assert layout.steps_key(3, 0) == "steps/000003/00000000.jsonl"
    assert layout.log_key(3, "agent.log") == "logs/000003/agent.log"
    assert layout.input_key("ab", "t.json") == "inputs/ab/t.json"
    assert layout.heartbeat_key("w") == "heartbeats/w.json"
    assert layout.request_key("7") == "requests/7.json"
