"""The slow right answer: every stage of int8tile in numpy, one formula a line.

Integers and, because every product is rounded to float32 in a stated order, outputs too are equal
bit for bit on every backend. Start reading at `linear_forward`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]
Int8Array = npt.NDArray[np.int8]
IntArray = npt.NDArray[np.int64]
AnyInt = Int8Array | IntArray

INT8_MAX = 127
OUTLIER_MAX = 16383  # two limbs hold a sign and 14 bits
ZERO_ABSMAX = np.float32(1e-30)  # a row whose absmax is below this counts as zero
SLICE_DEPTH = 131072  # the deepest K whose int8 products always fit int32
MAX_GAIN_EXPONENT = 16
_ONE = np.float32(1)


@dataclass(frozen=True)
class Scales:
    """Scales of rows: q = x * inv, x = q * scale; outliers step by 2**shift integers."""

    scale: FloatArray  # [rows], real units per integer step; NaN for a non-finite row
    inv: FloatArray  # [rows], 0 for an all-zero or non-finite row
    shift: IntArray  # [rows]


@dataclass(frozen=True)
class Split:
    """An activation quantised with its outlier columns in two limbs, v = 128 * high + low."""

    q: Int8Array  # [m, k], 0 at the outlier columns
    high: Int8Array  # [m, outliers], -128..127
    low: Int8Array  # [m, outliers], 0..127
    scale: FloatArray  # [m]
    index: IntArray  # [outliers], ascending
    gain: FloatArray  # [outliers], powers of two that the outlier columns were divided by


def absmax(x: FloatArray, axis: int | None = None) -> FloatArray:
    """Largest |x|, taken on the bits, so that NaN counts as larger than inf; 0 where empty."""
    bits = np.asarray(x, np.float32).view(np.uint32) & np.uint32(0x7FFFFFFF)
    return np.asarray(bits.max(axis=axis, initial=0)).view(np.float32)


def find_outliers(x: FloatArray, threshold: float, capacity: int) -> tuple[IntArray, int]:
    """Columns j with max_i |x[i,j]| > threshold over finite values.

    Args:
        x: [m, k] float32 activations.
        threshold: gamma, in the units of x.
        capacity: the most columns to return.

    Returns:
        The columns, ascending, and how many more there were. Over capacity the largest absmax
        stay; ties go to the lower index.
    """
    largest = absmax(np.where(np.isfinite(x), x, np.float32(0)), axis=0)
    columns = np.flatnonzero(largest > np.float32(threshold))
    kept = columns[np.argsort(-largest[columns], kind="stable")][:capacity]
    return np.sort(kept), len(columns) - len(kept)


def make_scales(
    regular: FloatArray, outlier: FloatArray, kind: str = "absmax", outlier_bits: int = 12
) -> Scales:
    """Scales of rows from the absmax of their INT8 part and of their outlier part."""
    largest = absmax(np.stack([regular, outlier]), axis=0)
    finite = np.isfinite(largest)
    used = finite & (largest >= ZERO_ABSMAX)
    with np.errstate(all="ignore"):
        scale = np.maximum(regular / np.float32(INT8_MAX), outlier / np.float32(OUTLIER_MAX))
        if kind == "pow2":
            bits = scale.view(np.uint32) + np.uint32(0x7FFFFF) & np.uint32(0xFF800000)
            scale = bits.view(np.float32)
        inv = np.where(used, _ONE / scale, np.float32(0)).astype(np.float32)
        top = np.rint(np.where(used, outlier * inv, 0)).astype(np.int64)
    bit_length = np.array([int(t).bit_length() for t in top], np.int64)
    scale = np.where(used, scale, np.where(finite, np.float32(0), np.float32(np.nan)))
    return Scales(scale.astype(np.float32), inv, np.maximum(0, bit_length - (outlier_bits - 1)))


def _row_scales(
    x: FloatArray, outlier: FloatArray, granularity: str, kind: str, outlier_bits: int
) -> Scales:
    regular, limbs = absmax(x, axis=1), absmax(outlier, axis=1)
    if granularity == "tensor":
        one = make_scales(absmax(regular)[None], absmax(limbs)[None], kind, outlier_bits)
        rows = len(x)
        return Scales(one.scale.repeat(rows), one.inv.repeat(rows), one.shift.repeat(rows))
    return make_scales(regular, limbs, kind, outlier_bits)


def outlier_gains(
    x: FloatArray, w: FloatArray, index: IntArray, threshold: float, granularity: str = "row"
) -> FloatArray:
    """Powers of two by which outlier columns of x are divided and those of w multiplied.

    The largest c in 1..2**16 with c * |w[n,j]| <= absmax of row n of w, for all n, and
    c * threshold <= max_i |x[i,j]|; 1 for a column of zeros. Rows of w whose integers are all 0,
    because their absmax is below `ZERO_ABSMAX` or not finite, do not count.

    Args:
        x: [m, k] float32 activations.
        w: [n, k] float32 weight.
        index: outlier columns of x.
        threshold: gamma.
        granularity: "row", or "tensor": the absmax of the matrix stands for that of each row.

    Returns:
        [outliers] float32.
    """
    largest = absmax(np.where(np.isfinite(x), x, np.float32(0)), axis=0).astype(np.float64)
    rows = absmax(w, axis=None if granularity == "tensor" else 1)
    rows = np.broadcast_to(rows, len(w))
    counted = np.isfinite(rows) & (rows >= ZERO_ABSMAX)
    room, column = rows[counted, None].astype(np.float64), np.abs(w[counted][:, index], dtype=float)
    gain = np.ones(len(index))
    for _ in range(MAX_GAIN_EXPONENT):  # exact: float64 has bits to spare
        fits = (2 * gain * column <= room).all(axis=0) & (column > 0).any(axis=0)
        gain *= np.where(fits & (2 * gain * np.float32(threshold) <= largest[index]), 2, 1)
    return gain.astype(np.float32)


def _mix(x: npt.NDArray[np.uint32]) -> npt.NDArray[np.uint32]:
    x = x ^ (x >> np.uint32(16))
    x = x * np.uint32(0x7FEB352D)
    x = x ^ (x >> np.uint32(15))
    x = x * np.uint32(0x846CA68B)
    return x ^ (x >> np.uint32(16))


def random_bits(seed: int, gemm_id: int, index: npt.NDArray[np.uint64]) -> FloatArray:
    """The 16 random bits of stochastic rounding for elements `index`, as multiples of 2**-16."""
    low, high = np.uint32(seed & 0xFFFFFFFF), np.uint32(seed >> 32 & 0xFFFFFFFF)
    base = _mix(np.array([low ^ high ^ np.uint32(gemm_id)], np.uint32))
    index_high = (index >> np.uint64(32)).astype(np.uint32)
    index_low = (index & np.uint64(0xFFFFFFFF)).astype(np.uint32)
    random = _mix(_mix(base ^ index_high) ^ index_low) >> np.uint32(16)
    return random.astype(np.float32) * np.float32(2**-16)


def _round(
    value: FloatArray, limit: int, rounding: str, seed: int, gemm_id: int
) -> npt.NDArray[np.int64]:
    value = np.where(np.isfinite(value), value, np.float32(0))
    if rounding == "stochastic":
        index = np.arange(value.size, dtype=np.uint64).reshape(value.shape)
        rounded = np.floor(value + random_bits(seed, gemm_id, index))
    else:
        rounded = np.rint(value)
    clipped: npt.NDArray[np.int64] = np.clip(rounded, -limit, limit).astype(np.int64)
    return clipped


def quantize(
    x: FloatArray,
    *,
    fold: FloatArray | None = None,
    granularity: str = "row",
    scale: str = "absmax",
    rounding: str = "nearest",
    seed: int = 0,
    gemm_id: int = 0,
    transpose: bool = False,
) -> tuple[Int8Array, FloatArray]:
    """int8 values and scales of a matrix.

    Args:
        x: [rows, cols] float32.
        fold: [rows] float32 that multiplies x first.
        granularity: "row" (one scale per row of the result) or "tensor".
        scale: "absmax" or "pow2" (rounded up to a power of two).
        rounding: "nearest" (even) or "stochastic".
        seed: 64 bits, for stochastic rounding.
        gemm_id: the stream of random bits: 1 grad_input, 2 grad_weight, 0 anything else.
        transpose: quantise per column of x and return the transposed matrix.

    Returns:
        q [rows, cols] int8 ([cols, rows] with transpose) and its row scales, float32.
    """
    x = np.asarray(x, np.float32)
    with np.errstate(all="ignore"):
        x = x if fold is None else x * fold[:, None]
        along = x.T if transpose else x
        s = _row_scales(along, np.zeros((len(along), 0), np.float32), granularity, scale, 15)
        inv = s.inv[None, :] if transpose else s.inv[:, None]
        q = _round(x * inv, INT8_MAX, rounding, seed, gemm_id).astype(np.int8)
    return (q.T if transpose else q), s.scale


def quantize_split(
    x: FloatArray,
    index: IntArray,
    *,
    outlier_bits: int = 12,
    granularity: str = "row",
    scale: str = "absmax",
    gain: FloatArray | None = None,
) -> Split:
    """Quantise activations with the columns `index` as two-limb integers of `outlier_bits` bits,
    divided by `gain` [outliers], powers of two (None: ones)."""
    x = np.asarray(x, np.float32)
    gain = np.ones(len(index), np.float32) if gain is None else gain
    regular, outlier = x.copy(), x[:, index] / gain
    regular[:, index] = 0
    s = _row_scales(regular, outlier, granularity, scale, outlier_bits)
    with np.errstate(all="ignore"):
        q = _round(regular * s.inv[:, None], INT8_MAX, "nearest", 0, 0).astype(np.int8)
        step = np.exp2(-s.shift[:, None]).astype(np.float32)
        v = _round(outlier * s.inv[:, None] * step, 2 ** (outlier_bits - 1) - 1, "nearest", 0, 0)
    v = v << s.shift[:, None]
    return Split(q, (v >> 7).astype(np.int8), (v & 127).astype(np.int8), s.scale, index, gain)


def quantize_gained(
    w: FloatArray,
    index: IntArray,
    gain: FloatArray,
    *,
    granularity: str = "row",
    scale: str = "absmax",
) -> tuple[Int8Array, FloatArray]:
    """q [n, k] and row scales of a weight, its columns `index` multiplied by `gain` but with the
    scales of the weight as it was."""
    w8, w_scale = quantize(w, granularity=granularity, scale=scale)
    with np.errstate(all="ignore"):
        inv = np.where(w_scale > 0, _ONE / w_scale, np.float32(0))
        columns = _round(w[:, index] * gain * inv[:, None], INT8_MAX, "nearest", 0, 0)
    w8[:, index] = columns.astype(np.int8)
    return w8, w_scale


def slices_of(depth: int, capacity: int = 0) -> list[tuple[int, int]]:
    """Ranges of K that are summed in int32, the first with room for `capacity` outlier columns."""
    if depth <= SLICE_DEPTH:
        return [(0, depth)]
    first = min(SLICE_DEPTH, (2**31 - 1 - capacity * 16384 * 127) // 127**2 // 16 * 16)
    starts = [0, *range(first, depth, SLICE_DEPTH)]
    return list(zip(starts, [*starts[1:], depth], strict=True))


def gemm(
    a: AnyInt, b: AnyInt, a_high: Int8Array | None = None, b_high: Int8Array | None = None
) -> npt.NDArray[np.int32]:
    """((a_high @ b_high.T) << 7) + a @ b.T, exact; [m, n] int32.

    Raises:
        OverflowError: a sum does not fit int32.
    """
    # Exact in float64: every partial sum is below 2**53.
    acc = a.astype(np.float64) @ b.astype(np.float64).T
    if a_high is not None and b_high is not None:
        acc += 128 * (a_high.astype(np.float64) @ b_high.astype(np.float64).T)
    if np.any(np.abs(acc) >= 2**31):
        raise OverflowError("int8tile.reference.gemm: a sum does not fit int32")
    return acc.astype(np.int32)


def dequantize(
    acc: npt.NDArray[np.int32], row_scale: FloatArray, col_scale: FloatArray
) -> FloatArray:
    """fl(fl(fl(acc) * row_scale) * col_scale), [m, n] float32."""
    with np.errstate(all="ignore"):
        scaled: FloatArray = acc.astype(np.float32) * row_scale[:, None] * col_scale[None, :]
    return scaled


def linear_forward(
    x: FloatArray,
    w: FloatArray,
    bias: FloatArray | None = None,
    *,
    threshold: float | None = 5.0,
    outlier_bits: int = 12,
    capacity: int = 32,
    granularity: str = "row",
    scale: str = "absmax",
    outlier_gain: bool = False,
) -> tuple[FloatArray, Split]:
    """y = x @ w.T + bias in int8 with outlier columns in two limbs.

    Args:
        x: [m, k] float32 activations.
        w: [n, k] float32 weight.
        bias: [n] float32.
        threshold: gamma; None turns the split off.
        outlier_bits: significant bits of an outlier, 8..15.
        capacity: the most outlier columns.
        granularity: "row" or "tensor" scales of x and w.
        scale: "absmax" or "pow2".
        outlier_gain: move powers of two from outlier columns of x to those of w, see
            `outlier_gains`.

    Returns:
        y [m, n] float32 and the quantised x.
    """
    index = np.zeros(0, np.int64)
    if threshold:
        index, _ = find_outliers(x, threshold, capacity)
    gain = np.ones(len(index), np.float32)
    if outlier_gain and threshold:
        gain = outlier_gains(x, w, index, threshold, granularity)
    split = quantize_split(
        x, index, outlier_bits=outlier_bits, granularity=granularity, scale=scale, gain=gain
    )
    w8, w_scale = quantize_gained(w, index, gain, granularity=granularity, scale=scale)
    y = np.zeros((len(x), len(w)), np.float32)
    for begin, end in slices_of(x.shape[1], capacity if threshold else 0):
        acc = gemm(split.q[:, begin:end], w8[:, begin:end])
        if begin == 0:
            w_outlier = w8[:, index]
            acc = gemm(
                np.concatenate([split.low, split.q[:, begin:end]], axis=1),
                np.concatenate([w_outlier, w8[:, begin:end]], axis=1),
                split.high,
                w_outlier,
            )
        part = dequantize(acc, split.scale, w_scale)
        y = part if begin == 0 else y + part
    return (y if bias is None else y + bias.astype(np.float32)), split


def grad_input(
    g: FloatArray,
    w: FloatArray,
    *,
    granularity: str = "row",
    scale: str = "absmax",
    rounding: str = "nearest",
    seed: int = 0,
) -> FloatArray:
    """grad_x = g @ w, [m, k] float32: g quantised per row, w per input feature."""
    g8, g_scale = quantize(
        g, granularity=granularity, scale=scale, rounding=rounding, seed=seed, gemm_id=1
    )
    w8, w_scale = quantize(w, granularity=granularity, scale=scale, transpose=True)
    total = np.zeros((len(g), w.shape[1]), np.float32)
    for begin, end in slices_of(g.shape[1]):
        part = dequantize(gemm(g8[:, begin:end], w8[:, begin:end]), g_scale, w_scale)
        total = part if begin == 0 else total + part
    return total


def token_block(tokens: int) -> int:
    """Rows of a block, of which the four largest are outlier tokens; 0: there are none.

    96, or twice that and so on until sums over all tokens fit int32 in one slice.
    """
    if tokens > SLICE_DEPTH:
        return 0
    block = 96
    while (tokens * INT8_MAX + -(-tokens // block) * 4 * (OUTLIER_MAX + 1)) * 128 >= 2**31:
        if block >= tokens:
            return 0
        block *= 2
    return block


def outlier_tokens(g: FloatArray) -> npt.NDArray[np.bool_]:
    """Which rows of g [m, n] have one of the four largest absmax of their block, [m]."""
    largest = absmax(g, axis=1).view(np.uint32)
    found = np.zeros(len(g), bool)
    block = token_block(len(g))
    for begin in range(0, len(g), block) if block else ():
        order = np.argsort(-largest[begin : begin + block].astype(np.int64), kind="stable")
        found[begin + order[:4]] = True
    return found


def quantize_tokens(
    g: FloatArray,
    *,
    granularity: str = "row",
    scale: str = "absmax",
    rounding: str = "nearest",
    seed: int = 0,
    gemm_id: int = 0,
) -> tuple[IntArray, FloatArray]:
    """g [m, n] with a scale per column, transposed: [n, m] int8, its outlier tokens of 15 bits,
    rounded to nearest, and the scales."""
    found = outlier_tokens(g)
    regular = np.where(found[:, None], np.float32(0), g)
    s = _row_scales(regular.T, g[found].T, granularity, scale, 15)
    with np.errstate(all="ignore"):
        q = _round(g * s.inv, INT8_MAX, rounding, seed, gemm_id)
        q[found] = _round(g[found] * s.inv, OUTLIER_MAX, "nearest", 0, 0)
    return q.T, s.scale


def grad_weight(
    g: FloatArray,
    split: Split,
    *,
    granularity: str = "row",
    scale: str = "absmax",
    rounding: str = "nearest",
    seed: int = 0,
    grad_split: bool = True,
) -> FloatArray:
    """grad_w = g.T @ x, [n, k] float32: the row scales of x are folded into g first, and with
    `grad_split` its outlier tokens keep 15 bits."""
    tensor = granularity == "tensor"
    with np.errstate(all="ignore"):
        g = np.asarray(g, np.float32) if tensor else g * split.scale[:, None]
    quantize_columns: Callable[..., tuple[AnyInt, FloatArray]]
    quantize_columns = quantize_tokens if grad_split else partial(quantize, transpose=True)
    g8, g_scale = quantize_columns(
        g,
        granularity=granularity,
        scale=scale,
        rounding=rounding,
        seed=seed,
        gemm_id=1 if tensor else 2,
    )
    k = split.q.shape[1]
    x_scale = np.full(k, split.scale[0] if tensor and len(g) else 1, np.float32)
    x_scale[split.index] *= split.gain
    total = np.zeros((g.shape[1], k), np.float32)
    for begin, end in slices_of(len(g)):
        here = slice(begin, end)
        part = dequantize(gemm(g8[:, here], split.q[here].T), g_scale, x_scale)
        high = gemm(g8[:, here], split.high[here].T).astype(np.float32)
        low = gemm(g8[:, here], split.low[here].T).astype(np.float32)
        with np.errstate(all="ignore"):
            limbs = high * np.float32(128) + low
            part[:, split.index] = limbs * g_scale[:, None] * x_scale[None, split.index]
        total = part if begin == 0 else total + part
    return total
