"""Golden vectors of the published block formats, made by the ``gguf`` package (version in the file).

For each format: random blocks, and blocks at the edges of float16 and of the integers (zero and negative zero,
the smallest subnormal, the largest finite number, infinity, NaN as scale; all bits clear, all bits set).
``<NAME>.bytes`` are the published bytes, ``<NAME>.values`` what ``gguf.quants.dequantize`` makes of them.
"""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tests.weights.writers import GGUF_TYPES, SCALE_OFFSETS

HALVES = (0x0000, 0x8000, 0x0001, 0x8001, 0x03FF, 0x0400, 0x3C00, 0xBC00, 0x7BFF, 0xFBFF, 0x7C00, 0xFC00, 0x7E00)
"""float16: zeros, smallest and largest subnormals, smallest normal, one, largest, infinities, NaN."""
EXPONENTS = (0, 1, 2, 127, 253, 254, 255)
"""e8m0."""
FORMATS = tuple(name for name in GGUF_TYPES if name not in ("F32", "F64", "I8", "I16", "I32", "I64"))


def sample_blocks(name: str, rng: np.random.Generator, count: int) -> npt.NDArray[np.uint8]:
    """``count`` random blocks, then one for each extreme scale, then all bits clear and all set."""
    block_bytes = GGUF_TYPES[name][2]
    extremes = EXPONENTS if name == "MXFP4" else HALVES
    blocks = rng.integers(0, 256, (count + len(extremes) + 2, block_bytes), dtype=np.uint8)
    for row, value in enumerate(extremes, start=count):
        for at in _scale_offsets(name):
            blocks[row, at[0] : at[1]] = np.frombuffer(value.to_bytes(at[1] - at[0], "little"), np.uint8)
    blocks[-2], blocks[-1] = 0, 255
    return blocks


def _scale_offsets(name: str) -> list[tuple[int, int]]:
    if name == "MXFP4":
        return [(0, 1)]
    return [(at, at + 2) for at in SCALE_OFFSETS.get(name, (0,))]


def write_all(folder: Path) -> None:
    """blocks.npz."""
    import gguf

    rng = np.random.default_rng(2024)
    arrays: dict[str, npt.NDArray[np.generic]] = {"gguf_version": np.array(version("gguf"))}
    for name in FORMATS:
        blocks = sample_blocks(name, rng, 6)
        with np.errstate(all="ignore"):
            values = gguf.quants.dequantize(blocks, gguf.GGMLQuantizationType[name])
        arrays[f"{name}.bytes"], arrays[f"{name}.values"] = blocks, values
    np.savez_compressed(folder / "blocks.npz", **arrays)


if __name__ == "__main__":
    write_all(Path(__file__).parent)
