"""outlier_gain on CUDA equals the reference bit for bit, on a GPU and in the emulated runtime."""

import numpy as np
import pytest
import torch

from helpers import DTYPES, array, expected_linear, same
from int8tile import Int8TileConfig, reference
from int8tile.nn import Int8Linear
from test_cuda import SCALES, check_layer, each_rounding, layer

COLUMNS = (3, 17, 40)


def stressed(m=70, n=45, k=90, dtype=torch.float32, factor=60.0, columns=COLUMNS):
    """Large columns of x over small ones of w."""
    x, w, bias, g = layer(m, n, k, dtype, outliers=columns, factor=factor)
    w[:, list(columns)] /= factor
    return x, w, bias, g


@pytest.mark.parametrize("scales", SCALES, ids=lambda s: "-".join(s.values()))
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d)[6:])
@each_rounding
def test_every_option_and_dtype_matches(ops, scales, dtype, rounding):
    x, w, bias, g = stressed(dtype=dtype)
    assert check_layer(ops, x, w, bias, g, rounding, gain=True, **scales) == [3, 0]
    columns = reference.find_outliers(array(x), 5.0, 32)[0]
    gains = reference.outlier_gains(array(x), array(w), columns, 5.0, scales["granularity"])
    assert (gains > 1).all()


@pytest.mark.parametrize("bits", [8, 12, 15])
@pytest.mark.parametrize("factor", [3.0, 16.0, 3e3, 1e7])
def test_every_size_of_outliers_matches(ops, bits, factor):
    check_layer(ops, *stressed(factor=factor), bits=bits, gain=True)


@pytest.mark.parametrize("shape", [(1, 1, 50), (129, 7, 64), (5, 600, 257)], ids=str)
def test_ragged_shapes_match(ops, shape):
    check_layer(ops, *stressed(*shape), gain=True)


def test_columns_beyond_the_capacity_stay_as_they_are(ops):
    x, w, bias, g = stressed(k=80, columns=tuple(range(0, 80, 4)))
    assert check_layer(ops, x, w, bias, g, capacity=6, gain=True) == [6, 14]


def test_without_outliers_or_a_split_nothing_is_divided(ops):
    x, w, bias, g = layer(9, 12, 40, outliers=())
    assert check_layer(ops, x.clamp(-4, 4), w, bias, g, gain=True) == [0, 0]
    assert check_layer(ops, x, w, bias, g, capacity=0, gain=True) == [0, 0]


def test_rows_that_do_not_count_match(ops):
    """Of zeros, tiny or not finite; and a column of zeros, which has the gain 1."""
    x, w, bias, g = stressed()
    w[2], w[3] = 0, 1e-32
    w[:, COLUMNS[1]] = 0
    w[4, 7], w[5, COLUMNS[0]], x[6, 1] = np.inf, np.nan, np.nan
    check_layer(ops, x, w, bias, g, gain=True)


def test_slices_of_k_match(ops):
    x, w, bias, g = stressed(3, 4, 131_072 + 200, columns=(5, 131_000, 131_080))
    check_layer(ops, x, w, bias, g, capacity=8, gain=True)


@pytest.mark.parametrize("granularity", ["row", "tensor"])
@pytest.mark.parametrize("known", [False, True])
def test_a_packed_weight_is_multiplied_with_gains_and_stays_as_it_is(ops, granularity, known):
    x, w, bias, g = stressed()
    packed, scale = ops.pack_weight(w, granularity)
    before = packed.clone()
    absmax = w.abs().amax(1)
    if granularity == "tensor":
        absmax = absmax.max().repeat(len(absmax))
    expected = expected_linear(x, w, bias, g, outlier_gain=True, granularity=granularity)
    y = ops.linear_forward_only(
        x, w, bias, granularity=granularity, packed_weight=packed, weight_scale=scale,
        outlier_gain=True, weight_absmax=absmax if known else None,
    )  # fmt: skip
    same(y, expected.output)
    assert torch.equal(packed, before)


@pytest.mark.parametrize("trained", [True, False], ids=["trained", "frozen"])
@pytest.mark.usefixtures("emulated_layers")
def test_a_layer_with_gains_trains(trained):
    x, w, bias, g = stressed()
    linear = torch.nn.Linear(w.shape[1], w.shape[0])
    with torch.no_grad():
        linear.weight.copy_(w)
        linear.bias.copy_(bias)
    linear.requires_grad_(trained)
    layer = Int8Linear.from_linear(linear, Int8TileConfig(outlier_gain=True))
    expected = expected_linear(x, w, bias, g, outlier_gain=True)
    for _ in range(2):  # a frozen weight is packed once
        x.requires_grad_().grad = None
        layer.zero_grad(set_to_none=True)
        y = layer(x)
        y.backward(g)
        same(y.detach(), expected.output)
        same(x.grad, expected.grad_input)
        if trained:
            same(layer.weight.grad, expected.grad_weight)
