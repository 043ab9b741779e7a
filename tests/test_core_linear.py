"""The three GEMMs of a linear layer equal the reference bit for bit."""

import numpy as np
import pytest

from cases import (
    ALL_OPTIONS,
    ALL_SCALES,
    DTYPES,
    GRANULARITIES,
    LAYOUTS,
    ROUNDINGS,
    SCALES,
    Options,
    activations,
    assert_same,
    load,
    normal,
    ragged,
    store,
)
from core import assert_matches_reference, forward, grad_input, grad_weight
from int8tile import _core


def layer(rng, m, n, k, outliers=3, size=40.0):
    """x, w and g of a layer whose input has outlier columns."""
    return activations(rng, m, k, outliers, size), normal(rng, n, k), normal(rng, m, n)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("options", ALL_OPTIONS, ids=str)
def test_every_option_and_dtype_matches(isa, options, dtype, rng):
    x, w, g = (store(a, dtype) for a in layer(rng, 61, 75, 90))
    bias = store(normal(rng, 75), dtype)
    result = assert_matches_reference(x, w, g, bias, options, isa=isa, threads=2, out=dtype)
    assert result.found == 3


@pytest.mark.parametrize("bits", range(8, 16))
def test_every_number_of_outlier_bits_matches(isa, bits, rng):
    for size in (10.0, 100.0, 3000.0):
        arrays = layer(rng, 40, 30, 100, outliers=7, size=size)
        assert_matches_reference(*arrays, options=Options(bits=bits), isa=isa)


@pytest.mark.parametrize("axis", [0, 1, 2], ids=["tokens", "outputs", "inputs"])
def test_ragged_shapes_match(isa, axis, rng):
    for m, n, k in ragged(rng, axis, 3):
        x, w, g = layer(rng, m, n, k, outliers=2)
        assert_matches_reference(x, w, g, normal(rng, n), isa=isa, threads=1 + m % 2)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_operands_of_any_strides_match(isa, layout, dtype, rng):
    x, w, g = (LAYOUTS[layout](store(a, dtype)) for a in layer(rng, 65, 70, 60))
    assert_matches_reference(x, w, g, isa=isa, threads=2)


def drawn_options(rng):
    return Options(
        threshold=float(rng.choice([0.0, 0.5, 3.0, 5.0])),
        bits=int(rng.integers(8, 16)),
        granularity=str(rng.choice(GRANULARITIES)),
        scale=str(rng.choice(SCALES)),
        rounding=str(rng.choice(ROUNDINGS)),
        seed=int(rng.integers(-(2**63), 2**63)),
        grad_split=bool(rng.integers(2)),
    )


@pytest.mark.parametrize("draw", range(16))
def test_random_layers_match(isa, draw, rng):
    """Shapes, options, dtypes and outliers drawn together; some rows are zero."""
    m, n, k = (int(s) for s in rng.integers(1, 160, 3))
    if draw % 5 == 0:
        k = int(rng.integers(1000, 5000))
    if draw % 7 == 0:
        m = int(rng.integers(400, 900))
    options = drawn_options(rng)
    outliers = int(rng.integers(0, min(k, 40) + 1))
    x, w, g = layer(rng, m, n, k, outliers, size=10 ** rng.uniform(1, 3))
    x[rng.integers(m)] = 0
    g[:, rng.integers(n)] = 0
    dtype = str(rng.choice(DTYPES))
    x, w, g = (store(a, dtype) for a in (x, w, g))
    threads = 1 + draw % 2
    assert_matches_reference(x, w, g, None, options, isa=isa, threads=threads)


@pytest.mark.parametrize("options", ALL_SCALES, ids=str)
def test_rows_of_zeros_give_zeros(isa, options, rng):
    x, w, g = layer(rng, 20, 30, 40)
    x[4], w[5], g[6], g[:, 7] = 0, 0, 0, 0
    result = assert_matches_reference(x, w, g, None, options, isa=isa)
    assert not result.y[4].any()
    assert not result.y[:, 5].any()
    for a in (x, w, g):
        a[:] = 0
    assert not assert_matches_reference(x, w, g, None, options, isa=isa).y.any()


@pytest.mark.parametrize("options", ALL_OPTIONS, ids=str)
def test_values_that_are_all_extreme_match(isa, options, rng):
    """Every integer is +-127 and every limb at its end."""
    signs = [rng.choice(np.array([-1, 1], np.float32), s) for s in [(70, 80), (65, 80), (70, 65)]]
    x, w, g = signs
    x[:, 20:30] *= 130
    assert_matches_reference(x, w, g, None, options, isa=isa)


def test_one_outlier_and_more_than_the_capacity_match(isa, rng):
    x, w, g = layer(rng, 30, 40, 50, outliers=1)
    assert assert_matches_reference(x, w, g, isa=isa).found == 1
    x, w, g = layer(rng, 30, 40, 50, outliers=20)
    result = assert_matches_reference(x, w, g, options=Options(capacity=6), isa=isa)
    assert (result.found, result.overflow) == (6, 14)


@pytest.mark.parametrize("shape", [(0, 4, 5), (1, 4, 5), (4, 0, 5), (1, 1, 1)], ids=str)
@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_layers_without_rows_or_with_one_match(isa, shape, granularity):
    m, n, k = shape
    x, w, g = (np.full(s, 7, np.float32) for s in [(m, k), (n, k), (m, n)])
    assert_matches_reference(
        x, w, g, np.ones(n, np.float32), Options(granularity=granularity), isa=isa
    )


def test_a_layer_without_inputs_gives_its_bias(isa, rng):
    x, w, g, bias = (normal(rng, *s) for s in [(3, 0), (4, 0), (3, 4), (4,)])
    assert_matches_reference(x, w, g, bias, isa=isa)
    assert_matches_reference(x, w, g, isa=isa)


def test_outputs_narrower_than_the_inputs_match(isa, rng):
    x, w, g = layer(rng, 50, 60, 70, outliers=4)
    for out in DTYPES:
        assert_matches_reference(x, w, g, normal(rng, 60), isa=isa, out=out)


def results(x, w, g, options, isa, threads):
    saved = forward(x, w, None, options, isa=isa, threads=threads)
    run = {"isa": isa, "threads": threads}
    return (
        saved.y,
        saved.scale,
        grad_input(g, w, options, **run),
        *grad_weight(g, saved, x.shape[1], options, **run),
    )


@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_threads_and_instruction_sets_agree(granularity, rounding, rng):
    x, w, g = layer(rng, 800, 260, 330, outliers=9)
    options = Options(granularity=granularity, rounding=rounding)
    expected = results(x, w, g, options, "portable", 1)
    for isa in _core.supported_isas():
        for threads in (1, 2, 3):
            for a, b in zip(results(x, w, g, options, isa, threads), expected, strict=True):
                assert_same(a, b)


def block_sums(g):
    """Sums over tokens in float32, 48 rows at a time: the core's order."""
    total = np.zeros(g.shape[1], np.float32)
    for begin in range(0, len(g), 48):
        part = np.zeros(g.shape[1], np.float32)
        for row in g[begin : begin + 48]:
            part = part + row
        total = total + part
    return total


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("m", [0, 1, 47, 48, 49, 1000])
def test_grad_bias_is_the_sum_over_tokens_in_a_fixed_order(isa, m, dtype, rng):
    x, w, g = layer(rng, m, 20, 30)
    g = store(g, dtype)
    saved = forward(x, w, isa=isa)
    for threads in (1, 2):
        _, bias = grad_weight(g, saved, 30, isa=isa, threads=threads)
        assert_same(bias, block_sums(load(g)))
    np.testing.assert_allclose(bias, load(g).sum(0, dtype=np.float64), rtol=0, atol=1e-3)


def test_a_tensor_scale_shares_the_rounding_of_g_between_both_gradients(isa):
    """An identity input and weight show q(g) itself, the same in both gradients."""
    eye = np.eye(40, dtype=np.float32)
    g = np.random.default_rng(0).standard_normal((40, 40), np.float32)
    how = {"granularity": "tensor", "scale": "pow2", "rounding": "stochastic"}
    options = Options(threshold=None, grad_split=False, **how)
    saved = forward(eye, eye, None, options, isa=isa)
    weight, _ = grad_weight(g, saved, 40, options, isa=isa)
    assert_same(weight.T.copy(), grad_input(g, eye, options, isa=isa))


def test_a_capacity_that_could_overflow_is_refused():
    x, w = np.ones((1, 131_072), np.float32), np.ones((1, 131_072), np.float32)
    with pytest.raises(ValueError, match=r"outlier_capacity must be at most 16 .* got 17"):
        forward(x, w, None, Options(capacity=17))
