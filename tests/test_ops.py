"""The raw ops give the reference's values bit for bit, from every dtype and layout."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from helpers import (
    DTYPES,
    PAPER,
    SEED,
    Saved,
    activations,
    array,
    capacity_for,
    dtype_name,
    expected_linear,
    randn,
    same,
    size_in_bytes,
    tensors,
)
from int8tile import reference

ops = torch.ops.int8tile
ROW = {"granularity": "row", "scale": "absmax"}
SCALES = pytest.mark.parametrize(
    "scales", [ROW, PAPER, {"granularity": "row", "scale": "pow2"}], ids=["row", "paper", "pow2"]
)
EACH_DTYPE = pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
SHAPES = pytest.mark.parametrize(
    ("m", "n", "k"),
    [(1, 1, 1), (7, 5, 3), (33, 70, 65), (300, 130, 260)],
    ids=lambda value: str(value),
)


@EACH_DTYPE
@SCALES
@SHAPES
def test_linear_forward_equals_the_reference(m, n, k, scales, dtype, device):
    x = activations(m, k, dtype=dtype, device=device)
    w = randn(n, k, dtype=dtype, seed=1, device=device)
    bias = randn(n, dtype=dtype, seed=2, device=device)
    y, _, _, scale, index, count = ops.linear_forward(x, w, bias, **scales)
    expected = expected_linear(x, w, bias, y, **scales)
    assert (y.dtype, y.device) == (dtype, device)
    same(y, expected.output)
    same(scale, expected.split.scale)
    found = len(expected.split.index)
    assert index.tolist() == [*expected.split.index, *[-1] * (len(index) - found)]
    assert count.tolist() == [found, 0]


@pytest.mark.parametrize("bits", range(8, 16))
def test_linear_forward_keeps_the_bits_it_is_asked_for(bits, device):
    x, w = activations(20, 64, factor=900.0, device=device), randn(30, 64, seed=1, device=device)
    y = ops.linear_forward(x, w, outlier_bits=bits)[0]
    same(y, expected_linear(x, w, None, y, outlier_bits=bits).output)


@pytest.mark.parametrize("threshold", [None, 0.0], ids=["none", "zero"])
def test_no_threshold_means_no_split(threshold, device):
    x, w = activations(20, 64, device=device), randn(30, 64, seed=1, device=device)
    y, _, limbs, _, index, count = ops.linear_forward(x, w, threshold=threshold)
    same(y, expected_linear(x, w, None, y, threshold=None).output)
    assert (limbs.numel(), index.numel(), count.tolist()) == (0, 0, [0, 0])


def test_columns_over_capacity_stay_regular_and_are_counted(device):
    x = activations(20, 64, outliers=range(10, 20), device=device)
    w = randn(30, 64, seed=1, device=device)
    y, _, _, _, index, count = ops.linear_forward(x, w, outlier_capacity=4)
    expected = expected_linear(x, w, None, y, capacity=4)
    same(y, expected.output)
    assert index.tolist() == expected.split.index.tolist()
    assert count.tolist() == [4, 6]


def test_shapes_do_not_depend_on_the_data(device):
    w = randn(30, 64, seed=1, device=device)
    calm = randn(20, 64, device=device) * 0.1
    wild = activations(20, 64, outliers=range(64), device=device)
    shapes = [[t.shape for t in ops.linear_forward(x, w)] for x in (calm, wild)]
    assert shapes[0] == shapes[1]
    assert shapes[0][4] == (capacity_for(64),)


@pytest.mark.parametrize("out_dtype", DTYPES, ids=dtype_name)
def test_output_is_rounded_once_to_out_dtype(out_dtype, device):
    x = activations(9, 64, device=device)
    w = randn(30, 64, seed=1, device=device)
    bias = randn(30, seed=2, device=device)
    y = ops.linear_forward(x, w, bias, out_dtype=out_dtype)[0]
    assert y.dtype == out_dtype
    same(y, expected_linear(x, w, bias, y).output)


LAYOUTS = {
    "transposed": lambda **like: activations(48, 20, **like).t(),
    "every_second_column": lambda **like: activations(20, 96, **like)[:, ::2],
    "every_second_row": lambda **like: activations(40, 48, **like)[::2],
    "one_row_broadcast": lambda **like: activations(1, 48, **like).expand(20, 48),
    "one_column_broadcast": lambda **like: activations(20, 1, **like).expand(20, 48),
    "offset": lambda **like: activations(21, 49, **like)[1:, 1:],
}


@pytest.mark.parametrize("layout", LAYOUTS)
@EACH_DTYPE
def test_any_layout_gives_the_values_of_the_contiguous_one(layout, dtype, device):
    x = LAYOUTS[layout](dtype=dtype, device=device)
    w = randn(48, 30, seed=1, device=device).t()
    g = randn(30, 20, seed=2, device=device).t()
    bias = randn(60, dtype=dtype, seed=3, device=device)[::2]
    y, *saved = ops.linear_forward(x, w, bias)
    expected = expected_linear(x, w, bias, g)
    same(y, expected.output)
    same(ops.linear_grad_input(g, w), expected.grad_input)
    same(ops.linear_grad_weight(g, *saved, 48)[0], expected.grad_weight)
    q, scale = ops.quantize(x)
    same(q, reference.quantize(array(x))[0])
    same(scale, reference.quantize(array(x))[1])


@EACH_DTYPE
@SCALES
@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
def test_gradients_equal_the_reference(rounding, scales, dtype, device):
    x = activations(50, 70, dtype=dtype, device=device)
    w = randn(66, 70, dtype=dtype, seed=1, device=device)
    g = randn(50, 66, dtype=dtype, seed=2, device=device) * 0.01
    how = {"rounding": rounding, **scales}
    expected = expected_linear(x, w, None, g, seed=int(SEED), **how)
    _, *saved = ops.linear_forward(x, w, **scales)
    grad_input = ops.linear_grad_input(g, w, seed=SEED.to(device), **how)
    grad_weight, grad_bias = ops.linear_grad_weight(g, *saved, 70, seed=SEED.to(device), **how)
    assert (grad_input.dtype, grad_weight.dtype, grad_bias.dtype) == (dtype, dtype, torch.float32)
    same(grad_input, expected.grad_input)
    same(grad_weight, expected.grad_weight)
    torch.testing.assert_close(grad_bias, g.float().sum(0), rtol=1e-5, atol=1e-6)
    together = ops.linear_backward(g, w, *saved, seed=SEED.to(device), **how)
    for one, other in zip(together, (grad_input, grad_weight, grad_bias), strict=True):
        assert torch.equal(one, other)


def test_grad_bias_is_computed_only_where_wanted(device):
    x = activations(9, 20, device=device)
    w = randn(30, 20, seed=1, device=device)
    g = randn(9, 30, seed=2, device=device)
    _, *saved = ops.linear_forward(x, w)
    assert ops.linear_grad_weight(g, *saved, 20, with_bias=False)[1].shape == (0,)
    assert ops.linear_backward(g, w, *saved, with_bias=False)[2].shape == (0,)


@pytest.mark.parametrize("transpose", [False, True], ids=["rows", "columns"])
@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
@SCALES
@EACH_DTYPE
def test_quantize_equals_the_reference(scales, rounding, transpose, dtype, device):
    x, fold = randn(37, 45, dtype=dtype, device=device), randn(37, seed=1, device=device).abs()
    how = {"rounding": rounding, "transpose": transpose, **scales}
    for f in (None, fold):
        q, scale = ops.quantize(x, f, seed=SEED.to(device), **how)
        expected = reference.quantize(
            array(x), fold=None if f is None else array(f), seed=int(SEED), **how
        )
        assert q.dtype == torch.int8
        same(q, expected[0])
        same(scale, expected[1])


@pytest.mark.parametrize("bits", [8, 12, 15])
@SCALES
@EACH_DTYPE
def test_quantize_split_equals_the_reference(scales, bits, dtype, device):
    x = activations(37, 45, dtype=dtype, device=device)
    q, high, low, scale, index, count = ops.quantize_split(x, outlier_bits=bits, **scales)
    found, _ = reference.find_outliers(array(x), 5.0, capacity_for(45))
    expected = reference.quantize_split(array(x), found, outlier_bits=bits, **scales)
    c = len(found)
    same(q, expected.q)
    same(high[:, :c], expected.high)
    same(low[:, :c], expected.low)
    same(scale, expected.scale)
    assert index[:c].tolist() == found.tolist()
    assert not high[:, c:].any()
    assert not low[:, c:].any()
    assert count.tolist() == [c, 0]


@pytest.mark.parametrize("transposed", [False, True], ids=["contiguous", "transposed"])
def test_gemm_is_exact(transposed, device):
    generator = np.random.default_rng(0)

    def integers(rows, cols):
        values = torch.from_numpy(generator.integers(-128, 128, (rows, cols), dtype=np.int8))
        values = values.to(device)
        return values.t().contiguous().t() if transposed else values

    a, b, a_high, b_high = integers(23, 300), integers(70, 300), integers(23, 9), integers(70, 9)
    same(ops.gemm(a, b), reference.gemm(array(a), array(b)))
    both = ops.gemm(a, b, a_high, b_high)
    assert both.dtype == torch.int32
    same(both, reference.gemm(array(a), array(b), array(a_high), array(b_high)))


@pytest.mark.parametrize("transpose", [False, True], ids=["forward", "grad_input"])
@SCALES
def test_a_packed_weight_gives_the_same_result(scales, transpose, device):
    x = activations(12, 70, device=device) if not transpose else randn(12, 66, device=device)
    w = randn(66, 70, seed=1, device=device)
    packed, scale = ops.pack_weight(w, transpose=transpose, **scales)
    same(scale, reference.quantize(array(w), transpose=transpose, **scales)[1])
    given = {"packed_weight": packed, "weight_scale": scale, **scales}
    if transpose:
        same(ops.linear_grad_input(x, w, **given), ops.linear_grad_input(x, w, **scales))
    else:
        same(ops.linear_forward(x, w, **given)[0], ops.linear_forward(x, w, **scales)[0])


@pytest.mark.parametrize("k", [384, 768, 3072])
def test_saved_for_backward_is_int8(k, device):
    x = activations(64, k, device=device).requires_grad_()
    w = randn(16, k, seed=1, requires_grad=True, device=device)
    with Saved() as saved:
        ops.linear(x, w)
    kept = saved.besides(w)
    assert size_in_bytes(kept) <= 0.3 * size_in_bytes([x])
    assert {t.element_size() for t in kept if t.dim() == 2} == {1}


@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
def test_a_frozen_weight_saves_nothing_of_the_input(rounding, device):
    x = activations(64, 384, device=device).requires_grad_()
    w = randn(48, 384, seed=1, device=device)
    bias = randn(48, seed=2, requires_grad=True, device=device)
    with Saved() as saved:
        ops.linear(x, w, bias, grad_rounding=rounding).sum().backward()
    assert x.grad is not None
    assert size_in_bytes(saved.besides(w)) == (8 if rounding == "stochastic" else 0)


@pytest.mark.parametrize("options", [{}, {"threshold": None}, {"outlier_capacity": 3}], ids=str)
def test_forward_only_gives_the_same_output(options, device):
    x, w, bias, _ = (t.detach() for t in tensors(9, k=64, n=8, device=device))
    same(
        ops.linear_forward_only(x, w, bias, **options), ops.linear_forward(x, w, bias, **options)[0]
    )


def test_without_save_nothing_is_laid_out_for_backward(device):
    _, saved, limbs, *_ = ops.quantize_input(activations(9, 64, device=device), save=False)
    assert (saved.numel(), limbs.numel()) == (0, 0)


@pytest.mark.parametrize("shape", [(0, 4, 5), (3, 0, 5), (3, 4, 0), (0, 0, 0)], ids=str)
def test_empty_operands_give_zeros_and_bias(shape, device):
    m, n, k = shape
    x = randn(m, k, device=device)
    w = randn(n, k, device=device)
    bias = randn(n, device=device)
    g = randn(m, n, device=device)
    y, *saved = ops.linear_forward(x, w, bias)
    same(y, torch.nn.functional.linear(x, w, bias))
    same(ops.linear_grad_input(g, w), g @ w)
    grad_weight, grad_bias = ops.linear_grad_weight(g, *saved, k)
    same(grad_weight, g.t() @ x)
    same(grad_bias.cpu(), g.cpu().sum(0))


def test_calls_at_the_same_time_do_not_share_their_workspace(device):
    def backward(m, n, k):
        x, w = activations(m, k, device=device), randn(n, k, seed=1, device=device)
        g = randn(m, n, seed=2, device=device)
        _, *saved = ops.linear_forward(x, w)
        return ops.linear_backward(g, w, *saved)

    # Repeated and of several sizes: a workspace that was given back serves the next call.
    shapes = [(256, 130, 260), (300, 64, 96), (64, 300, 200), (512, 96, 130)] * 8
    expected = [backward(*shape) for shape in shapes]
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda shape: backward(*shape), shapes))
    assert all(
        torch.equal(a, b)
        for result, wanted in zip(results, expected, strict=True)
        for a, b in zip(result, wanted, strict=True)
    )
