"""What a delta takes: made, checked and added, for weights of LLaMA-7B's shapes in fp16.

Run: python -m benchmarks.delta --folder DIR [--layers 4]. Needs four times the weights' size there.
"""

from __future__ import annotations

import argparse
import hashlib
import resource
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from checkpoints.delta import apply_delta, check_base, write_delta
from checkpoints.tensor_files import TensorSpec, make_header

_WIDTH, _INNER, _VOCABULARY = 4096, 11008, 32000
_BLOCK_BYTES = 1 << 24


def specs(layers: int, vocabulary: int) -> dict[str, TensorSpec]:
    """Return the tensors of so many of its 32 layers."""
    shapes = {"embed_tokens": (vocabulary, _WIDTH), "lm_head": (vocabulary, _WIDTH)}
    for layer in range(layers):
        shapes |= {f"{layer}.{name}": (_WIDTH, _WIDTH) for name in "qkvo"}
        shapes |= {f"{layer}.{name}": (_INNER, _WIDTH) for name in ("gate", "up")}
        shapes[f"{layer}.down"] = (_WIDTH, _INNER)
    return {name: TensorSpec(dtype="F16", shape=shape) for name, shape in shapes.items()}


def write_model(folder: Path, tensors: dict[str, TensorSpec], seed: int) -> int:
    """Write a model of random bytes and return their number."""
    random = np.random.default_rng(seed)
    left = total = sum(spec.num_bytes for spec in tensors.values())
    with (folder / "model.safetensors").open("wb") as file:
        file.write(make_header(tensors))
        while left:
            block = random.bytes(min(_BLOCK_BYTES, left))
            file.write(block)
            left -= len(block)
    return total


def main() -> None:
    """Print seconds, the growth of memory, and whether the release came back."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--layers", type=int, default=4)
    options = parser.parse_args()
    folders = {name: options.folder / name for name in ("base", "release", "delta", "restored")}
    for one in folders.values():
        one.mkdir(parents=True)
    base, release, delta, restored = folders.values()
    write_model(base, specs(options.layers, _VOCABULARY), seed=1)
    # One row more: a token that was added to the vocabulary.
    size = write_model(release, specs(options.layers, _VOCABULARY + 1), seed=2)
    before = _peak_mb()
    print(f"release of {size / 1e9:.2f} GB")
    _time("made", lambda: write_delta(base, release, delta, base_name="base"))
    _time("base checked", lambda: check_base(base, delta))
    _time("added", lambda: apply_delta(base, delta, restored))
    print(f"peak memory {_peak_mb():.0f} MB, {before:.0f} MB of it before")
    print("equal" if _digest(release) == _digest(restored) else "DIFFERENT")
    for one in folders.values():
        shutil.rmtree(one)


def _time(what: str, work: Callable[[], object]) -> None:
    began = time.monotonic()
    work()
    print(f"{what} in {time.monotonic() - began:.1f} s")


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _digest(folder: Path) -> str:
    digest = hashlib.sha256()
    with (folder / "model.safetensors").open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


if __name__ == "__main__":
    main()
