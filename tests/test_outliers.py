"""Which columns are outliers: the threshold, the capacity and its deterministic choice."""

import numpy as np
import pytest

from cases import DTYPES, LAYOUTS, Options, load, normal, store
from core import quantize_split
from int8tile import reference


def find(x, threshold=5.0, capacity=8, **run):
    """The columns in the panels, and how many more there were."""
    results, (found, overflow) = quantize_split(
        x, Options(threshold=threshold, capacity=capacity), **run
    )
    index = results[4]
    assert (index[found:] == -1).all()
    return index[:found].tolist(), overflow


def columns_with(absmax, rows=3):
    """A matrix whose columns have the given absmax, each in some row, signs alternating."""
    x = np.zeros((rows, len(absmax)), np.float32)
    j = np.arange(len(absmax))
    x[j % rows, j] = np.where(j % 2, -1, 1) * np.asarray(absmax, np.float32)
    return x


def test_only_columns_above_the_threshold_are_outliers(isa):
    above = np.nextafter(np.float32(5), np.float32(6))
    x = columns_with([1, 5, above, 4.999, 7, 0])
    assert find(x, isa=isa) == ([2, 4], 0)


def test_no_column_is_an_outlier_below_the_threshold(isa, rng):
    assert find(normal(rng, 40, 70), threshold=100.0, isa=isa) == ([], 0)


def test_a_split_that_is_off_reads_no_column(isa):
    assert find(columns_with([100.0, 200.0]), threshold=None, isa=isa) == ([], 0)
    assert find(columns_with([100.0, 200.0]), threshold=0.0, isa=isa) == ([], 0)


@pytest.mark.parametrize("column", [0, 7, 63, 64, 129])
def test_one_outlier_is_found_wherever_it_stands(isa, column):
    x = np.zeros((300, 130), np.float32)
    x[(column * 37) % 300, column] = -6
    assert find(x, isa=isa) == ([column], 0)


def test_over_capacity_the_largest_columns_stay(isa):
    x = columns_with([6, 60, 7, 50, 8, 40, 1])
    assert find(x, capacity=3, isa=isa) == ([1, 3, 5], 3)


def test_ties_over_capacity_go_to_the_lower_index(isa):
    assert find(columns_with([9, 9, 20, 9, 9, 9]), capacity=3, isa=isa) == ([0, 1, 2], 3)
    assert find(columns_with([8, 9, 9, 9]), capacity=2, isa=isa) == ([1, 2], 2)


def test_a_full_capacity_does_not_overflow(isa):
    assert find(columns_with([6, 7, 8]), capacity=3, isa=isa) == ([0, 1, 2], 0)


def test_columns_out_of_the_panels_keep_their_values(isa):
    """Overflow clips nothing: the row scale covers the columns that stay regular."""
    x = columns_with([60, 50, 40, 1], rows=1)
    (q, high, _, scale, _), _ = quantize_split(x, Options(capacity=1), isa=isa)
    assert scale[0] == np.float32(50) / np.float32(127)
    np.testing.assert_array_equal(q[0], [0, -127, 102, -3])
    assert high.shape == (1, 1)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf], ids=str)
def test_non_finite_values_are_no_outliers(isa, value):
    x = columns_with([1, 9, 2, 3])
    x[0, 0] = x[2, 1] = value
    assert find(x, isa=isa) == ([1], 0)


@pytest.mark.parametrize("dtype", DTYPES)
def test_thread_counts_and_dtypes_agree_with_the_reference(isa, dtype, rng):
    for _ in range(20):
        m, k = rng.integers(1, 1000), rng.integers(1, 200)
        x = store(normal(rng, m, k) * rng.uniform(0.5, 4), dtype)
        capacity = int(rng.integers(1, k + 1))
        index, overflow = reference.find_outliers(load(x), 5.0, capacity)
        for threads in (1, 2):
            found = find(x, capacity=capacity, isa=isa, threads=threads)
            assert found == (index.tolist(), overflow)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_strides_are_read(isa, layout, rng):
    x = LAYOUTS[layout](normal(rng, 70, 45) * 2)
    index, overflow = reference.find_outliers(x, 5.0, 8)
    assert find(x, isa=isa) == (index.tolist(), overflow)


@pytest.mark.parametrize("rows", [0, 1])
def test_zero_rows_and_one_row(isa, rows):
    x = np.full((rows, 5), 6, np.float32)
    assert find(x, capacity=5, isa=isa) == (list(range(5)) if rows else [], 0)


def test_largest_finite_and_subnormal_values_compare_as_floats(isa):
    x = columns_with([1e-45, 3.4028235e38, 1e-38])
    assert find(x, isa=isa) == ([1], 0)
    assert find(x, threshold=1e-40, isa=isa) == ([1, 2], 0)
