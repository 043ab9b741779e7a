"""The emulated 8-bit floats that int8 is compared with: values, products, gradients, conversion."""

import copy
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

import int8tile
from helpers import TINY_LAYERS, TinyModel, activations, close, randn, same, tensors

BENCH = Path(__file__).resolve().parents[1] / "bench"
FORMATS = {"e4m3": (3, -6, 448.0), "e5m2": (2, -14, 57344.0)}  # fraction bits, least exponent


@pytest.fixture
def fp8(monkeypatch):
    monkeypatch.syspath_prepend(BENCH)
    import fp8

    return fp8


@pytest.fixture(params=FORMATS)
def name(request):
    return request.param


def dtype_of(fp8, name):
    return {"e4m3": fp8.E4M3, "e5m2": fp8.E5M2}[name]


def rounded(values, name):
    """The nearest 8-bit float, ties to even, by arithmetic in float64."""
    fraction, least, largest = FORMATS[name]
    values = np.asarray(values, np.float64)
    exponent = np.floor(np.log2(np.maximum(np.abs(values), 2.0**least)))
    step = 2.0 ** (exponent - fraction)
    return np.clip(np.rint(values / step) * step, -largest, largest)


def by_hand(t, name, axis):
    """What `quantize_fp8` stands for, [rows, cols] in float64: q and scales."""
    t = t.detach().numpy()
    absmax = np.abs(t).max(axis, keepdims=True)
    scale = absmax / np.float32(FORMATS[name][2])
    return rounded(t * (np.float32(1) / scale), name), scale.astype(np.float64)


def test_values_are_the_nearest_ones(fp8, name):
    t = activations(40, 70) * torch.logspace(-6, 6, 40)[:, None]
    for dim in (0, 1):
        q, scale = fp8.quantize_fp8(t, dtype_of(fp8, name), dim)
        wanted, wanted_scale = by_hand(t, name, dim)
        assert np.array_equal(q.float().numpy(), wanted)
        assert np.array_equal(scale.double().numpy(), wanted_scale)
        assert q.float().abs().max() == FORMATS[name][2]


def test_representable_values_are_exact(fp8, name):
    dtype = dtype_of(fp8, name)
    values = torch.arange(256).to(torch.uint8).view(dtype).float()
    values = values[values.isfinite()].reshape(1, -1)
    for power in (1.0, 2.0**-20, 2.0**20):
        q, scale = fp8.quantize_fp8(values * power, dtype)
        assert torch.equal(q.float() * scale, values * power)


def test_ties_go_to_even_and_the_top_saturates(fp8):
    t = torch.tensor([[448.0, 17.0, 19.0, 21.0, 2.0**-10, 3 * 2.0**-10]])
    q, _ = fp8.quantize_fp8(t, fp8.E4M3)
    assert q.float().tolist() == [[448.0, 16.0, 20.0, 20.0, 0.0, 2.0**-8]]
    t = randn(200, 3) * 1e5  # rounded inverses may carry the largest beyond the top
    for dtype in fp8.LARGEST:
        assert fp8.quantize_fp8(t, dtype)[0].float().isfinite().all()


def test_special_rows(fp8, name):
    t = torch.ones(5, 4)
    t[1], t[2, 0], t[3, 3], t[4] = 0, math.inf, math.nan, 1e-31
    q, scale = fp8.quantize_fp8(t, dtype_of(fp8, name))
    same(q[1:].float(), torch.zeros(4, 4))
    nan = math.nan
    same(scale[1:], torch.tensor([[0.0], [nan], [nan], [0.0]]))
    q, scale = fp8.quantize_fp8(torch.ones(0, 4), dtype_of(fp8, name), 0)
    assert (q.shape, scale.tolist()) == ((0, 4), [[0.0] * 4])


def layer_of(fp8, w, bias, grad_dtype=None):
    layer = nn.Linear(w.shape[1], w.shape[0], bias=bias is not None)
    layer.weight = nn.Parameter(w.detach().clone())
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach().clone())
    how = {} if grad_dtype is None else {"grad_dtype": grad_dtype}
    assert fp8.convert_fp8_(layer, **how).converted == [""]
    return layer


@pytest.mark.parametrize("grad", ["e5m2", "e4m3"])
def test_products_are_those_by_hand(fp8, grad):
    x, w, bias, g = tensors(30)
    layer = layer_of(fp8, w, bias, dtype_of(fp8, grad))
    y = layer(x)
    y.backward(g)
    x8, x_scale = by_hand(x, "e4m3", 1)
    w8, w_scale = by_hand(w, "e4m3", 1)
    g8, g_scale = by_hand(g, grad, 1)
    wt8, wt_scale = by_hand(w, "e4m3", 0)
    folded, folded_scale = by_hand(g * torch.from_numpy(x_scale).float(), grad, 0)
    wanted = {
        "y": (y, (x8 * x_scale) @ (w8 * w_scale).T + bias.detach().numpy()),
        "grad_x": (x.grad, (g8 * g_scale) @ (wt8 * wt_scale)),
        "grad_w": (layer.weight.grad, (folded * folded_scale).T @ x8),
        "grad_bias": (layer.bias.grad, g.double().sum(0).numpy()),
    }
    for got, exact in wanted.values():
        close(got.detach(), torch.from_numpy(exact), 1e-6)


def test_the_error_is_that_of_eight_bits_and_above_zero(fp8):
    x, w, bias, g = tensors(64, k=128)
    plain = [t.detach().clone().requires_grad_() for t in (x, w, bias)]
    exact = functional.linear(*plain)
    exact.backward(g)
    layer = layer_of(fp8, w, bias)
    y = layer(x)
    y.backward(g)
    for got, wanted in ((y, exact), (x.grad, plain[0].grad), (layer.weight.grad, plain[1].grad)):
        error = float(((got - wanted).norm() / wanted.norm()).detach())
        assert 0.01 < error < 0.1
    close(layer.bias.grad, plain[2].grad, 1e-6)


def test_a_non_finite_token_is_nan_and_the_others_are_as_before(fp8):
    x, w, bias, g = tensors(6, needs="")
    layer = layer_of(fp8, w, bias)
    clean = layer(x)
    x[2, 5] = math.inf
    y = layer(x)
    assert y[2].isnan().all()
    keep = [0, 1, 3, 4, 5]
    same(y[keep], clean[keep])
    y.backward(g)
    assert layer.weight.grad.isnan().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_shapes_and_dtypes_are_those_of_nn_linear(fp8, dtype):
    x, w, bias, g = tensors(2, 3, dtype=dtype)
    layer = layer_of(fp8, w, bias)
    y = layer(x)
    y.backward(g)
    assert (y.shape, y.dtype) == ((2, 3, 66), dtype)
    assert (x.grad.shape, x.grad.dtype) == (x.shape, dtype)
    assert layer.weight.grad.dtype == layer.bias.grad.dtype == dtype


def test_autocast_leaves_the_products_alone(fp8):
    x, w, bias, _ = tensors(5)
    layer = layer_of(fp8, w, bias)
    with torch.autocast("cpu", torch.bfloat16):
        same(layer(x), layer(x.detach()))
        inside = layer(x)
    same(inside, layer(x))


def test_conversion_selects_what_int8tile_does_and_shares_parameters(fp8):
    model = TinyModel()
    before = copy.deepcopy(model)
    parameters = dict(model.named_parameters())
    wanted = int8tile.convert_(copy.deepcopy(model))
    report = fp8.convert_fp8_(model)
    assert report.converted == wanted.converted == TINY_LAYERS
    assert report.skipped == wanted.skipped
    assert all(type(model.get_submodule(n)) is fp8.Fp8Linear for n in TINY_LAYERS)
    assert all(p is parameters[n] for n, p in model.named_parameters())
    ids = torch.arange(20).reshape(2, 10)
    assert 0 < (model(ids) - before(ids)).norm() / before(ids).norm() < 0.1
    assert fp8.revert_fp8_(model) == TINY_LAYERS
    same(model(ids), before(ids))


def test_refusals(fp8):
    with pytest.raises(TypeError, match=r"t must be float32.* got torch.float64"):
        fp8.quantize_fp8(torch.ones(2, 2, dtype=torch.float64), fp8.E4M3)
    with pytest.raises(ValueError, match=r"dtype must be one of .* got torch.int8"):
        fp8.quantize_fp8(torch.ones(2, 2), torch.int8)
    with pytest.raises(ValueError, match="grad_dtype must be one of"):
        fp8.convert_fp8_(nn.Linear(4, 4), torch.float16)
