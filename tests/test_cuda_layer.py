"""Whole layers on the CUDA kernels: emulated, and on a GPU where there is one."""

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from helpers import PAPER, Attention, activations, expected_linear, randn, same
from int8tile import Int8TileConfig, convert_
from int8tile.nn import Int8Linear
from int8tile.ops import checks

HALVES = pytest.mark.parametrize("half", [torch.bfloat16, torch.float16], ids=["bf16", "f16"])


def step(layer, x, g):
    """Output and gradients, the layer's own included."""
    x = x.clone().requires_grad_()
    y = layer(x)
    y.backward(g)
    return y.detach(), x.grad, layer.weight.grad


@pytest.mark.parametrize(
    "options",
    [{}, PAPER, PAPER | {"grad_split": False}, {"grad_split": False}],
    ids=["row", "paper", "paper_off", "off"],
)
@pytest.mark.usefixtures("emulated_layers")
def test_a_layer_trains_as_the_reference_says(options):
    layer = Int8Linear(70, 45, config=Int8TileConfig(**options))
    x, g = activations(3, 47, 70), randn(3, 47, 45, seed=3)
    expected = expected_linear(x, layer.weight, layer.bias, g, **options)
    y, grad_x, grad_w = step(layer, x, g)
    same(y, expected.output)
    same(grad_x, expected.grad_input)
    same(grad_w, expected.grad_weight)
    with torch.no_grad():
        same(layer(x), y)


@HALVES
@pytest.mark.usefixtures("emulated_layers")
def test_under_autocast_the_full_precision_operands_are_quantised(half):
    layer, x, g = Int8Linear(64, 48), activations(15, 64), randn(15, 48, dtype=half, seed=3)
    expected = expected_linear(x, layer.weight, layer.bias, g)
    with torch.autocast("cpu", half):
        y = layer(x)
    assert y.dtype == half
    same(y.detach(), expected.output)
    y.backward(g)
    same(layer.weight.grad, expected.grad_weight)


@pytest.mark.usefixtures("emulated_layers")
def test_stochastic_gradients_repeat_with_torchs_seed():
    layer = Int8Linear(64, 48, config=Int8TileConfig.paper())
    x, g = activations(15, 64), randn(15, 48, seed=3)
    results = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        layer.weight.grad = None
        results.append(step(layer, x, g))
    for one, other in zip(*results[:2], strict=True):
        same(one, other)
    assert not torch.equal(results[0][1], results[2][1])


@pytest.mark.usefixtures("emulated_layers")
def test_layers_that_share_an_input_give_the_same_results():
    x, g = activations(9, 32), randn(9, 32, seed=3)
    results = []
    for share in (False, True):
        torch.manual_seed(0)
        model = Attention()
        convert_(model, share_inputs=share)
        leaf = x.clone().requires_grad_()
        model(leaf).backward(g)
        results.append([leaf.grad, *(p.grad for p in model.parameters())])
    for one, other in zip(*results, strict=True):
        same(one, other)


@pytest.mark.usefixtures("emulated_layers")
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_loss_scaler_skips_the_step_of_a_non_finite_input(bad):
    layer = Int8Linear(64, 48)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    before = layer.weight.detach().clone()
    x = activations(15, 64)
    x[3, 5] = bad
    scaler.scale(layer(x).sum()).backward()
    scaler.step(optimizer)
    scaler.update()
    same(layer.weight.detach(), before)
    assert scaler.get_scale() == 2.0


@HALVES
def test_autocast_for_cuda_gives_its_dtype(monkeypatch, half):
    """On fake tensors: the shape and dtype that a GPU would give."""
    monkeypatch.setattr(checks, "DEVICES", ("cpu", "cuda"))
    enabled, dtype = torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")
    torch.set_autocast_enabled("cuda", True)
    torch.set_autocast_dtype("cuda", half)
    try:
        with FakeTensorMode():
            x, w, bias = (torch.empty(shape, device="cuda") for shape in ((2, 3, 64), (48, 64), 48))
            y = torch.ops.int8tile.linear(x, w, bias)
    finally:
        torch.set_autocast_enabled("cuda", enabled)
        torch.set_autocast_dtype("cuda", dtype)
    assert (y.dtype, y.device.type, y.shape) == (half, "cuda", (2, 3, 48))


@pytest.mark.cuda
@HALVES
def test_a_gpu_trains_under_autocast_with_a_loss_scaler(half):
    layer = nn.Sequential(Int8Linear(64, 48), nn.Tanh(), Int8Linear(48, 8)).cuda()
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cuda", enabled=half == torch.float16)
    x, losses = activations(64, 64).cuda(), []
    for _ in range(20):
        with torch.autocast("cuda", half):
            loss = (layer(x).float() - 1).square().mean()
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
