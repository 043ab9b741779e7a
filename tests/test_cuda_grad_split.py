"""Outlier tokens of the gradient on the CUDA backend: bit for bit those of the reference."""

import numpy as np
import pytest
import torch

from helpers import DTYPES, SEED, activations, array, capacity_for, randn, same
from int8tile import reference

SCALES = [{"granularity": g, "scale": s} for g in ("row", "tensor") for s in ("absmax", "pow2")]
scales_of = pytest.mark.parametrize("scales", SCALES, ids=lambda s: "-".join(s.values()))


def sparse(m, n, dtype=torch.float32):
    g = randn(m, n, dtype=dtype, seed=3)
    g[::29] *= 300
    return g


def check(ops, x, g, rounding="nearest", gain=False, **scales):
    """Both ops, against the reference; whether the option changed anything."""
    w = randn(g.shape[1], x.shape[1], dtype=x.dtype, seed=1)
    if gain:
        w[:, :8] /= 64
    how = {"rounding": rounding, "seed": SEED, **scales}
    _, *saved = ops.linear_forward(x, w, outlier_gain=gain, **scales)
    grad, bias = ops.linear_grad_weight(g, *saved, x.shape[1], **how, grad_split=True)
    plain, plain_bias = ops.linear_grad_weight(g, *saved, x.shape[1], **how, grad_split=False)
    _, split = reference.linear_forward(
        array(x), array(w), capacity=capacity_for(x.shape[1]), outlier_gain=gain, **scales
    )
    how["seed"] = int(SEED)
    expected = reference.grad_weight(array(g), split, **how, grad_split=True)
    same(grad, torch.from_numpy(expected).to(grad.dtype))
    same(bias, plain_bias)
    how["seed"] = SEED
    together = ops.linear_backward(g, w, *saved, **how, grad_split=True)
    for one, other in zip(together, (ops.linear_grad_input(g, w, **how), grad, bias), strict=True):
        same(one, other)
    return not torch.equal(grad, plain)


@scales_of
@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d)[6:])
def test_every_option_and_dtype_matches(ops, scales, rounding, dtype):
    assert check(ops, activations(150, 90, dtype=dtype), sparse(150, 45, dtype), rounding, **scales)


@pytest.mark.parametrize("tokens", [1, 2, 3, 4, 5, 95, 96, 97, 99, 192, 195, 300])
@pytest.mark.parametrize("columns", [1, 70, 131])
def test_any_number_of_tokens_matches(ops, tokens, columns):
    check(ops, activations(tokens, 40), sparse(tokens, columns))


def test_outlier_columns_with_gains_match(ops):
    x = activations(150, 90, outliers=tuple(range(8)), factor=60.0)
    assert check(ops, x, sparse(150, 45), gain=True)


@pytest.mark.parametrize("tokens", [20_600, 20_700, 70_000])
def test_blocks_that_grow_match(ops, tokens):
    """Of whole numbers, so that many tokens of a block are equal."""
    x, g = activations(tokens, 6, outliers=(2,)).sign(), sparse(tokens, 3).round()
    assert check(ops, x, g)


@pytest.mark.slow
def test_more_tokens_than_a_sum_holds_have_no_outliers(ops):
    x, g = activations(131_072 + 40, 5, outliers=(1, 3)), sparse(131_072 + 40, 2)
    assert not check(ops, x, g)


@scales_of
def test_equal_and_zero_and_non_finite_tokens_match(ops, scales):
    x, g = activations(300, 40), torch.ones(300, 30)
    g[[9, 10, 11, 12, 3], 1] = torch.tensor([5.0, 5.0, 5.0, 5.0, 2.0])
    g[96:192], x[270] = 0, 0
    check(ops, x, g, **scales)
    g[20, 2], g[150, 1], x[200, 3] = np.nan, -np.inf, np.inf
    check(ops, x, g, **scales)


@pytest.mark.parametrize("shape", [(0, 4, 5), (3, 0, 5), (3, 4, 0)], ids=str)
def test_empty_operands_give_zeros(ops, shape):
    m, n, k = shape
    x, w, g = randn(m, k), randn(n, k), randn(m, n)
    _, *saved = ops.linear_forward(x, w)
    same(ops.linear_grad_weight(g, *saved, k, grad_split=True)[0], g.t() @ x)
    same(ops.linear_backward(g, w, *saved, grad_split=True)[1], g.t() @ x)


@pytest.mark.parametrize("layout", ["transposed", "padded", "row_stride_0"])
def test_gradients_of_any_strides_match(ops, layout):
    g = sparse(140, 40)
    views = {
        "transposed": lambda: g.t().contiguous().t(),
        "padded": lambda: torch.nn.functional.pad(g, (0, 5))[:, :40],
        "row_stride_0": lambda: g[:1].expand(g.shape),
    }
    check(ops, activations(140, 48), views[layout]())
