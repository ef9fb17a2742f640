"""CRC64NVME of stored bytes, block by block, so that a reader of any part can verify what it uses.

Its polynomial is that of S3's CRC64NVME; awscrt computes it at memory speed.
"""

from __future__ import annotations

from checkpoints.store import Buffer

# Small enough that resharding reads little beside what it needs, and large enough that the
# checksums of a 13B run (156 GB) take 2.4 MB of manifest.
BLOCK_BYTES = 1024 * 1024
HEX_PER_BLOCK = 16


def crc64(data: Buffer) -> int:
    """Return the CRC64NVME of all of `data`."""
    from awscrt.checksums import crc64nvme  # loads a library that no listing needs

    return int(crc64nvme(data))


def num_blocks(num_bytes: int) -> int:
    """Return how many blocks, the last one perhaps shorter, hold so many bytes."""
    return -(-num_bytes // BLOCK_BYTES)


def block_checksums(data: memoryview) -> str:
    """Return the checksums of the blocks of `data`, 16 hexadecimal digits each."""
    return "".join(
        f"{crc64(data[start : start + BLOCK_BYTES]):016x}"
        for start in range(0, len(data), BLOCK_BYTES)
    )
