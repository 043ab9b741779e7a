"""The int8 matrix product over raw operands: exact int32 on every instruction set."""

import re

import numpy as np
import pytest

from cases import ragged
from core import gemm
from int8tile import _core, reference


def integers(rng, *shape):
    return rng.integers(-128, 128, shape, np.int8)


def exact(a, b, a_high=None, b_high=None):
    """In 64 bits; float64 holds every sum of these sizes."""
    acc = a.astype(float) @ b.astype(float).T
    if a_high is not None:
        acc += 128 * (a_high.astype(float) @ b_high.astype(float).T)
    assert np.abs(acc).max(initial=0) < 2**31
    return acc.astype(np.int64)


def check(*operands, isa, threads=1):
    np.testing.assert_array_equal(gemm(*operands, isa=isa, threads=threads), exact(*operands))


@pytest.mark.parametrize("axis", [0, 1, 2], ids=["m", "n", "k"])
def test_ragged_shapes_are_exact(isa, axis, rng):
    for m, n, k in ragged(rng, axis, 3, most=40):
        check(integers(rng, m, k), integers(rng, n, k), isa=isa, threads=1 + m % 2)


def test_ragged_high_columns_are_exact(isa, rng):
    for h in range(1, 131):
        m, n, k = rng.integers(1, 20, 3)
        operands = [(m, k), (n, k), (m, h), (n, h)]
        check(*(integers(rng, *shape) for shape in operands), isa=isa)


@pytest.mark.parametrize("shape", [(257, 300, 4100), (500, 70, 2049), (13, 1000, 513)], ids=str)
def test_blocks_of_every_size_are_exact(isa, threads, shape, rng):
    m, n, k = shape
    check(integers(rng, m, k), integers(rng, n, k), isa=isa, threads=threads)


@pytest.mark.parametrize("left", [-128, -127, 127])
@pytest.mark.parametrize("right", [-128, -127, 127])
@pytest.mark.parametrize("high", [0, 512, 1023])
def test_extremes_at_the_depth_limit_are_exact(isa, left, right, high):
    """The deepest k that is accepted, every value at its end: the sums come within 2^14 of 2^31."""
    k = _core.SLICE_DEPTH - 1 - 128 * high
    a, b = np.full((7, k), left, np.int8), np.full((9, k), right, np.int8)
    a_high, b_high = np.full((7, high), left, np.int8), np.full((9, high), right, np.int8)
    expected = left * right * (_core.SLICE_DEPTH - 1)
    assert abs(expected) < 2**31
    acc = gemm(a, b, a_high, b_high, isa=isa, threads=2)
    np.testing.assert_array_equal(acc, np.full((7, 9), expected, np.int32))


def test_pairs_of_large_products_do_not_saturate(isa):
    """Sums of two or four neighbours exceed 16 bits, which some instructions would clip."""
    a = np.array([[127, 127, 127, 127], [-128, -128, -128, -128], [127, 127, -128, -128]], np.int8)
    check(a, a, isa=isa)


def test_minus_128_is_a_value_like_any_other(isa, rng):
    operands = [rng.choice(np.array([-128, 127, 0], np.int8), (m, 300)) for m in (30, 40)]
    check(*operands, isa=isa, threads=2)


@pytest.mark.parametrize("shape", [(0, 4, 8), (4, 0, 8), (0, 0, 0), (1, 1, 1)], ids=str)
def test_empty_and_single_products(isa, shape, rng):
    m, n, k = shape
    check(integers(rng, m, k), integers(rng, n, k), isa=isa)


@pytest.mark.parametrize("high", [0, 3])
def test_an_empty_depth_gives_zeros_or_the_high_part(isa, high, rng):
    operands = [integers(rng, *shape) for shape in [(5, 0), (6, 0), (5, high), (6, high)]]
    check(*operands, isa=isa)


@pytest.mark.parametrize(("k", "high"), [(131_072, 0), (131_072 - 128, 1), (0, 1024)])
def test_a_depth_that_could_overflow_is_refused(k, high):
    message = (
        "int8tile::gemm: k + 128 * high columns must be below 131072 so that every sum fits "
        f"int32; got {k} and {high}"
    )
    operands = [np.zeros((1, depth), np.int8) for depth in (k, k, high, high)]
    with pytest.raises(ValueError, match=re.escape(message)):
        gemm(*operands)


def test_the_reference_product_is_exact_or_refuses(rng):
    operands = [integers(rng, *shape) for shape in [(9, 50), (8, 50), (9, 4), (8, 4)]]
    np.testing.assert_array_equal(reference.gemm(*operands), exact(*operands))
    deep = np.full((1, 133_200), 127, np.int8)
    with pytest.raises(OverflowError, match="a sum does not fit int32"):
        reference.gemm(deep, deep)
