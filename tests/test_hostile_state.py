"""Arguments and thread settings that must not reach memory or change a value in silence."""

import pytest
import torch

from helpers import activations, randn
from int8tile import _core

ops = torch.ops.int8tile


def quantized():
    torch.manual_seed(0)
    x, w = torch.randn(8, 64), torch.randn(16, 64)
    x[:, 3] *= 40
    return x, w, ops.quantize_input(x)


@pytest.mark.parametrize("found", [-1, 33, 500])
def test_a_count_of_outliers_beyond_the_panels_is_refused(found):
    _, w, (block, *saved) = quantized()
    saved[-1] = torch.tensor([found, 0], dtype=torch.int32)
    with pytest.raises(ValueError, match=r"outlier_count must hold 0\.\.32 columns"):
        ops.linear_multiply(block, *saved[2:], w)
    with pytest.raises(ValueError, match=r"outlier_count must hold 0\.\.32 columns"):
        ops.linear_grad_weight(torch.randn(8, 16), *saved, 64)
    with pytest.raises(ValueError, match=r"linear_backward: outlier_count must hold 0\.\.32"):
        ops.linear_backward(torch.randn(8, 16), w, *saved)


def test_an_outlier_index_that_does_not_fit_the_count_is_refused():
    _, w, (block, *saved) = quantized()
    g = torch.randn(8, 16)
    saved[-1] = torch.tensor([2, 0], dtype=torch.int32)  # one was found: the second entry is -1
    for call in (
        lambda: ops.linear_multiply(block, *saved[2:], w),
        lambda: ops.linear_grad_weight(g, *saved, 64),
        lambda: ops.linear_backward(g, w, *saved),
    ):
        with pytest.raises(ValueError, match="outlier_index must hold 2 ascending columns"):
            call()
    saved[-2] = saved[-2].clone()
    saved[-2][1] = 64
    with pytest.raises(ValueError, match="below 64; got 64 at 1"):
        ops.linear_grad_weight(g, *saved, 64)


def test_exponents_of_gains_outside_of_their_range_are_refused():
    x, w, g = activations(9, 64), randn(7, 64), randn(9, 7)
    *saved, index, count = ops.linear_forward(x, w, outlier_gain=True)[1:]
    for exponent in (-1, 17):
        index[1, 2] = exponent
        with pytest.raises(ValueError, match=rf"exponents of gains in 0..16; got {exponent} at 2"):
            ops.linear_grad_weight(g, *saved, index, count, 64)


def test_an_absmax_that_is_not_that_of_the_weight_leaves_gains_at_one():
    x, w = activations(9, 64), randn(7, 64)
    packed, scale = ops.pack_weight(w)
    arrays = {"packed_weight": packed, "weight_scale": scale, "outlier_gain": True}
    y, *_, index, _ = ops.linear_forward(x, w, weight_absmax=torch.full((7,), 1e-3), **arrays)
    assert not index[1].any()
    assert torch.equal(y, ops.linear_forward(x, w)[0])


def test_the_core_refuses_to_detect_outliers_with_a_negative_capacity():
    x = torch.randn(4, 8)
    matrix = (x.data_ptr(), 0, 4, 8, 8, 1)
    with pytest.raises(ValueError, match="capacity must not be negative"):
        _core.quantize_split(matrix, 5.0, 12, -1, "row", "absmax", 0, 0, 0, 0, 0, 0, 1)


def test_subnormal_halves_survive_a_thread_that_flushes_subnormals():
    x = torch.full((8, 32), 3e-5, dtype=torch.float16)
    weight = torch.eye(32, dtype=torch.float16)
    plain = ops.linear(x, weight)
    if not torch.set_flush_denormal(True):
        pytest.skip("this CPU cannot flush subnormals")
    try:
        flushed = ops.linear(x, weight, threshold=None)
    finally:
        torch.set_flush_denormal(False)
    assert plain.count_nonzero() == plain.numel()
    assert flushed.count_nonzero() == flushed.numel()
