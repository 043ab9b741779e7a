"""The panels that the GEMM reads, decoded in numpy and compared with the reference's integers."""

import numpy as np
import pytest

from cases import (
    ALL_SCALES,
    DTYPES,
    LAYOUTS,
    Options,
    activations,
    assert_same,
    load,
    normal,
    ragged,
    store,
)
from core import DEFAULT, forward, grad_input, pack_weight, unpack
from int8tile import _core, reference


def check_weight(w, options=DEFAULT, *, isa, threads=1):
    """Both orders: rows of w as panel rows, and, for grad_input, columns of w."""
    n, k = w.shape
    for transposed, shape in ((False, (n, k)), (True, (k, n))):
        packed = pack_weight(w, options, transposed=transposed, isa=isa, threads=threads)
        q, scale = reference.quantize(load(w), transpose=transposed, **options.scales)
        assert_same(packed.scale, scale)
        np.testing.assert_array_equal(unpack(packed.panels, *shape, isa), q)


def check_saved(x, options=DEFAULT, *, isa, threads=1, columns=4):
    """What forward keeps of x: panels with tokens innermost, low limbs at the outlier columns."""
    m, k = x.shape
    w = np.ones((columns, k), np.float32)
    saved = forward(x, w, None, options, isa=isa, threads=threads)
    _, split = reference.linear_forward(
        load(x),
        w,
        threshold=options.threshold,
        outlier_bits=options.bits,
        capacity=len(saved.index),
        **options.scales,
    )
    expected = split.q.copy()
    expected[:, split.index] = split.low
    np.testing.assert_array_equal(unpack(saved.regular, k, m, isa), expected.T)
    np.testing.assert_array_equal(unpack(saved.high, saved.found, m, isa), split.high.T)
    assert_same(saved.scale, split.scale)
    return saved


def test_panels_have_the_documented_order(isa):
    """Element (r, c) lies in panel r // nr, group c // 4, row r % nr, lane c % 4."""
    nr = _core.panel_columns(isa)
    offset = 128 if isa == "avx512_vnni" else 0
    w = (np.arange(3 * nr)[:, None] + 2 * np.arange(32)[None] - 60).astype(np.float32)
    w = np.clip(w, -127, 127)
    w[:, 31] = 127
    packed = pack_weight(w, isa=isa)
    assert (packed.scale == 1).all()
    for r, c in [(0, 0), (1, 5), (nr - 1, 31), (nr, 0), (2 * nr + 3, 18)]:
        position = ((r // nr * 8 + c // 4) * nr + r % nr) * 4 + c % 4
        assert packed.panels[position] == (int(w[r, c]) + offset) % 256


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("options", ALL_SCALES, ids=str)
def test_packed_weights_hold_the_reference_integers(isa, threads, options, dtype, rng):
    check_weight(store(normal(rng, 150, 77), dtype), options, isa=isa, threads=threads)


@pytest.mark.parametrize("axis", [0, 1], ids=["rows", "columns"])
def test_ragged_weights_are_padded_with_zeros(isa, axis, rng):
    for shape in ragged(rng, axis, 2):
        check_weight(normal(rng, *shape), isa=isa)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_weights_of_any_strides_are_packed(isa, layout, rng):
    check_weight(LAYOUTS[layout](normal(rng, 70, 90)), isa=isa, threads=2)


@pytest.mark.parametrize("shape", [(1, 1), (0, 5), (5, 0)], ids=str)
def test_empty_and_single_weights_are_packed(isa, shape):
    check_weight(np.full(shape, -2, np.float32), isa=isa)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("options", ALL_SCALES, ids=str)
def test_saved_panels_hold_the_quantised_input(isa, threads, options, dtype, rng):
    x = store(activations(rng, 99, 85, outliers=6), dtype)
    check_saved(x, options, isa=isa, threads=threads)


@pytest.mark.parametrize("axis", [0, 1], ids=["tokens", "features"])
def test_ragged_inputs_are_padded_with_zeros(isa, axis, rng):
    for shape in ragged(rng, axis, 2):
        check_saved(activations(rng, *shape, outliers=2), isa=isa)


@pytest.mark.parametrize("outliers", [0, 1, 7, 8, 9, 16, 17, 63, 64, 65])
def test_limb_panels_hold_any_number_of_columns(isa, outliers, rng):
    x = activations(rng, 40, 200, outliers=outliers, size=300)
    saved = check_saved(x, Options(threshold=10.0, capacity=130), isa=isa, threads=2)
    assert saved.found == outliers


def test_saved_panels_are_the_same_beyond_one_slice_of_k(isa):
    """There the GEMM keeps the low limbs apart, yet what is saved has them in place."""
    x = np.ones((3, 131_100), np.float32)
    x[:, [5, 131_090]] = [[300], [-200], [100]] * np.ones((1, 2), np.float32)
    saved = check_saved(x, isa=isa, threads=2, columns=1)
    assert saved.columns.tolist() == [5, 131_090]


def test_nothing_is_saved_where_nothing_is_wanted(isa, rng):
    x, w = activations(rng, 33, 70), normal(rng, 9, 70)
    kept, dropped = forward(x, w, isa=isa), forward(x, w, isa=isa, save=False)
    assert_same(kept.y, dropped.y)
    poison = np.full_like(dropped.regular, 0xA5)
    np.testing.assert_array_equal(dropped.regular, poison)
    assert (dropped.high == 0xA5).all()


@pytest.mark.parametrize("options", ALL_SCALES, ids=str)
def test_a_packed_weight_gives_the_same_results(isa, threads, options, rng):
    run = {"isa": isa, "threads": threads}
    x, w, g = activations(rng, 45, 130), normal(rng, 83, 130), normal(rng, 45, 83)
    packed = pack_weight(w, options, **run)
    assert_same(
        forward(x, w, None, options, packed=packed, **run).y, forward(x, w, None, options, **run).y
    )
    packed = pack_weight(w, options, transposed=True, **run)
    assert_same(grad_input(g, w, options, packed=packed, **run), grad_input(g, w, options, **run))
