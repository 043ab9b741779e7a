"""Accumulators to outputs: the order of the products, and the casts against torch's."""

import numpy as np
import pytest
import torch

from cases import DTYPES, Options, assert_same, load, normal, store
from core import NO_MATRIX, STORAGE, Result, forward, matrix
from int8tile import _core

NARROW = ("bfloat16", "float16")
NO_SPLIT = Options(threshold=None)


def through_the_core(values, out, isa, k=0):
    """Values as the bias of a layer whose products are all zero."""
    x, w = np.zeros((1, k), np.float32), np.ones((len(values), k), np.float32)
    return forward(x, w, values, NO_SPLIT, isa=isa, out=out).y[0]


def float32_samples():
    """Each sign, exponent and leading mantissa bit, with endings around the halves of rounding."""
    upper = np.arange(2**16, dtype=np.uint32) << np.uint32(16)
    endings = [0, 1, 0x0FFF, 0x1000, 0x1001, 0x2000, 0x3000, 0x7FFF, 0x8000, 0x8001, 0xFFFF]
    return np.concatenate([upper | np.uint32(e) for e in endings]).view(np.float32)


def halfway_samples(dtype):
    """All finite values of a narrow dtype, the points halfway to the next, and their neighbours."""
    values = load(np.arange(2**15, dtype=np.uint16).view(STORAGE[dtype]))
    values = values[np.isfinite(values)].astype(np.float64)
    step = np.diff(values, append=2 * values[-1] - values[-2])
    near = (values + step / 2).astype(np.float32)
    inf = np.float32(np.inf)
    with np.errstate(over="ignore", under="ignore"):
        points = [near, np.nextafter(near, -inf), np.nextafter(near, inf)]
    return np.concatenate([*points, *(-p for p in points)])


@pytest.mark.parametrize("k", [0, 3], ids=["no_products", "zero_products"])
@pytest.mark.parametrize("out", NARROW)
def test_casts_round_overflow_and_keep_nan_like_those_of_torch(isa, out, k):
    values = np.concatenate([float32_samples(), halfway_samples(out)])
    if k:
        values[values == 0] = 0  # a sum with a zero product is no negative zero
    assert_same(through_the_core(values, out, isa, k), store(values, out))


@pytest.mark.parametrize("out", NARROW)
def test_casts_know_the_ends_of_the_range(isa, out):
    largest = torch.finfo(getattr(torch, out)).max
    values = np.array([largest, -largest, np.inf, -np.inf, 3.4028235e38, -3.4028235e38], np.float32)
    infinity = np.float32(np.inf)
    expected = np.array([largest, -largest, *[infinity, -infinity] * 2], np.float32)
    np.testing.assert_array_equal(load(through_the_core(values, out, isa)), expected)
    assert np.isnan(load(through_the_core(np.array([np.nan], np.float32), out, isa))).all()


@pytest.mark.parametrize("dtype", NARROW)
def test_every_value_of_a_narrow_dtype_is_read_exactly(isa, dtype):
    values = np.arange(2**16, dtype=np.uint16).view(STORAGE[dtype])
    expected = torch.from_numpy(values.view(np.uint16)).view(getattr(torch, dtype)).float()
    assert_same(through_the_core(values, "float32", isa), expected.numpy())


def exact_layer(rng, m, n, k):
    """Integers with both scales 1, so that accumulators are known: x, w, accumulators."""
    x, w = (rng.integers(-127, 128, (rows, k)).astype(np.float32) for rows in (m, n))
    x[:, 0] = w[:, 0] = 127
    return x, w, (x.astype(np.float64) @ w.astype(np.float64).T).astype(np.int64)


@pytest.mark.parametrize("out", DTYPES)
def test_products_come_in_the_stated_order(isa, threads, out, rng):
    """fl(fl(fl(acc) * row scale) * column scale) + bias; any other order differs somewhere."""
    m, n, k = 70, 130, 2000
    x, w, acc = exact_layer(rng, m, n, k)
    row, column = (
        np.float32(127) * rng.uniform(0.5, 2, size).astype(np.float32) for size in (m, n)
    )
    x, w = x * (row / np.float32(127))[:, None], w * (column / np.float32(127))[:, None]
    result = forward(x, w, None, NO_SPLIT, isa=isa, threads=threads, out=out)
    row = np.abs(x).max(1) / np.float32(127)
    column = np.abs(w).max(1) / np.float32(127)
    y = acc.astype(np.float32) * row[:, None] * column[None]
    assert (y != acc.astype(np.float32) * (row[:, None] * column[None])).any()
    assert_same(result.y, store(y, out))
    bias = normal(rng, n) * 100
    result = forward(x, w, bias, NO_SPLIT, isa=isa, threads=threads, out=out)
    assert_same(result.y, store(y + bias, out))


def test_large_accumulators_round_to_float_once(isa, rng):
    x, w, acc = exact_layer(rng, 6, 20, 131_072)
    x[0] = w[0] = 127
    acc = (x.astype(np.float64) @ w.astype(np.float64).T).astype(np.int32)
    assert acc[0, 0] == 131_072 * 127 * 127
    assert_same(forward(x, w, None, NO_SPLIT, isa=isa).y, acc.astype(np.float32))


@pytest.mark.parametrize("dtype", DTYPES)
def test_bias_of_every_dtype_is_added_in_float32(isa, dtype, rng):
    x, w, acc = exact_layer(rng, 9, 33, 50)
    bias = store(normal(rng, 33) * 1e4, dtype)
    y = forward(x, w, bias, NO_SPLIT, isa=isa).y
    assert_same(y, acc.astype(np.float32) + load(bias))


@pytest.mark.parametrize("layout", ["stepped", "stride_0", "reversed"])
def test_bias_of_any_stride_is_read(isa, layout, rng):
    x, w, acc = exact_layer(rng, 9, 33, 50)
    wide = normal(rng, 66)
    bias = {
        "stepped": wide[::2],
        "stride_0": np.broadcast_to(wide[:1], 33),
        "reversed": wide[32::-1],
    }[layout]
    assert_same(forward(x, w, bias, NO_SPLIT, isa=isa).y, acc.astype(np.float32) + bias)


@pytest.mark.parametrize("out", DTYPES)
@pytest.mark.parametrize("shape", [(13, 37), (700, 768)], ids=["small", "beyond_the_cache"])
@pytest.mark.parametrize("start", [0, 1], ids=["aligned", "unaligned"])
def test_an_output_with_room_around_its_rows_is_filled_in_place(isa, start, shape, out, rng):
    """Large aligned float32 outputs are written past the caches, so these shapes differ."""
    m, n = shape
    assert _core.plan(m, n, 20, 0, 12, 2, isa).stream == (m == 700)
    x, w, acc = exact_layer(rng, m, n, 20)
    result, scale = Result((m, n + 16), STORAGE[out]), Result(m, np.float32)
    count = Result(2, np.int32)
    before = result.array.copy()
    view = result.array[:, start : start + n]
    _core.linear_forward(
        matrix(x), matrix(w), NO_MATRIX, 0, 0, 0.0, 12, 0, "row", "absmax", 0, 0,
        scale.address, 0, count.address, matrix(view), 2, isa,
    )  # fmt: skip
    before[:, start : start + n] = store(acc.astype(np.float32), out)
    assert result.checked().tobytes() == before.tobytes()
