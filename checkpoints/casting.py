"""Weights from the fp32 master copy to the 16 bits that models are released in, by numpy alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from checkpoints.errors import RecordInvalid
from checkpoints.store import Buffer

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# As torch and transformers name them, to safetensors' names.
RELEASE_DTYPES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}
_FLOATS = ("F64", "F16", "BF16", "F8_E4M3", "F8_E5M2")
_MASTER = "F32"
_BF16_EXPONENT = 0x7F80  # all ones are infinity and NaN


def cast_dtype(name: str, dtype: str, target: str) -> str:
    """Return the dtype that a tensor is released in; what holds no fractions stays as it is.

    Raises RecordInvalid for floats other than those of the master copy.
    """
    if dtype in _FLOATS and dtype != target:
        raise RecordInvalid(
            f"{name} is {dtype} in the checkpoint, which is not cast to {target}.",
            "Export it without --dtype.",
        )
    return target if dtype == _MASTER else dtype


def cast(name: str, data: Buffer, dtype: str, target: str) -> Buffer:
    """Return the tensor's bytes in `target`, rounded to nearest, ties to even, as torch does.

    Raises RecordInvalid for values that it cannot hold.
    """
    if dtype == target or not len(data):
        return data
    import numpy as np  # 60 ms that only a release in another dtype pays

    values = np.frombuffer(data, "<f4")
    rounded = _to_f16(values) if target == "F16" else _to_bf16(values)
    if rounded is None:
        raise RecordInvalid(
            f"{name} holds values beyond the largest of {target}.",
            "Export it in another --dtype, or without.",
        )
    return rounded.tobytes()


def _to_f16(values: NDArray[np.float32]) -> NDArray[np.float16] | None:
    import numpy as np

    with np.errstate(over="ignore"):
        halves = values.astype("<f2")
    return halves if np.isfinite(halves).all() else None


def _to_bf16(values: NDArray[np.float32]) -> NDArray[np.uint16] | None:
    """Add half of what is dropped, less one bit where the last kept one is even, and drop it."""
    import numpy as np

    bits = values.view("<u4")
    half = np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
    kept = ((bits + half) >> np.uint32(16)).astype("<u2")
    return kept if ((kept & np.uint16(_BF16_EXPONENT)) != _BF16_EXPONENT).all() else None
