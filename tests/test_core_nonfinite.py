"""NaN and inf: they show in what they enter, and nothing else changes."""

import numpy as np
import pytest

from cases import ALL_OPTIONS, DTYPES, Options, activations, assert_same, normal, store
from core import assert_matches_reference, forward, grad_input, grad_weight

VALUES = [np.nan, -np.nan, np.inf, -np.inf]
IDS = ["nan", "-nan", "inf", "-inf"]
non_finite = pytest.mark.parametrize("value", VALUES, ids=IDS)
M, N, K = 30, 20, 40


@pytest.fixture
def layer(rng):
    return activations(rng, M, K, outliers=2), normal(rng, N, K), normal(rng, M, N)


def with_value(array, row, column, value):
    changed = array.copy()
    changed[row, column] = value
    return changed


@non_finite
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_bad_row_of_the_input_gives_nan_in_that_row_only(isa, dtype, value, layer):
    x, w, _ = layer
    x, w = store(x, "float32"), store(w, dtype)
    outlier = int(np.abs(x).max(0).argmax())
    for column in (outlier, (outlier + 1) % K):
        clean = forward(with_value(x, 7, column, 0), w, isa=isa)
        y = forward(with_value(x, 7, column, value), w, isa=isa).y
        assert np.isnan(y[7]).all()
        assert_same(np.delete(y, 7, 0), np.delete(clean.y, 7, 0))


@non_finite
def test_a_bad_row_of_the_weight_gives_nan_in_that_output_only(isa, value, layer):
    x, w, _ = layer
    y = forward(x, with_value(w, 3, 5, value), isa=isa).y
    assert np.isnan(y[:, 3]).all()
    assert_same(np.delete(y, 3, 1), np.delete(forward(x, w, isa=isa).y, 3, 1))


@non_finite
def test_a_bad_row_of_the_gradient_gives_nan_in_grad_input(isa, value, layer):
    _, w, g = layer
    grad = grad_input(with_value(g, 4, 9, value), w, isa=isa)
    assert np.isnan(grad[4]).all()
    assert_same(np.delete(grad, 4, 0), np.delete(grad_input(g, w, isa=isa), 4, 0))


@non_finite
def test_a_bad_weight_gives_nan_in_that_feature_of_grad_input(isa, value, layer):
    _, w, g = layer
    grad = grad_input(g, with_value(w, 4, 9, value), isa=isa)
    assert np.isnan(grad[:, 9]).all()
    assert_same(np.delete(grad, 9, 1), np.delete(grad_input(g, w, isa=isa), 9, 1))


@non_finite
def test_a_bad_gradient_gives_nan_in_that_row_of_grad_weight(isa, value, layer):
    """It takes the place of an outlier token, which the other rows feel as its rounding."""
    x, w, g = layer
    saved = forward(x, w, isa=isa)
    for options in (Options(), Options(grad_split=False)):
        grad, bias = grad_weight(with_value(g, 4, 9, value), saved, K, options, isa=isa)
        assert np.isnan(grad[9]).all()
        assert not np.isfinite(bias[9])
        clean, clean_bias = grad_weight(g, saved, K, options, isa=isa)
        assert_same(np.delete(bias, 9), np.delete(clean_bias, 9))
        others, clean = np.delete(grad, 9, 0), np.delete(clean, 9, 0)
        assert np.isfinite(others).all()
        if not options.grad_split:
            assert_same(others, clean)
        assert_matches_reference(x, w, with_value(g, 4, 9, value), options=options, isa=isa)


@non_finite
@pytest.mark.parametrize("granularity", ["row", "tensor"])
def test_a_bad_input_gives_nan_in_all_of_grad_weight(isa, granularity, value, layer):
    """Its token enters every entry, even where the gradient of that token is zero."""
    x, w, g = layer
    options = Options(granularity=granularity)
    x, g = with_value(x, 7, 5, value), g.copy()
    g[7] = 0
    saved = forward(x, w, None, options, isa=isa)
    assert np.isnan(grad_weight(g, saved, K, options, isa=isa)[0]).all()


@non_finite
def test_a_tensor_scale_makes_everything_nan(isa, value, layer):
    x, w, g = layer
    options = Options(granularity="tensor", scale="pow2")
    bad = {"x": with_value(x, 7, 5, value), "w": with_value(w, 7, 5, value)}
    assert np.isnan(forward(bad["x"], w, None, options, isa=isa).y).all()
    assert np.isnan(forward(x, bad["w"], None, options, isa=isa).y).all()
    assert np.isnan(grad_input(g, bad["w"], options, isa=isa)).all()


@pytest.mark.parametrize("value", [np.nan, -np.inf], ids=["nan", "-inf"])
@pytest.mark.parametrize("options", ALL_OPTIONS, ids=str)
def test_non_finite_operands_match_the_reference(isa, options, value, layer):
    x, w, g = layer
    run = {"options": options, "isa": isa, "threads": 2}
    assert_matches_reference(with_value(x, 2, 3, value), w, g, **run)
    assert_matches_reference(x, with_value(w, 2, 3, value), g, **run)
    assert_matches_reference(x, w, with_value(g, 2, 3, value), **run)
    bias = np.full(N, value, np.float32)
    assert_matches_reference(x, w, g, bias, **run)


@pytest.mark.parametrize("out", ["bfloat16", "float16"])
def test_nan_stays_nan_in_narrow_outputs(isa, out, layer):
    x, w, g = layer
    assert_matches_reference(with_value(x, 2, 3, np.inf), w, with_value(g, 5, 6, np.nan), isa=isa)
    y = forward(with_value(x, 2, 3, np.inf), w, isa=isa, out=out).y
    assert_same(y[2], store(np.full(N, np.nan, np.float32), out))


def test_a_fold_that_overflows_is_never_a_finite_number(isa, layer, rng):
    """Large scales times large gradients exceed float32: the column becomes NaN, as inf would."""
    _, w, g = layer
    x = np.clip(normal(rng, M, K), -3, 3) * np.float32(1e36)
    saved = forward(x, w, None, Options(threshold=None), isa=isa)
    g = with_value(g, 3, 4, 1e38)
    grad, _ = grad_weight(g, saved, K, isa=isa)
    assert np.isnan(grad[4]).all()
    assert np.isfinite(np.delete(grad, 4, 0)).all()
