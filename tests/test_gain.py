"""Gains of outlier columns: powers of two that move from x to w where w has room for them."""

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from cases import (
    ALL_OPTIONS,
    ALL_SCALES,
    DTYPES,
    GRANULARITIES,
    LAYOUTS,
    SCALES,
    Options,
    assert_same,
    normal,
    ragged,
    store,
    stressed,
)
from core import Packed, assert_matches_reference, forward, grad_weight, pack_weight
from int8tile import reference

GAIN = Options(gain=True)


def layer(rng, m=61, n=75, k=90, outliers=4, size=60.0):
    return *stressed(rng, m, n, k, outliers, size), normal(rng, m, n)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("options", ALL_OPTIONS, ids=str)
def test_every_option_and_dtype_matches(isa, options, dtype, rng):
    x, w, g = (store(a, dtype) for a in layer(rng))
    bias = store(normal(rng, 75), dtype)
    options = replace(options, gain=True)
    result = assert_matches_reference(x, w, g, bias, options, isa=isa, threads=2, out=dtype)
    assert result.found == 4
    assert (result.gain >= 2).all()


@pytest.mark.parametrize("axis", [0, 1, 2], ids=["tokens", "outputs", "inputs"])
def test_ragged_shapes_match(isa, axis, rng):
    for m, n, k in ragged(rng, axis, 3):
        arrays = layer(rng, m, n, k, outliers=2)
        assert_matches_reference(*arrays, options=GAIN, isa=isa, threads=1 + m % 2)


@pytest.mark.parametrize("threads", [3, 16])
def test_more_threads_than_outlier_columns_match(isa, threads, rng):
    for _ in range(4):  # a thread beyond the memory of its own shows in the next call, if at all
        x, w, g = layer(rng, 9, 1500, 40, outliers=2)
        result = assert_matches_reference(x, w, g, options=GAIN, isa=isa, threads=threads)
        assert result.found == 2


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_operands_of_any_strides_match(isa, layout, dtype, rng):
    x, w, g = (LAYOUTS[layout](store(a, dtype)) for a in layer(rng))
    assert_matches_reference(x, w, g, options=GAIN, isa=isa, threads=2)


@pytest.mark.parametrize("bits", [8, 12, 15])
@pytest.mark.parametrize("size", [3.0, 16.0, 3e3, 1e7])
def test_every_size_of_outliers_matches(isa, bits, size, rng):
    arrays = layer(rng, outliers=7, size=size)
    assert_matches_reference(*arrays, options=replace(GAIN, bits=bits), isa=isa)


def test_columns_beyond_the_capacity_stay_as_they_are(isa, rng):
    x, w, g = layer(rng, outliers=20)
    options = replace(GAIN, capacity=6)
    result = assert_matches_reference(x, w, g, options=options, isa=isa)
    assert (result.found, result.overflow) == (6, 14)
    assert (result.gain > 1).all()


def test_slices_of_k_match(isa, rng):
    """Beyond 131,072 features the low limbs stand in a panel of their own."""
    x, w, g = layer(rng, 3, 4, 131_200)
    result = assert_matches_reference(x, w, g, options=replace(GAIN, capacity=8), isa=isa)
    assert (result.gain > 1).all()


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_the_gain_is_the_largest_that_clips_nothing(isa, granularity, scale, rng):
    options = replace(GAIN, granularity=granularity, scale=scale)
    x, w, _ = layer(rng, size=500.0)
    result = forward(x, w, None, options, isa=isa)
    rows = np.abs(w).max() if granularity == "tensor" else np.abs(w).max(1)
    for j, gain in zip(result.columns, result.gain, strict=True):
        assert np.log2(gain) % 1 == 0
        fits = (np.abs(w[:, j]) * gain <= rows).all() and 5 * gain <= np.abs(x[:, j]).max()
        larger = (np.abs(w[:, j]) * 2 * gain <= rows).all() and 10 * gain <= np.abs(x[:, j]).max()
        assert fits
        assert not larger
    gained, scales = reference.quantize_gained(
        w, result.columns, result.gain, granularity=granularity, scale=scale
    )
    real = w[:, result.columns] * result.gain
    step = scales[:, None]
    assert (np.abs(gained[:, result.columns] * step - real) <= step * 0.501).all()


def test_a_weight_at_the_edge_of_its_row_is_not_passed(isa):
    """Equality is allowed, and one step of the mantissa above it is not."""
    x = np.array([[80, 80, 80, 1]], np.float32)
    half, row = np.float32(0.5), np.float32(1.3)
    over = np.nextafter(row * half, np.float32(2))
    w = np.array([[row * half, over, -row, row]], np.float32)
    result = assert_matches_reference(x, w, np.ones((1, 1), np.float32), options=GAIN, isa=isa)
    assert result.gain.tolist() == [2, 1, 1]


def test_an_outlier_stays_at_or_above_the_threshold(isa):
    edge = np.float32(20)
    x = np.array([[edge, np.nextafter(edge, np.float32(0)), 5.1, 1]], np.float32)
    w = np.array([[1e-6, 1e-6, 1e-6, 1]], np.float32)
    result = assert_matches_reference(x, w, np.ones((1, 1), np.float32), options=GAIN, isa=isa)
    assert result.gain.tolist() == [4, 2, 1]


def test_the_gain_has_a_largest_value(isa):
    x, w = np.array([[1e9, 1]], np.float32), np.array([[1e-20, 1]], np.float32)
    result = assert_matches_reference(x, w, np.ones((1, 1), np.float32), options=GAIN, isa=isa)
    assert result.gain.tolist() == [2**reference.MAX_GAIN_EXPONENT]


def test_a_column_of_zeros_does_not_gain(isa, rng):
    x, w, g = layer(rng)
    column = int(np.abs(x).max(0).argmax())
    w[:, column] = 0
    result = assert_matches_reference(x, w, g, options=GAIN, isa=isa)
    assert result.gain[result.columns == column] == 1
    assert (result.gain > 1).sum() == 3


@pytest.mark.parametrize("options", ALL_SCALES, ids=str)
def test_columns_that_hold_the_absmax_of_a_row_change_nothing(isa, options, rng):
    x, w, g = layer(rng)
    off = forward(x, w, None, options, isa=isa)
    w[3, off.columns] = 9 if options.granularity == "row" else np.abs(w).max()
    off = forward(x, w, None, options, isa=isa)
    on = forward(x, w, None, replace(options, gain=True), isa=isa)
    assert (on.gain == 1).all()
    for name in ("y", "regular", "high", "scale", "columns"):
        assert_same(getattr(on, name), getattr(off, name))
    for a, b in zip(*(grad_weight(g, s, 90, options, isa=isa) for s in (on, off)), strict=True):
        assert_same(a, b)


@pytest.mark.parametrize("value", [np.nan, -np.inf], ids=["nan", "-inf"])
@pytest.mark.parametrize("options", ALL_SCALES, ids=str)
def test_non_finite_operands_match_and_do_not_decide_the_gain(isa, options, value, rng):
    options = replace(options, gain=True)
    x, w, g = layer(rng)
    outlier = int(np.abs(x).max(0).argmax())
    for j in (outlier, (outlier + 1) % 90):
        bad, clean = x.copy(), x.copy()
        bad[2, j], clean[2, j] = value, 0
        result = assert_matches_reference(bad, w, g, None, options, isa=isa, threads=2)
        assert_same(result.gain, forward(clean, w, None, options, isa=isa).gain)
        bad, clean = w.copy(), w.copy()
        bad[2, j], clean[2] = value, 0
        result = assert_matches_reference(x, bad, g, None, options, isa=isa, threads=2)
        if options.granularity == "row":
            assert_same(result.gain, forward(x, clean, None, options, isa=isa).gain)
        else:
            assert (result.gain == 1).all()


@pytest.mark.parametrize("options", ALL_SCALES, ids=str)
def test_rows_of_zeros_do_not_count(isa, options, rng):
    options = replace(options, gain=True)
    x, w, g = layer(rng)
    x[4], w[5], w[6] = 0, 0, 0
    w[6, np.abs(x).max(0).argmax()] = 1e-31
    result = assert_matches_reference(x, w, g, None, options, isa=isa)
    assert (result.gain > 1).all()
    w[:] = 0
    assert (assert_matches_reference(x, w, g, None, options, isa=isa).gain == 1).all()


@pytest.mark.parametrize("options", ALL_SCALES, ids=str)
def test_a_packed_weight_gives_the_same_and_is_not_written(isa, options, rng):
    x, w, _ = layer(rng)
    options = replace(options, gain=True)
    expected = forward(x, w, None, options, isa=isa)
    rows = np.abs(w).max(1)
    absmax = np.full_like(rows, rows.max()) if options.granularity == "tensor" else rows
    packed = pack_weight(w, options, isa=isa)
    before = packed.panels.copy()
    for given in (packed, Packed(packed.panels, packed.scale, absmax)):
        result = forward(x, w, None, options, isa=isa, packed=given, threads=2)
        assert_same(result.y, expected.y)
        assert_same(result.index, expected.index)
    assert_same(packed.panels, before)


@pytest.mark.parametrize("shape", [(0, 4, 5), (1, 4, 5), (4, 0, 5), (4, 5, 0), (1, 1, 1)], ids=str)
@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_layers_without_rows_or_with_one_match(isa, shape, granularity):
    m, n, k = shape
    x, w, g = (np.full(s, 70, np.float32) for s in [(m, k), (n, k), (m, n)])
    options = replace(GAIN, granularity=granularity)
    result = assert_matches_reference(x, w, g, np.ones(n, np.float32), options, isa=isa)
    assert (result.gain == 1).all()


def test_a_packed_weight_without_columns_writes_nothing_beside_its_scratch():
    """In a process of its own, whose heap nothing has filled with larger blocks."""
    code = """
import torch
import int8tile
ops, w = torch.ops.int8tile, torch.zeros(4096, 0)
panels, scale = ops.pack_weight(w)
options = {"packed_weight": panels, "weight_scale": scale, "weight_absmax": torch.zeros(4096)}
y = ops.linear_forward_only(torch.zeros(1, 0), w, outlier_gain=True, **options)
assert y.shape == (1, 4096) and not y.any()
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def snr(actual, exact):
    return 10 * np.log10(np.square(exact).sum() / np.square(actual - exact).sum())


@pytest.mark.parametrize("size", [60.0, 1000.0])
def test_small_weights_under_outliers_keep_their_bits(size):
    """The stress of 4 columns: y without gains loses what w rounds away, and with them does not."""
    rng = np.random.default_rng(0)
    x, w = stressed(rng, 200, 96, 384, size=size)
    exact = x.astype(np.float64) @ w.astype(np.float64).T
    off, on = (snr(forward(x, w, None, Options(gain=gain)).y, exact) for gain in (False, True))
    assert on > off + 6


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_gradients_of_the_weight_are_those_of_float(granularity):
    """Within twice the error that the option off leaves, in the outlier columns and the others."""
    rng = np.random.default_rng(0)
    x, w, g = layer(rng, 300, 96, 384)
    exact = g.astype(np.float64).T @ x.astype(np.float64)
    errors = []
    for gain in (False, True):
        options = Options(granularity=granularity, gain=gain)
        saved = forward(x, w, None, options)
        assert not gain or (saved.gain > 1).any()
        error = np.square(grad_weight(g, saved, 384, options)[0] - exact)
        inside = np.isin(np.arange(384), saved.columns)
        errors.append(np.sqrt([error[:, inside].mean(), error[:, ~inside].mean()]))
    assert (errors[1] > 0).all()
    assert (errors[1] <= 2 * errors[0]).all()
