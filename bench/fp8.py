"""Linear layers whose three products are of 8-bit floats, emulated in torch. Start at convert_fp8_.

The structure is int8tile's, so that a comparison tells the number formats apart and nothing else:

    y = x wT          x e4m3 with a scale per token, w e4m3 with a scale per output channel
    grad_x = g w      g with a scale per token, w e4m3 again, with a scale per input feature
    grad_w = gT x     x is the e4m3 of the forward pass; its scales lie on the summed axis, so they
                      are folded into g, which then has a scale per output channel over the tokens

g is e5m2 by default. Operands are 8-bit floats, products are exact in float32 and their sums are
rounded to it. There is no outlier treatment and no rounding but to the nearest even.
Source of the formats: "FP8 Formats for Deep Learning", arXiv 2209.05433.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

import int8tile

E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2
LARGEST = {E4M3: 448.0, E5M2: 57344.0}
ZERO_ABSMAX = 1e-30  # a row whose absmax is below counts as zero, as in int8tile
FLOATS = (torch.float32, torch.bfloat16, torch.float16)


def quantize_fp8(t: Tensor, dtype: torch.dtype, dim: int = -1) -> tuple[Tensor, Tensor]:
    """Round to 8-bit floats under a scale that maps each row's absmax to the largest of them.

        scale = absmax / largest,  q = round_half_even(t * (1 / scale)),  t ~ q * scale

    Args:
        t: [..., k] float32, bfloat16 or float16.
        dtype: float8_e4m3fn (largest 448) or float8_e5m2 (largest 57344).
        dim: The dimension that shares a scale, which a product then sums over.

    Returns:
        q, like t in `dtype`, and the scales in float32 with size 1 at `dim`: real units per unit of
        q. An all-zero row has scale 0 and zeros; one with an inf or a NaN has scale NaN and zeros.

    Raises:
        TypeError: t is of another dtype.
        ValueError: dtype is none of the two.
    """
    if t.dtype not in FLOATS:
        raise TypeError(f"quantize_fp8: t must be float32, bfloat16 or float16; got {t.dtype}")
    if dtype not in LARGEST:
        raise ValueError(f"quantize_fp8: dtype must be one of {list(LARGEST)}; got {dtype}")
    t, largest = t.float(), LARGEST[dtype]
    if t.shape[dim] == 0:
        return t.to(dtype), t.sum(dim, keepdim=True)
    absmax = t.abs().amax(dim, keepdim=True)
    used = absmax.isfinite() & (absmax >= ZERO_ABSMAX)
    scale = absmax / largest
    scaled = torch.where(used, t * (1 / scale), 0)
    scale = torch.where(used, scale, torch.where(absmax.isfinite(), 0.0, math.nan))
    # A cast alone does not saturate in both formats.
    return scaled.clamp(-largest, largest).to(dtype), scale


def _multiply(a: Tensor, b: Tensor) -> Tensor:
    """Compute a[m, k] @ b[k, n] of 8-bit floats in float32, whatever autocast says."""
    with torch.autocast(a.device.type, enabled=False):
        return a.float() @ b.float()


def forward(x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Compute x wT.

    Args:
        x: [m, k] float.
        weight: [n, k] float.

    Returns:
        y [m, n] float32, x [m, k] in e4m3, and its scales [m, 1].
    """
    x8, x_scale = quantize_fp8(x, E4M3)
    w8, w_scale = quantize_fp8(weight, E4M3)
    return _multiply(x8, w8.t()) * x_scale * w_scale.t(), x8, x_scale


def grad_input(g: Tensor, weight: Tensor, grad_dtype: torch.dtype = E5M2) -> Tensor:
    """Compute g w.

    Args:
        g: [m, n] float.
        weight: [n, k] float.
        grad_dtype: Of g.

    Returns:
        [m, k] float32.
    """
    g8, g_scale = quantize_fp8(g, grad_dtype)
    w8, w_scale = quantize_fp8(weight, E4M3, dim=0)
    return _multiply(g8, w8) * g_scale * w_scale


def grad_weight(g: Tensor, x8: Tensor, x_scale: Tensor, grad_dtype: torch.dtype = E5M2) -> Tensor:
    """Compute gT x.

    Args:
        g: [m, n] float.
        x8: [m, k] e4m3, of the forward pass.
        x_scale: [m, 1] its scales.
        grad_dtype: Of g with these scales folded in.

    Returns:
        [n, k] float32.
    """
    g8, g_scale = quantize_fp8(g.float() * x_scale, grad_dtype, dim=0)
    return _multiply(g8.t(), x8) * g_scale.t()


class _Linear(torch.autograd.Function):
    """The three products of one layer."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401 - torch's context takes any attribute
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        grad_dtype: torch.dtype,
    ) -> Tensor:
        y, x8, x_scale = forward(x.reshape(-1, x.shape[-1]), weight)
        kept = (x8, x_scale) if ctx.needs_input_grad[1] else (None, None)
        ctx.save_for_backward(weight, *kept)
        ctx.grad_dtype, ctx.x_shape, ctx.x_dtype = grad_dtype, x.shape, x.dtype
        y = y if bias is None else y + bias.float()
        return y.reshape(*x.shape[:-1], len(weight)).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        weight, x8, x_scale = ctx.saved_tensors
        g = grad_output.reshape(-1, len(weight))
        grads: list[Tensor | None] = [None] * 4
        if ctx.needs_input_grad[0]:
            grad = grad_input(g, weight, ctx.grad_dtype)
            grads[0] = grad.reshape(ctx.x_shape).to(ctx.x_dtype)
        if ctx.needs_input_grad[1]:
            grads[1] = grad_weight(g, x8, x_scale, ctx.grad_dtype).to(weight.dtype)
        if ctx.needs_input_grad[2]:
            grads[2] = g.sum(0, dtype=torch.float32).to(weight.dtype)
        return tuple(grads)


class Fp8Linear(nn.Linear):
    """An nn.Linear with the same parameters whose three products are of 8-bit floats.

    Output and gradients have the dtype of input and parameters. Made by `convert_fp8_`.
    """

    grad_dtype: torch.dtype

    def forward(self, input: Tensor) -> Tensor:
        y: Tensor = _Linear.apply(input, self.weight, self.bias, self.grad_dtype)
        return y

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, grad_dtype={self.grad_dtype}"


def convert_fp8_(
    model: nn.Module,
    grad_dtype: torch.dtype = E5M2,
    **selection: Any,  # noqa: ANN401 - those of convert_
) -> int8tile.nn.ConversionReport:
    """Turn the layers that `int8tile.convert_` would convert into Fp8Linear, in place.

    Parameters, names and hooks stay as they are.

    Args:
        model: Any module.
        grad_dtype: Of the gradients: float8_e5m2, or float8_e4m3fn.
        **selection: `filter_fn`, `skip` and `min_features` of `int8tile.convert_`.

    Returns:
        Its report; the layers it calls converted are Fp8Linear.

    Raises:
        ValueError: grad_dtype is no 8-bit float.
    """
    if grad_dtype not in LARGEST:
        raise ValueError(f"convert_fp8_: grad_dtype must be one of {list(LARGEST)}")
    report = int8tile.convert_(model, **selection)
    for name in report.converted:
        layer: Any = model.get_submodule(name).to_linear()
        layer.__class__, layer.grad_dtype = Fp8Linear, grad_dtype
    report.notes.clear()  # of int8's speed
    return report


def revert_fp8_(model: nn.Module) -> list[str]:
    """Turn every Fp8Linear of `model` back into nn.Linear, in place; give their names."""
    found = [(name, m) for name, m in model.named_modules() if isinstance(m, Fp8Linear)]
    for _, module in found:
        del module.grad_dtype
        module.__class__ = nn.Linear
    return [name for name, _ in found]
