"""The differentiable linear: gradients as in the reference, switches, modes, and bad values."""

import pytest
import torch

from helpers import (
    DTYPES,
    PAPER,
    RecordOps,
    Saved,
    activations,
    close,
    dtype_name,
    expected_linear,
    randn,
    same,
    tensors,
)
from int8tile import Int8TileConfig
from int8tile.nn import Int8Linear

ops = torch.ops.int8tile
ROUNDINGS = pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
SCALES = pytest.mark.parametrize("scales", [{}, PAPER], ids=["row", "paper"])
FORWARD, BACKWARD = "linear_forward", "linear_backward"
FORWARD_ONLY = "linear_forward_only"
GRAD_INPUT, GRAD_WEIGHT = "linear_grad_input", "linear_grad_weight"


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
@SCALES
@ROUNDINGS
def test_output_and_gradients_equal_the_reference(rounding, scales, dtype, device):
    x, w, bias, g = tensors(50, dtype=dtype, device=device)
    with Saved() as saved:
        y = ops.linear(x, w, bias, grad_rounding=rounding, **scales)
    y.backward(g)
    seed = saved.seed if rounding == "stochastic" else 0
    expected = expected_linear(x, w, bias, g, rounding=rounding, seed=seed, **scales)
    same(y.detach(), expected.output)
    same(x.grad, expected.grad_input)
    same(w.grad, expected.grad_weight)
    # Sums of 50 values: float32 rounds each of the 49 additions, then the cast to bfloat16.
    torch.testing.assert_close(bias.grad, g.float().sum(0).to(dtype), rtol=2**-7, atol=1e-5)


@pytest.mark.parametrize("options", [{}, {"threshold": None}, PAPER], ids=["row", "plain", "paper"])
def test_gradients_are_close_to_float(options, device):
    x, w, bias, g = tensors(256, k=192, n=96, device=device)
    ops.linear(x, w, bias, **options).backward(g)
    quantised = x.grad, w.grad, bias.grad
    x.grad = w.grad = bias.grad = None
    torch.nn.functional.linear(x, w, bias).backward(g)
    for q, exact in zip(quantised, (x.grad, w.grad, bias.grad), strict=True):
        close(q, exact, 0.05)
    assert not torch.equal(quantised[0], x.grad)
    assert not torch.equal(quantised[1], w.grad)


def test_the_split_keeps_outliers_and_everything_beside_them(device):
    x, w, _, _ = tensors(64, k=192, device=device)
    exact = torch.nn.functional.linear(x, w)
    split, plain = ops.linear(x, w), ops.linear(x, w, threshold=None)
    close(split, exact, 0.01)
    assert (plain - exact).norm() > 2 * (split - exact).norm()


def test_the_seed_comes_from_torch_and_repeats_with_it(device):
    def gradients():
        x, w, bias, g = tensors(20, device=device)
        ops.linear(x, w, bias, grad_rounding="stochastic").backward(g)
        return x.grad, w.grad

    torch.manual_seed(3)
    first, second = gradients(), gradients()
    torch.manual_seed(3)
    again = gradients()
    for one, other, repeated in zip(first, second, again, strict=True):
        same(repeated, one)
        assert not torch.equal(one, other)


def test_stochastic_rounding_is_right_on_average(device):
    x, w, _, g = tensors(16, k=24, n=32, needs="x", device=device)
    torch.manual_seed(0)
    total = torch.zeros_like(x)
    for _ in range(200):
        (grad,) = torch.autograd.grad(ops.linear(x, w, grad_rounding="stochastic"), x, g)
        total += grad
    (nearest,) = torch.autograd.grad(ops.linear(x, w), x, g)
    exact = g @ w
    assert (total / 200 - exact).norm() < (nearest - exact).norm()


@pytest.mark.parametrize("lead", [(6,), (2, 3), (2, 1, 3), (2, 3, 1, 1), ()], ids=str)
def test_any_number_of_leading_dimensions(lead, device):
    x, w, bias, g = tensors(*lead, device=device)
    y = ops.linear(x, w, bias)
    y.backward(g)
    expected = expected_linear(x, w, bias, g)
    assert y.shape == (*lead, 66)
    same(y.detach(), expected.output)
    same(x.grad, expected.grad_input)
    same(w.grad, expected.grad_weight)


LAYOUTS = {
    "transposed": lambda device: activations(70, 20, device=device).t(),
    "permuted": lambda device: activations(5, 70, 4, device=device).permute(2, 0, 1),
    "sliced": lambda device: activations(20, 140, device=device)[:, ::2],
    "broadcast": lambda device: activations(1, 70, device=device).expand(20, 70),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_non_contiguous_operands_train(layout, device):
    x = LAYOUTS[layout](device).requires_grad_()
    w = randn(70, 66, seed=1, device=device).t().requires_grad_()
    y = ops.linear(x, w)
    y.sum().backward()  # the gradient that arrives is one value, broadcast
    expected = expected_linear(x, w, None, torch.ones_like(y))
    same(y.detach(), expected.output)
    same(x.grad, expected.grad_input)
    same(w.grad, expected.grad_weight)


@pytest.mark.parametrize("needs", ["x", "w", "b", "xw", "xb", "wb", "xwb", ""])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no_bias"])
def test_only_the_gradients_asked_for_are_computed(needs, bias, device):
    x, w, b, g = tensors(20, needs=needs, device=device)
    b = b if bias else None
    expected = expected_linear(x, w, b, g)
    with RecordOps() as record:
        y = ops.linear(x, w, b)
        if y.requires_grad:
            y.backward(g)
    same(y.detach(), expected.output)
    for tensor, value in ((x, expected.grad_input), (w, expected.grad_weight)):
        assert (tensor.grad is not None) == tensor.requires_grad
        if tensor.requires_grad:
            same(tensor.grad, value)
    if b is not None and b.requires_grad:
        torch.testing.assert_close(b.grad, g.sum(0), rtol=1e-5, atol=1e-5)
    backward = [GRAD_INPUT] * ("x" in needs) + [GRAD_WEIGHT] * ("w" in needs)
    forward = FORWARD if "w" in needs else FORWARD_ONLY
    assert record.names == [forward, *([BACKWARD] if len(backward) == 2 else backward)]


@pytest.mark.parametrize("switch", ["forward", "grad_input", "grad_weight"])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no_bias"])
def test_a_gemm_switched_off_is_exactly_float_and_the_others_stay_int8(switch, bias, device):
    x, w, b, g = tensors(64, k=96, n=48, device=device)
    b = b if bias else None
    with RecordOps() as record:
        y = ops.linear_switched(x, w, b, **{switch: False})
        y.backward(g)
    results = {"forward": y.detach(), "grad_input": x.grad, "grad_weight": w.grad}
    x.grad = w.grad = None
    exact = torch.nn.functional.linear(x, w, b)
    exact.backward(g)
    floats = {"forward": exact.detach(), "grad_input": x.grad, "grad_weight": w.grad}
    for name, value in results.items():
        assert torch.equal(value, floats[name]) == (name == switch), name
        close(value, floats[name], 0.03)
    backward = {"grad_input": [GRAD_WEIGHT], "grad_weight": [GRAD_INPUT], "forward": [BACKWARD]}
    assert [name for name in record.names if FORWARD not in name] == backward[switch]
    expected = expected_linear(x, w, b, g)
    if switch != "grad_weight":
        same(results["grad_weight"], expected.grad_weight)
    if switch != "grad_input":
        same(results["grad_input"], expected.grad_input)


def test_all_gemms_in_float_run_no_int8_op(device):
    config = Int8TileConfig(forward=False, grad_input=False, grad_weight=False)
    layer = Int8Linear(70, 66, device=device, config=config)
    x = tensors(8, device=device)[0]
    with RecordOps() as record:
        y = layer(x)
        y.sum().backward()
    assert record.names == []
    same(y, torch.nn.functional.linear(x, layer.weight, layer.bias))


def test_int8_ran_in_all_three_directions(device):
    x, w, bias, g = tensors(20, device=device)
    with RecordOps() as record:
        y = ops.linear(x, w, bias)
        y.backward(g)
    assert record.names == [FORWARD, BACKWARD]
    assert not torch.equal(y, torch.nn.functional.linear(x, w, bias))


@pytest.mark.parametrize("through", ["grad_output", "weight"])
def test_double_backward_is_refused(through, device):
    x, w, _, g = tensors(5, device=device)
    g.requires_grad_(through == "grad_output")
    (grad,) = torch.autograd.grad(ops.linear(x, w), x, g, create_graph=True)
    with pytest.raises(RuntimeError, match="differentia"):
        (grad.square().sum() + w.square().sum()).backward()


def test_backward_runs_again_on_a_retained_graph(device):
    x, w, bias, g = tensors(5, device=device)
    y = ops.linear(x, w, bias)
    y.backward(g, retain_graph=True)
    first = x.grad.clone()
    y.backward(g)
    same(x.grad, 2 * first)


def test_changing_the_weight_before_backward_is_refused(device):
    x, w, _, _ = tensors(5, device=device)
    y = ops.linear(x, w)
    with torch.no_grad():
        w.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode], ids=lambda m: m.__name__)
def test_without_gradients_the_output_is_the_same_and_nothing_is_saved(mode, device):
    x, w, bias, _ = tensors(2, 9, device=device)
    trained = ops.linear(x, w, bias)
    with mode(), Saved() as saved:
        y = ops.linear(x, w, bias)
    assert not y.requires_grad
    assert saved.tensors == []
    assert torch.equal(y, trained)
