"""Autocast and activation checkpointing behave as for torch's own linear layers."""

import pytest
import torch
from torch import nn
from torch.nn.functional import linear as float_linear
from torch.utils.checkpoint import checkpoint

import int8tile
from helpers import PAPER, activations, close, expected_linear, randn, same
from int8tile import Int8TileConfig
from int8tile.nn import Int8Linear

ops = torch.ops.int8tile
HALVES = pytest.mark.parametrize("half", [torch.bfloat16, torch.float16], ids=["bf16", "f16"])
REENTRANT = pytest.mark.parametrize("reentrant", [True, False], ids=["reentrant", "not_reentrant"])
CONFIGS = {
    "nearest": Int8TileConfig(),
    "stochastic": Int8TileConfig(grad_rounding="stochastic"),
    "paper": Int8TileConfig.paper(),
    "float_grad_weight": Int8TileConfig(grad_weight=False),
}
EACH_CONFIG = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)


def leaves(device, dtype=torch.float32):
    x = activations(3, 5, 64, dtype=dtype, device=device).requires_grad_()
    w = randn(48, 64, seed=1, requires_grad=True, device=device)
    return x, w, randn(48, seed=2, requires_grad=True, device=device)


@HALVES
@pytest.mark.parametrize("switches", [{}, {"forward": False}], ids=["int8", "float_forward"])
@pytest.mark.parametrize("input", ["float32", "half"])
def test_autocast_gives_the_dtypes_of_float_linear(input, switches, half, device):
    x, w, bias = leaves(device, half if input == "half" else torch.float32)
    dtypes = []
    for function in (float_linear, lambda *args: ops.linear_switched(*args, **switches)):
        x.grad = w.grad = bias.grad = None
        with torch.autocast(device.type, half):
            y = function(x, w, bias)
        y.backward(torch.ones_like(y))
        dtypes.append([y.dtype, x.grad.dtype, w.grad.dtype, bias.grad.dtype])
    assert dtypes[0] == dtypes[1]
    assert dtypes[0][0] == half


@HALVES
def test_autocast_quantises_the_full_precision_operands(half, device):
    x, w, bias = leaves(device)
    with torch.autocast(device.type, half):
        y = ops.linear(x, w, bias)
    g = randn(*y.shape, dtype=half, seed=3, device=device)
    y.backward(g)
    expected = expected_linear(x, w, bias, g)
    same(y.detach(), expected.output)
    same(x.grad, expected.grad_input)
    same(w.grad, expected.grad_weight)


def test_autocast_can_be_switched_off(device):
    x, w, bias = leaves(device)
    kind = device.type
    with torch.autocast(kind, torch.bfloat16), torch.autocast(kind, enabled=False):
        assert ops.linear(x, w, bias).dtype == torch.float32


@HALVES
def test_autocast_with_a_frozen_weight_and_its_packed_copy(half, device):
    layer, x = Int8Linear(64, 48, device=device).requires_grad_(False), leaves(device)[0]
    whole = layer(x)
    with torch.autocast(device.type, half):
        y = layer(x)
    same(y, whole.to(half))
    y.sum().backward()
    assert x.grad.dtype == torch.float32


@HALVES
def test_a_model_under_autocast_trains_close_to_float(half, device):
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(64, 96), nn.GELU(), nn.Linear(96, 48)).to(device)
    x = leaves(device)[0]
    gradients = []
    for convert in (False, True):
        if convert:
            int8tile.convert_(layers)
        layers.zero_grad()
        with torch.autocast(device.type, half):
            y = layers(x)
        y.float().square().mean().backward()
        gradients.append([p.grad.clone() for p in layers.parameters()])
    for exact, ours in zip(*gradients, strict=True):
        assert ours.dtype == torch.float32
        close(ours, exact, 0.1)


class Block(nn.Module):
    """Two int8 layers around dropout: their random bits come from one generator."""

    def __init__(self, config):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(64, 96), nn.Dropout(0.5), nn.Linear(96, 64))
        int8tile.convert_(self, config)

    def forward(self, x):
        return x + self.layers(x)


def gradients(blocks, x, run):
    x = x.detach().clone().requires_grad_()
    blocks.zero_grad()
    torch.manual_seed(11)
    h = x
    for block in blocks:
        h = run(block, h)
    h.square().mean().backward()
    return [h.detach(), x.grad, *(p.grad.clone() for p in blocks.parameters())]


@REENTRANT
@EACH_CONFIG
def test_checkpointing_changes_no_gradient(config, reentrant, device):
    blocks, x = nn.ModuleList([Block(config), Block(config)]).to(device), leaves(device)[0]
    plain = gradients(blocks, x, lambda block, h: block(h))
    recomputed = gradients(blocks, x, lambda b, h: checkpoint(b, h, use_reentrant=reentrant))
    for ours, theirs in zip(recomputed, plain, strict=True):
        same(ours, theirs)


@REENTRANT
@HALVES
def test_checkpointing_under_autocast_recomputes_the_same(half, reentrant, device):
    blocks, x = nn.ModuleList([Block(Int8TileConfig.paper())]).to(device), leaves(device)[0]
    with torch.autocast(device.type, half):
        plain = gradients(blocks, x, lambda block, h: block(h))
        again = gradients(blocks, x, lambda b, h: checkpoint(b, h, use_reentrant=reentrant))
    for ours, theirs in zip(again, plain, strict=True):
        same(ours, theirs)


@REENTRANT
def test_recomputation_sees_the_forward_it_repeats(reentrant, device):
    """Dropout after a stochastic layer must draw the same mask in both passes."""
    block, masks = Block(Int8TileConfig.paper()).to(device), []
    block.layers[1].register_forward_hook(lambda m, args, out: masks.append(out == 0))
    x = leaves(device)[0]
    torch.manual_seed(1)
    checkpoint(block, x, use_reentrant=reentrant).sum().backward()
    first, second = masks
    same(second, first)


def test_dropout_masks_do_not_depend_on_who_trains(device):
    """The draws of a forward pass are the same with gradients and without."""
    draws = []
    for mode in (torch.enable_grad, torch.no_grad):
        torch.manual_seed(1)
        with mode():
            ops.linear(*leaves(device), grad_rounding="stochastic", **PAPER)
        draws.append(torch.rand(9, device=device))
    same(draws[1], draws[0])
