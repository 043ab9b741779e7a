"""K at the limit and beyond: the accumulator bound under all-extreme inputs, and sums of slices."""

import numpy as np
import pytest

from cases import GRANULARITIES, ROUNDINGS, Options, activations, assert_same, normal
from core import assert_matches_reference, forward, grad_input, grad_weight
from int8tile import _core

INT32_MAX = 2**31 - 1
DEPTH = _core.SLICE_DEPTH
EXACT = Options(threshold=200.0, bits=15)  # 127 is regular and 16383 an outlier: both scales are 1


def most_outliers(k):
    return (INT32_MAX - k * 127 * 127) // (16384 * 127)


def extreme_layer(k, outliers, sign):
    """One token and two outputs; every integer of x and of w at its end."""
    x = np.full((1, k), 127, np.float32)
    columns = np.linspace(0, k - 1, outliers).astype(int)
    x[:, columns] = 16383
    return sign * x, np.stack([np.full(k, 127), np.full(k, -127)]).astype(np.float32)


@pytest.mark.parametrize("k", [4096, 16_384, 65_536, 100_000, 131_056, DEPTH])
@pytest.mark.parametrize("sign", [1, -1], ids=["plus", "minus"])
def test_accumulator_is_exact_at_the_bound(isa, k, sign):
    """As many outliers as the plan accepts, all of them and all else as large as they can be."""
    capacity = min(most_outliers(k), k)
    x, w = extreme_layer(k, capacity, sign)
    options = Options(threshold=200.0, bits=15, capacity=capacity)
    result = forward(x, w, None, options, isa=isa)
    acc = 127 * ((k - capacity) * 127 + capacity * 16383)
    assert result.found == capacity
    bound = _core.plan(1, 2, k, capacity, 15, 1).accumulator_bound
    assert abs(acc) <= bound <= INT32_MAX
    assert k > 100_000 or bound > INT32_MAX - 16384 * 127
    np.testing.assert_array_equal(result.y, np.float32([[sign * acc, -sign * acc]]))


@pytest.mark.parametrize("lanes", range(4))
def test_accumulator_is_exact_where_only_the_high_limbs_meet_the_weight(isa, lanes):
    """Alone, ((sum of high limbs) << 7) is larger than the final sum: -16383 = 128 * -128 + 1."""
    k = 2048
    capacity = most_outliers(k)
    x = np.zeros((7, k), np.float32)
    x[:, lanes : lanes + capacity] = -16383
    w = np.full((3, k), -127, np.float32)
    result = forward(x, w, None, Options(bits=15, capacity=capacity), isa=isa)
    assert result.scale[0] == 1
    np.testing.assert_array_equal(result.y, np.float32(capacity * 16383 * 127))


def test_one_slice_of_regular_extremes_is_exact(isa):
    x, w = extreme_layer(DEPTH, 0, -1)
    result = forward(x, w, None, EXACT, isa=isa, threads=2)
    np.testing.assert_array_equal(result.y, np.float32([[-1, 1]]) * np.float32(DEPTH * 127 * 127))


def test_gradients_of_extremes_at_one_slice_are_exact(isa):
    """grad_weight over as many tokens, and grad_input over as many outputs, as one slice holds."""
    expected = np.float32(DEPTH * 127 * 127)
    x, w = np.full((DEPTH, 2), -127, np.float32), np.full((1, 2), 127, np.float32)
    x[:, 1] = 16383
    g = np.full((DEPTH, 1), 127, np.float32)
    options = Options(threshold=200.0, bits=15, granularity="tensor")
    saved = forward(x, w, None, options, isa=isa)
    high = low = np.float32(DEPTH * 127 * 127)
    grad, bias = grad_weight(g, saved, 2, options, isa=isa, threads=2)
    np.testing.assert_array_equal(grad, [[-expected, high * np.float32(128) + low]])
    assert bias[0] == DEPTH * 127
    w = np.full((DEPTH, 2), 127, np.float32) * np.float32([1, -1])
    grad = grad_input(np.full((1, DEPTH), 127, np.float32), w, isa=isa)
    np.testing.assert_array_equal(grad, [[expected, -expected]])


@pytest.mark.parametrize("extra", [-17, -1, 0])
def test_layers_up_to_the_slice_depth_match(isa, extra, rng):
    k = DEPTH + extra
    x, w, g = activations(rng, 2, k, outliers=9, size=90), normal(rng, 3, k), normal(rng, 2, 3)
    result = assert_matches_reference(x, w, g, isa=isa, options=Options(threshold=50.0))
    assert result.found == 9


@pytest.mark.parametrize("k", [DEPTH + 1, 150_000, 2 * DEPTH + 3], ids=str)
@pytest.mark.parametrize("threshold", [None, 50.0], ids=["nosplit", "split"])
@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_inputs_beyond_one_slice_match(isa, k, threshold, granularity, rng):
    x, w, g = activations(rng, 3, k, outliers=9, size=90), normal(rng, 2, k), normal(rng, 3, 2)
    options = Options(threshold=threshold, granularity=granularity)
    result = assert_matches_reference(x, w, g, normal(rng, 2), options, isa=isa, threads=2)
    assert result.found == (9 if threshold else 0)


@pytest.mark.parametrize("out", ["bfloat16", "float16"])
def test_slices_are_added_before_the_cast(isa, out, rng):
    x, w, g = activations(rng, 3, DEPTH + 100, outliers=2), normal(rng, 2, DEPTH + 100), None
    g = normal(rng, 3, 2)
    options = Options(threshold=30.0)
    assert_matches_reference(x, w, g, normal(rng, 2), options, isa=isa, out=out)


def test_the_largest_capacity_beyond_one_slice_matches(isa, rng):
    """The panels leave the first slice 128 columns deep; all of it is extreme."""
    k, capacity = DEPTH + 50, most_outliers(16)
    x = np.full((1, k), 127, np.float32)
    x[:, rng.choice(np.arange(128, k), capacity, replace=False)] = 16383
    w, g = np.full((1, k), 127, np.float32), np.ones((1, 1), np.float32)
    options = Options(threshold=200.0, bits=15, capacity=capacity)
    assert _core.plan(1, 1, k, capacity, 15, 1).slices[0] == (0, 128)
    result = assert_matches_reference(x, w, g, None, options, isa=isa)
    assert result.found == capacity


@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_more_tokens_than_one_slice_match(isa, granularity, rounding, rng):
    """grad_weight sums tokens; both limbs of the outlier columns are summed by slices too."""
    m = DEPTH + 777
    x, w, g = activations(rng, m, 5, outliers=2), normal(rng, 3, 5), normal(rng, m, 3)
    options = Options(threshold=10.0, granularity=granularity, rounding=rounding)
    result = assert_matches_reference(x, w, g, None, options, isa=isa, threads=2)
    assert result.found == 2


@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_more_outputs_than_one_slice_match(isa, rounding, rng):
    """grad_input sums outputs."""
    n = DEPTH + 35
    g, w = normal(rng, 4, n), normal(rng, n, 3)
    x = normal(rng, 4, 3)
    assert_matches_reference(x, w, g, None, Options(rounding=rounding), isa=isa, threads=2)


def test_thread_counts_agree_beyond_one_slice(rng):
    x, w = activations(rng, 70, DEPTH + 500, outliers=3), normal(rng, 5, DEPTH + 500)
    options = Options(threshold=30.0)
    first = forward(x, w, None, options, threads=1)
    assert_same(forward(x, w, None, options, threads=2).y, first.y)
