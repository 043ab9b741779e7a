"""Float to int8 and to two limbs, against the reference on every instruction set."""

import numpy as np
import pytest

from cases import (
    ALL_OPTIONS,
    ALL_SCALES,
    DTYPES,
    LAYOUTS,
    SEED,
    Options,
    activations,
    assert_same,
    load,
    normal,
    ragged,
    store,
)
from core import DEFAULT, capacity_of, quantize, quantize_split
from int8tile import _core, reference

BITS = range(8, 16)
ODD = Options(rounding="stochastic", seed=-3)


def check(x, fold=None, options=DEFAULT, gemm_id=0, **run):
    """Per row and, transposed, per column."""
    for transposed in (False, True):
        q, scale = quantize(x, fold, options, gemm_id=gemm_id, transposed=transposed, **run)
        expected = reference.quantize(
            load(x), fold=fold, gemm_id=gemm_id, transpose=transposed, **options.grad
        )
        assert_same(scale, expected[1])
        assert_same(q, expected[0])


def check_split(x, options, **run):
    (q, high, low, scale, index), (found, overflow) = quantize_split(x, options, **run)
    capacity = capacity_of(options, x.shape[1])
    columns, left_out = np.zeros(0, np.int64), 0
    if options.threshold:
        columns, left_out = reference.find_outliers(load(x), options.threshold, capacity)
    split = reference.quantize_split(load(x), columns, outlier_bits=options.bits, **options.scales)
    assert (index[:found].tolist(), overflow) == (columns.tolist(), left_out)
    assert_same(scale, split.scale)
    assert_same(q, split.q)
    assert_same(np.ascontiguousarray(high[:, :found]), split.high)
    assert_same(np.ascontiguousarray(low[:, :found]), split.low)
    assert not high[:, found:].any()
    assert not low[:, found:].any()
    return q, high, low


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("options", ALL_OPTIONS, ids=str)
def test_quantize_matches_the_reference(isa, threads, options, dtype, rng):
    x = store(activations(rng, 67, 83), dtype)
    check(x, None, options, isa=isa, threads=threads)
    check(x, rng.uniform(0, 2, 67).astype(np.float32), options, 2, isa=isa, threads=threads)


@pytest.mark.parametrize("axis", [0, 1], ids=["rows", "columns"])
@pytest.mark.parametrize("options", [Options(), ODD], ids=["nearest", "stochastic"])
def test_ragged_sizes_match_the_reference(isa, options, axis, rng):
    for shape in ragged(rng, axis, 2):
        check(normal(rng, *shape), None, options, isa=isa)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_any_strides_are_read(isa, layout, dtype, rng):
    x = LAYOUTS[layout](store(activations(rng, 53, 300), dtype))
    check(x, None, ODD, isa=isa, threads=2)
    check_split(x, Options(), isa=isa, threads=2)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("options", ALL_SCALES, ids=str)
def test_limbs_match_the_reference(isa, threads, options, bits, rng):
    for size in (6.0, 40.0, 500.0, 20_000.0):
        x = activations(rng, 30, 70, outliers=9, size=size)
        check_split(x, Options(bits=bits, capacity=7, **options.scales), isa=isa, threads=threads)


@pytest.mark.parametrize("dtype", DTYPES)
def test_limbs_of_every_dtype_match_the_reference(isa, dtype, rng):
    check_split(store(activations(rng, 100, 64, size=60), dtype), Options(), isa=isa)


def test_extremes_of_the_limbs_are_reached(isa):
    """One row holds both ends of each bit count; the regular columns keep their whole range."""
    for bits in BITS:
        x = np.array([[127, -127, 16383, -16383, 0]], np.float32)
        q, high, low = check_split(x, Options(threshold=200.0, bits=bits, capacity=2), isa=isa)
        top = (2 ** (bits - 1) - 1) << (15 - bits)
        np.testing.assert_array_equal(q[0], [127, -127, 0, 0, 0])
        np.testing.assert_array_equal(high[0].astype(int) * 128 + low[0], [top, -top])
    assert (high[0].tolist(), low[0].tolist()) == ([127, -128], [127, 1])


def test_a_row_of_zeros_has_scale_zero(isa):
    x = np.array([[0, 0, 0], [1, -2, 3], [-0.0, 9e-31, -9e-31]], np.float32)
    for transposed in (False, True):
        q, scale = quantize(x.T if transposed else x, transposed=transposed, isa=isa)
        np.testing.assert_array_equal(scale, np.array([0, 3, 0], np.float32) / np.float32(127))
        assert not q[[0, 2]].any()
    check(x, None, ODD, isa=isa)


@pytest.mark.parametrize("options", ALL_SCALES, ids=str)
def test_extreme_magnitudes_match_the_reference(isa, options, rng):
    sizes = np.array([1e-30, 1.1e-30, 1e-20, 1e20, 3.4028235e38], np.float32)
    x = rng.uniform(-1, 1, (len(sizes), 40)).astype(np.float32) * sizes[:, None]
    x[:, 7] = sizes
    check(x, None, options, isa=isa)
    check_split(x, Options(threshold=1e-30, capacity=40, **options.scales), isa=isa)
    check_split(x, Options(threshold=1e19, capacity=9, **options.scales), isa=isa)


def test_halves_round_to_even(isa):
    x = np.array([[0.5, 1.5, 2.5, -0.5, -1.5, 126.5, 127, -126.5]], np.float32)
    q, scale = quantize(x, isa=isa)
    assert scale[0] == 1
    np.testing.assert_array_equal(q[0], [0, 2, 2, 0, -2, 126, 127, -126])


def test_integers_survive_stochastic_rounding(isa):
    x = np.arange(-127, 128, dtype=np.float32)[None].repeat(50, 0)
    for seed in (0, 1, SEED, -1):
        q, _ = quantize(x, None, Options(rounding="stochastic", seed=seed), isa=isa)
        np.testing.assert_array_equal(q, x.astype(np.int8))


def test_threads_and_instruction_sets_draw_the_same_random_bits(rng):
    x = normal(rng, 500, 130)
    options = Options(rounding="stochastic")
    first = quantize(x, None, options, threads=1, isa="portable")
    for isa in _core.supported_isas():
        for threads in (1, 2, 3):
            for a, b in zip(
                quantize(x, None, options, threads=threads, isa=isa), first, strict=True
            ):
                assert_same(a, b)


def test_seeds_and_consumers_draw_different_bits(rng):
    x = normal(rng, 40, 50)
    drawn = {
        quantize(x, None, Options(rounding="stochastic", seed=seed), gemm_id=gemm_id)[0].tobytes()
        for seed in (0, SEED, 2**40, -(2**40))
        for gemm_id in (0, 1, 2)
    }
    assert len(drawn) == 12


@pytest.mark.parametrize(
    "value", [np.nan, -np.nan, np.inf, -np.inf], ids=["nan", "-nan", "inf", "-inf"]
)
@pytest.mark.parametrize("options", ALL_OPTIONS, ids=str)
def test_a_non_finite_row_has_scale_nan_and_integers_zero(isa, options, value, rng):
    x = activations(rng, 20, 30)
    x[3, 4] = value
    q, scale = quantize(x, None, options, isa=isa)
    bad = slice(None) if options.granularity == "tensor" else 3
    assert np.isnan(scale[bad]).all()
    assert not q[bad].any()
    check(x, None, options, isa=isa)
    check(x, np.linspace(0, 2, 20, dtype=np.float32), options, isa=isa)
    check_split(x, options, isa=isa)


@pytest.mark.parametrize("shape", [(0, 5), (1, 1), (1, 5), (5, 0)], ids=str)
@pytest.mark.parametrize("options", ALL_SCALES, ids=str)
def test_empty_and_single_matrices(isa, options, shape):
    x = np.full(shape, 3, np.float32)
    check(x, None, options, isa=isa)
    check_split(x, Options(threshold=2.0, **options.scales), isa=isa)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (Options(granularity="block"), "granularity must be 'row' or 'tensor'; got 'block'"),
        (Options(scale="log"), "scale must be 'absmax' or 'pow2'; got 'log'"),
        (Options(rounding="up"), "rounding must be 'nearest' or 'stochastic'; got 'up'"),
    ],
    ids=["granularity", "scale", "rounding"],
)
def test_unknown_options_are_refused(options, message):
    with pytest.raises(ValueError, match=f"^int8tile: {message}$"):
        quantize(np.ones((1, 1), np.float32), None, options)
