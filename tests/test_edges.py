"""Sizes at their edges and values that are not finite, through the differentiable linear."""

import pytest
import torch

from helpers import expected_linear, same, tensors
from int8tile import _core

ops = torch.ops.int8tile
DEEP = _core.SLICE_DEPTH + 100


def check(x, w, bias, g, threshold=5.0):
    """Output and gradients equal the reference."""
    y = ops.linear(x, w, bias, threshold)
    y.backward(g)
    expected = expected_linear(x, w, bias, g, threshold=threshold)
    same(y.detach(), expected.output)
    same(x.grad, expected.grad_input)
    same(w.grad, expected.grad_weight)


@pytest.mark.parametrize("varied", ["tokens", "inputs", "outputs"])
def test_every_ragged_size_equals_the_reference(varied, device):
    for size in range(1, 131):
        sizes = {"tokens": 5, "inputs": 19, "outputs": 7, varied: size}
        check(*tensors(sizes["tokens"], k=sizes["inputs"], n=sizes["outputs"], device=device))


@pytest.mark.parametrize(
    ("m", "n", "k"), [(2, 2, DEEP), (DEEP, 2, 5), (2, DEEP, 3)], ids=["inputs", "tokens", "outputs"]
)
def test_sums_too_deep_for_int32_are_sliced(m, n, k, device):
    refused = device.type == "cuda" and k == DEEP  # a split of so many features
    check(*tensors(m, k=k, n=n, device=device), threshold=None if refused else 5.0)


@pytest.mark.parametrize(
    "shape",
    [((0,), 5, 4), ((3, 0), 5, 4), ((1,), 1, 1), ((2, 3), 0, 4), ((6,), 5, 0), ((2, 3), 5, 0)],
    ids=str,
)
def test_empty_and_single_sizes_train_like_float(shape, device):
    lead, k, n = shape
    x, w, bias, g = tensors(*lead, k=k, n=n, device=device)
    y = ops.linear(x, w, bias)
    y.backward(g)
    grads = x.grad, w.grad, bias.grad
    x.grad = w.grad = bias.grad = None
    exact = torch.nn.functional.linear(x, w, bias)
    exact.backward(g)
    torch.testing.assert_close(y, exact, rtol=0.02, atol=0.02)
    for grad, float_grad in zip(grads, (x.grad, w.grad, bias.grad), strict=True):
        torch.testing.assert_close(grad, float_grad, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_a_non_finite_value_spoils_its_own_row_and_the_weight_gradient(bad, device):
    x, w, bias, g = tensors(6, device=device)
    clean = ops.linear(x, w, bias).detach()
    with torch.no_grad():
        x[2, 5] = bad
    y = ops.linear(x, w, bias)
    y.backward(g)
    assert y[2].isnan().all()
    others = [0, 1, 3, 4, 5]
    same(y.detach()[others], clean[others])
    assert w.grad.isnan().all()
    assert x.grad.isfinite().all()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_non_finite_gradient_never_becomes_finite(bad, device):
    x, w, bias, g = tensors(6, device=device)
    g[4, 7] = bad
    ops.linear(x, w, bias).backward(g)
    assert x.grad[4].isnan().all()
    assert x.grad[[0, 1, 2, 3, 5]].isfinite().all()
    assert w.grad[7].isnan().all()
    assert w.grad[:7].isfinite().all()
    assert not bias.grad[7].isfinite()
