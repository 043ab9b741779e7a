"""What the core is tested on: options, dtypes, memory layouts, activations with outliers, and the
bit-for-bit comparison."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

DTYPES = ("float32", "bfloat16", "float16")
GRANULARITIES = ("row", "tensor")
SCALES = ("absmax", "pow2")
ROUNDINGS = ("nearest", "stochastic")
SEED = 0x1234_5678_9ABC_DEF0


@dataclass(frozen=True)
class Options:
    """The options of one linear layer, for the core and for the reference alike."""

    threshold: float | None = 5.0
    bits: int = 12
    capacity: int | None = None
    granularity: str = "row"
    scale: str = "absmax"
    rounding: str = "nearest"
    seed: int = SEED
    gain: bool = False  # of outlier columns
    grad_split: bool = True  # outlier tokens of g in two limbs

    @property
    def scales(self):
        return {"granularity": self.granularity, "scale": self.scale}

    @property
    def grad(self):
        return {**self.scales, "rounding": self.rounding, "seed": self.seed}

    def __str__(self):
        split = f"split{self.bits}" if self.threshold else "nosplit"
        more = "-gain" * self.gain + "-nogradsplit" * (not self.grad_split)
        return f"{split}-{self.granularity}-{self.scale}-{self.rounding}{more}"


ALL_SCALES = [Options(granularity=g, scale=s) for g in GRANULARITIES for s in SCALES]
ALL_OPTIONS = [
    Options(granularity=g, scale=s, rounding=r, grad_split=t)
    for g in GRANULARITIES
    for s in SCALES
    for r in ROUNDINGS
    for t in (False, True)
]


def store(values, dtype):
    """float32 values in the storage of a dtype; bfloat16 is kept as its bits, uint16."""
    values = np.asarray(values, np.float32)
    if dtype == "float32":
        return values
    tensor = torch.from_numpy(np.ascontiguousarray(values)).to(getattr(torch, dtype))
    return tensor.view(torch.uint16).numpy() if dtype == "bfloat16" else tensor.numpy()


def load(array):
    """The float32 values of stored ones."""
    if array.dtype == np.uint16:
        return (np.asarray(array, np.uint32) << np.uint32(16)).view(np.float32)
    return array.astype(np.float32)


def normal(rng, *shape):
    return rng.standard_normal(shape, np.float32)


def activations(rng, m, k, outliers=3, size=40.0):
    """Normal values within +-4, so that only the `outliers` columns exceed the default threshold:
    there they are `size` times as large, and the first row is at least `size`."""
    x = np.clip(normal(rng, m, k), -4, 4)
    columns = rng.choice(k, min(outliers, k), replace=False)
    x[:, columns] *= np.float32(size)
    x[:1, columns] += np.copysign(np.float32(size), x[:1, columns])
    return x


def _inside(array, rows, cols):
    """A zero matrix of at least [rows, cols], of the array's dtype."""
    return np.zeros((rows, cols), array.dtype)


def _padded_rows(array):
    view = _inside(array, len(array), array.shape[1] + 5)[:, : array.shape[1]]
    view[...] = array
    return view


def _stepped(array):
    view = _inside(array, 2 * len(array) + 1, 3 * array.shape[1] + 1)[1::2, 1::3]
    view[...] = array
    return view


def _unaligned(array):
    flat = np.zeros(array.size + 1, array.dtype)
    view = flat[1:].reshape(array.shape)
    view[...] = array
    return view


def _reversed(array):
    return np.ascontiguousarray(array[::-1, ::-1])[::-1, ::-1]


LAYOUTS = {
    "transposed": np.asfortranarray,
    "padded_rows": _padded_rows,
    "stepped": _stepped,
    "unaligned": _unaligned,
    "negative_strides": _reversed,
    "row_stride_0": lambda array: np.broadcast_to(array[:1], array.shape),
    "column_stride_0": lambda array: np.broadcast_to(array[:, :1], array.shape),
    "both_strides_0": lambda array: np.broadcast_to(array[:1, :1], array.shape),
}


def stressed(rng, m, n, k, outliers=4, size=60.0):
    """x and w whose outlier columns are `size` times as large in x, and as small in w."""
    x, w = np.clip(normal(rng, m, k), -4, 4), normal(rng, n, k)
    columns = rng.choice(k, min(outliers, k), replace=False)
    x[:, columns] *= np.float32(size)
    w[:, columns] /= np.float32(size)
    return x, w


def ragged(rng, axis, axes, most=20):
    """Shapes whose one size runs through 1..130 while the others are drawn below `most`."""
    for size in range(1, 131):
        shape = rng.integers(1, most, axes)
        shape[axis] = size
        yield tuple(int(s) for s in shape)


def assert_same(actual, expected):
    """Equal bit for bit, the sign of zero too; a NaN equals any NaN."""
    assert actual.shape == expected.shape
    if expected.dtype.kind in "iu" and expected.dtype != np.uint16:
        np.testing.assert_array_equal(actual, expected, strict=True)
        return
    assert actual.dtype == expected.dtype
    actual, expected = load(actual), load(expected)
    np.testing.assert_array_equal(actual, expected)
    signs = np.isnan(expected) | (np.signbit(actual) == np.signbit(expected))
    assert signs.all(), "zeros of different sign"
