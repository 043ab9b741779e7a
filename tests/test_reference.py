"""The reference itself, against formulas in float64 that share nothing with it."""

import numpy as np
import pytest

from cases import ALL_SCALES, GRANULARITIES, SCALES, SEED, activations, normal
from int8tile import reference

UNIT = 2.0**-24  # rounding error of one float32 operation, relative
HALF_STEP = 0.5 + 127 * 4 * UNIT  # of an integer; the second term is that of x * inv
BITS = range(8, 16)


def split_of(x, bits=12, options=ALL_SCALES[0], threshold=5.0, capacity=32):
    index, _ = reference.find_outliers(x, threshold, capacity)
    return reference.quantize_split(x, index, outlier_bits=bits, **options.scales)


def integers(split):
    """x in steps of its row scale, float64: the two limbs are v = 128 * high + low."""
    v = split.q.astype(np.float64)
    v[:, split.index] = 128 * split.high.astype(np.float64) + split.low
    return v


def outlier_steps(split, bits):
    """[m]: the step of the outliers of a row, in steps of the row scale."""
    v = np.abs(integers(split)[:, split.index]).max(1, initial=0)
    return 2.0 ** np.maximum(0, np.ceil(np.log2(v + 1)) - (bits - 1))


def test_row_scale_is_the_larger_of_both_parts(rng):
    x = activations(rng, 50, 60, size=150)
    split = split_of(x)
    out = np.zeros(60, bool)
    out[split.index] = True
    regular = np.abs(x[:, ~out]).max(1).astype(np.float64) / 127
    outlier = np.abs(x[:, out]).max(1).astype(np.float64) / 16383
    assert (regular > outlier).any()
    assert (regular < outlier).any()
    np.testing.assert_allclose(split.scale, np.maximum(regular, outlier), rtol=2 * UNIT)


def test_outliers_up_to_128_times_the_rest_cost_the_rest_nothing(rng):
    x = np.clip(normal(rng, 20, 30), -3, 3)
    x[:, 4] = 3
    alone = reference.quantize(x)
    x[:, 9] = 3 * 16383 / 127
    split = reference.quantize_split(x, np.array([9]))
    rest = np.arange(30) != 9
    np.testing.assert_allclose(split.scale, alone[1], rtol=4 * UNIT)
    assert np.abs(split.q[:, rest].astype(int) - alone[0][:, rest]).max() <= 1


@pytest.mark.parametrize("options", ALL_SCALES, ids=str)
def test_int8_values_are_within_half_a_step(options, rng):
    x = normal(rng, 100, 120) * np.exp2(rng.integers(-20, 20, (100, 1))).astype(np.float32)
    q, scale = reference.quantize(x, **options.scales)
    assert np.abs(q.astype(int)).max() <= 127
    error = np.abs(x - q.astype(np.float64) * scale[:, None])
    assert (error <= HALF_STEP * scale[:, None]).all()


def test_pow2_scales_are_the_next_power_of_two(rng):
    x = normal(rng, 200, 9) * np.exp2(rng.uniform(-60, 60, (200, 1))).astype(np.float32)
    exact, rounded = reference.quantize(x)[1], reference.quantize(x, scale="pow2")[1]
    assert (np.frexp(rounded)[0] == 0.5).all()
    assert ((rounded >= exact) & (rounded < 2 * exact)).all()
    power = np.full((1, 2), 127 * 2.0**-5, np.float32)
    assert reference.quantize(power, scale="pow2")[1] == 2.0**-5


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_granularity_sets_how_many_scales_there_are(granularity, rng):
    _, scale = reference.quantize(normal(rng, 30, 40), granularity=granularity)
    assert len(np.unique(scale)) == (1 if granularity == "tensor" else 30)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("size", [6.0, 60.0, 600.0, 60_000.0])
@pytest.mark.parametrize("scale", SCALES)
def test_limbs_reassemble_with_at_most_the_asked_bits(bits, size, scale, rng):
    x = activations(rng, 80, 50, outliers=6, size=size)
    index, _ = reference.find_outliers(x, 5.0, 6)
    split = reference.quantize_split(x, index, outlier_bits=bits, scale=scale)
    assert ((split.high >= -128) & (split.low >= 0)).all()
    v = integers(split)[:, split.index].astype(np.int64)
    odd = np.abs(v) // np.maximum(v & -v, 1)
    assert (odd < 2 ** (bits - 1)).all(), "more significant bits than asked for"
    step = outlier_steps(split, bits)
    assert (v % step[:, None] == 0).all()
    # Rounding is within half a step; the largest value may be clamped by up to another half.
    error = np.abs(x[:, index] / split.scale[:, None].astype(np.float64) - v)
    assert (error <= 0.5 * step[:, None] + 0.01).mean() > 0.8
    assert (error <= 1.0 * step[:, None] + 0.01).all()


def test_more_bits_never_make_the_outliers_worse(rng):
    x = activations(rng, 200, 40, outliers=4, size=300)
    errors = [
        np.square(x - integers(split) * split.scale[:, None]).sum()
        for split in (split_of(x, bits) for bits in BITS)
    ]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < errors[0] / 100


def test_transposed_quantisation_is_that_of_the_transposed_matrix(rng):
    x, fold = normal(rng, 30, 40), rng.uniform(0, 2, 30).astype(np.float32)
    for options in ALL_SCALES:
        q, scale = reference.quantize(x, fold=fold, transpose=True, **options.scales)
        expected = reference.quantize((x * fold[:, None]).T, **options.scales)
        np.testing.assert_array_equal(q, expected[0])
        np.testing.assert_array_equal(scale, expected[1])


def test_random_bits_are_uniform_multiples_of_2_to_the_minus_16():
    index = np.arange(2**18, dtype=np.uint64)
    bits = reference.random_bits(SEED, 1, index) * 2**16
    assert (bits == np.floor(bits)).all()
    assert bits.min() >= 0
    assert bits.max() < 2**16
    counts = np.bincount(bits.astype(int) >> 8, minlength=256)
    chi_square = np.square(counts - 1024).sum() / 1024
    assert 150 < chi_square < 380  # 255 degrees of freedom: 4.6 standard deviations
    for lag in (1, 2, 768):
        assert abs(np.corrcoef(bits[:-lag], bits[lag:])[0, 1]) < 0.01


def test_random_bits_depend_on_the_whole_64_bit_index():
    low = np.arange(1000, dtype=np.uint64)
    high = low + np.uint64(2**32)
    assert (reference.random_bits(3, 0, low) != reference.random_bits(3, 0, high)).mean() > 0.99


@pytest.mark.parametrize("value", [-126.75, -3.5, -1e-3, 0.0, 0.125, 0.5, 63.99, 126.3])
def test_stochastic_rounding_is_unbiased_between_floor_and_ceil(value):
    x = np.full((300, 1001), value, np.float32)
    x[:, 0] = 127  # makes the scale 1
    q, scale = reference.quantize(x, rounding="stochastic", seed=7)
    assert (scale == 1).all()
    q = q[:, 1:].astype(int)
    assert q.min() >= np.floor(value)
    assert q.max() <= np.ceil(value)
    # Five standard deviations of a mean of 300,000, and half of the 16-bit grid.
    assert abs(q.mean() - np.float32(value)) <= 5 * 0.5 / 300_000**0.5 + 2.0**-16


@pytest.mark.parametrize("bits", [8, 12, 15])
@pytest.mark.parametrize("options", ALL_SCALES, ids=str)
def test_forward_is_within_the_sum_of_rounding_steps(options, bits, rng):
    x, w, bias = activations(rng, 40, 90, size=400), normal(rng, 30, 90), normal(rng, 30)
    y, split = reference.linear_forward(x, w, bias, outlier_bits=bits, **options.scales)
    x_error = np.full(x.shape, HALF_STEP) * split.scale[:, None]
    steps = outlier_steps(split, bits)
    if options.granularity == "tensor":
        steps[:] = steps.max()
    x_error[:, split.index] = (steps[:, None] + 0.01) * split.scale[:, None]
    _, w_scale = reference.quantize(w, **options.scales)
    w_error = np.full(w.shape, HALF_STEP) * w_scale[:, None]
    x, w = x.astype(np.float64), w.astype(np.float64)
    bound = x_error @ np.abs(w).T + np.abs(x) @ w_error.T + x_error @ w_error.T
    exact = x @ w.T + bias
    assert (np.abs(y - exact) <= bound + 8 * UNIT * (np.abs(exact) + bound + 1)).all()


@pytest.mark.parametrize("options", ALL_SCALES, ids=str)
def test_forward_is_the_float_product_of_the_dequantised_operands(options, rng):
    x, w = activations(rng, 40, 90, size=400), normal(rng, 30, 90)
    y, split = reference.linear_forward(x, w, **options.scales)
    w8, w_scale = reference.quantize(w, **options.scales)
    acc = integers(split) @ w8.astype(np.float64).T
    exact = acc * split.scale[:, None].astype(np.float64) * w_scale[None]
    np.testing.assert_allclose(y, exact, rtol=4 * UNIT)


@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
@pytest.mark.parametrize("options", ALL_SCALES, ids=str)
def test_grad_input_is_the_float_product_of_the_dequantised_operands(options, rounding, rng):
    g, w = normal(rng, 25, 35), normal(rng, 35, 45)
    grad = reference.grad_input(g, w, rounding=rounding, seed=5, **options.scales)
    g8, g_scale = reference.quantize(g, rounding=rounding, seed=5, gemm_id=1, **options.scales)
    w8, w_scale = reference.quantize(np.ascontiguousarray(w.T), **options.scales)
    exact = g8.astype(float) @ w8.astype(float).T * g_scale[:, None].astype(float) * w_scale
    np.testing.assert_allclose(grad, exact, rtol=4 * UNIT)
    step = 1.0 if rounding == "stochastic" else 0.5
    noise = step * g_scale[:, None] * np.abs(w).sum(0) + np.abs(g).sum(1)[:, None] * 0.5 * w_scale
    noise = noise + 0.5 * step * 35 * g_scale[:, None].astype(float) * w_scale
    assert (np.abs(grad - g.astype(float) @ w) <= 1.001 * noise).all()


@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
@pytest.mark.parametrize("options", ALL_SCALES, ids=str)
def test_grad_weight_is_the_float_product_with_the_saved_input(options, rounding, rng):
    """Only g is rounded: x enters with the integers and the scales that forward used."""
    x, g = activations(rng, 50, 60, size=300), normal(rng, 50, 35)
    split = split_of(x, 12, options)
    grad = reference.grad_weight(g, split, rounding=rounding, seed=5, **options.scales)
    v = integers(split)
    dequantised = v * split.scale[:, None].astype(np.float64)
    folded = np.abs(g.astype(float) * split.scale[:, None])
    step = folded.max(0) / 127 if options.granularity == "row" else np.full(35, folded.max() / 127)
    if options.scale == "pow2":
        step = 2 * step
    if rounding == "nearest":
        step = step / 2
    bound = 1.001 * step[:, None] * np.abs(v).sum(0) + 1e-5 * folded.sum(0)[:, None]
    assert (np.abs(grad - g.T.astype(float) @ dequantised) <= bound).all()


def test_grad_weight_combines_the_limbs_exactly(rng):
    """With scale 1 everywhere and few tokens, even float32 holds the exact sums."""
    x = rng.integers(-127, 128, (8, 10)).astype(np.float32)
    x[:, 3] = rng.integers(200, 16384, 8)
    x[:, 0], x[0, 3] = 127, 16383
    g = rng.integers(-127, 128, (8, 5)).astype(np.float32)
    g[0] = 127
    split = split_of(x, 15, threshold=150.0)
    assert (split.scale == 1).all()
    np.testing.assert_array_equal(reference.grad_weight(g, split, grad_split=False), g.T @ x)


def test_slices_beyond_the_depth_add_up_to_the_exact_product(rng):
    k = reference.SLICE_DEPTH + 1000
    x, w = activations(rng, 2, k, outliers=4, size=100), normal(rng, 2, k)
    y, split = reference.linear_forward(x, w, threshold=50.0)
    w8, w_scale = reference.quantize(w)
    exact = (integers(split) @ w8.astype(float).T) * split.scale[:, None].astype(float) * w_scale
    np.testing.assert_allclose(y, exact, rtol=0, atol=16 * UNIT * np.abs(exact).max())
