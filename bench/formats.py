"""Number formats of a linear layer, and how far each takes its three products from float32."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import int8tile
from fp8 import E4M3, convert_fp8_, quantize_fp8, revert_fp8_
from int8tile import Int8TileConfig
from int8tile.analysis import Cosine, SignalToNoise

PRODUCTS = ("y", "grad_x", "grad_w")
LEAST_FEATURES = 64  # a classifier of two outputs is no layer to compare formats with
INT8_NOISE_DB = 20 * math.log10(127 * math.sqrt(12))  # 52.9: absmax over the noise of its steps
Conversion = Callable[[nn.Module], object]


def _int8(**options: Any) -> Conversion:  # noqa: ANN401 - fields of the config
    return lambda model: int8tile.convert_(model, Int8TileConfig(**options))


# A model becomes an arm in place; bf16 is a matter of dtypes, see `products`.
ARMS: Mapping[str, Conversion] = {
    "bf16": lambda model: None,
    "int8-tensor": _int8(threshold=None, granularity="tensor", grad_split=False),
    "int8": _int8(threshold=None, grad_split=False),
    "int8-split": _int8(),
    "int8-gain": _int8(outlier_gain=True),
    "fp8": convert_fp8_,
    "fp8-e4m3": lambda model: convert_fp8_(model, E4M3),
}


@contextmanager
def as_arm(model: nn.Module, arm: str) -> Iterator[None]:
    """Turn a float32 model into an arm for a while ("fp32": leave it)."""
    if arm != "fp32":
        ARMS[arm](model)
    try:
        yield
    finally:
        int8tile.revert_(model)
        revert_fp8_(model)


@dataclass
class Call:
    """What one call of a linear layer multiplies.

    Args:
        x: [m, k] input.
        weight: [n, k].
        g: [m, n] gradient of the output.
    """

    x: Tensor
    weight: Tensor
    g: Tensor


@contextmanager
def recorded(model: nn.Module) -> Iterator[dict[str, Call]]:
    """Keep what every linear layer multiplies in the one training step inside, by its name.

    Layers with fewer than 64 input or output features are left out.
    """
    calls: dict[str, Call] = {}
    handles = []

    def hook(name: str) -> Callable[..., None]:
        def keep(module: nn.Linear, args: tuple[Tensor, ...], y: Tensor) -> None:
            x = args[0].detach().reshape(-1, module.in_features).clone()
            call = calls[name] = Call(x, module.weight.detach(), x.new_zeros(0))

            def keep_gradient(g: Tensor) -> None:
                call.g = g.reshape(-1, module.out_features).clone()

            y.register_hook(keep_gradient)

        return keep

    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and min(module.weight.shape) >= LEAST_FEATURES:
            handles.append(module.register_forward_hook(hook(name)))
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def products(call: Call, arm: str) -> dict[str, Tensor]:
    """Run one layer in a format, by the module that training uses; give `PRODUCTS` in float32."""
    n, k = call.weight.shape
    layer = nn.utils.skip_init(nn.Linear, k, n, bias=False)
    layer.weight = nn.Parameter(call.weight)
    dtype = torch.bfloat16 if arm == "bf16" else torch.float32
    layer.to(dtype)
    if arm != "fp32":
        ARMS[arm](layer)
    x = call.x.detach().to(dtype).requires_grad_()
    y = layer(x)
    y.backward(call.g.to(dtype))
    results = (y.detach(), x.grad, layer.weight.grad)
    return {name: t.float() for name, t in zip(PRODUCTS, results, strict=True) if t is not None}


def snr_db(exact: Tensor, got: Tensor) -> float | None:
    """Give the signal-to-noise ratio in dB; None without a signal."""
    ratio = SignalToNoise()
    ratio.add(exact, got)
    return ratio.db


def cosine(exact: Tensor, got: Tensor) -> float | None:
    """Give the cosine of two tensors; None where one is zero."""
    angle = Cosine()
    angle.add(exact, got)
    return angle.value


def crest_db(t: Tensor, dim: int = -1) -> float:
    """Give absmax over rms of rows, in dB, each row weighted by its energy.

    The noise of int8 with row scales is absmax**2 / (12 * 127**2) a value, so its signal-to-noise
    ratio is 52.9 dB less this. An 8-bit float's has little to do with it.
    """
    t = t.double()
    peaks = t.abs().amax(dim).square().sum() * t.shape[dim]
    return 10 * math.log10(float(peaks / t.square().sum()))


def operand_db(t: Tensor, arm: str, dtype: torch.dtype = E4M3) -> float | None:
    """Give the signal-to-noise ratio of rows as an arm multiplies them: "int8" or "fp8"."""
    if arm == "int8":
        q, scale = torch.ops.int8tile.quantize(t)
        return snr_db(t, q.float() * scale[:, None])
    q, scale = quantize_fp8(t, dtype)
    return snr_db(t, q.float() * scale)


def outliers(x: Tensor, threshold: float = 5.0) -> dict[str, int]:
    """Count the columns above a threshold, and those that the default capacity does not hold."""
    capacity = int8tile.plan(len(x), x.shape[1], x.shape[1]).capacity
    found = int((x.abs().amax(0) > threshold).sum())
    return {"found": found, "capacity": capacity, "overflow": max(0, found - capacity)}
