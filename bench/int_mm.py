"""The baseline that torch alone gives: `torch._int_mm` with row quantisation in torch ops.

It does what torchao's int8 training does: all three GEMMs in int8, each operand quantised along
the axis that is not summed, and the input kept in float for backward.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

INT8_MAX = 127
Operand = tuple[Tensor, Tensor]  # [rows, depth] int8, [rows] float32
Multiply = Callable[[Tensor, Operand], Tensor]


def quantize_rows(matrix: Tensor) -> Operand:
    """Quantize each row to int8 by its absmax."""
    scale = matrix.abs().amax(1).float() / INT8_MAX
    q = (matrix.float() * (1 / scale.clamp(min=1e-12))[:, None]).round().to(torch.int8)
    return q, scale


def multiply(a: Tensor, b: Operand) -> Tensor:
    """Compute a[m, k] @ b[n, k].T, a quantised in the call."""
    a8, a_scale = quantize_rows(a)
    b8, b_scale = b
    product = torch._int_mm(a8.contiguous(), b8.t()) * b_scale * a_scale[:, None]
    return product.to(a.dtype)


def multiply_both(a: Tensor, b: Tensor) -> Tensor:
    """Compute a[m, k] @ b[n, k].T, both quantised in the call."""
    q, scale = quantize_rows(b)
    return multiply(a, (q.contiguous(), scale))


@dataclass(frozen=True)
class Functions:
    """The two products, eager or compiled."""

    with_ready: Callable[[Tensor, Operand], Tensor] = multiply
    with_both: Callable[[Tensor, Tensor], Tensor] = multiply_both

    @classmethod
    def compiled(cls) -> Functions:
        """Let torch.compile fuse the quantisation and the scaling."""
        return cls(
            torch.compile(multiply, dynamic=False), torch.compile(multiply_both, dynamic=False)
        )


@dataclass(frozen=True)
class FrozenWeight:
    """A weight that is not trained, quantised once for forward and once for grad_input."""

    forward: Operand
    backward: Operand

    @classmethod
    def of(cls, weight: Tensor) -> FrozenWeight:
        """Quantize `weight` [n, k] per row and per column."""
        transposed, scale = quantize_rows(weight.t())
        return cls(quantize_rows(weight), (transposed.contiguous(), scale))


class IntMMLinear(torch.autograd.Function):
    """y = x @ w.T + bias with three int8 GEMMs, or two and a ready weight."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401 - torch's context takes any attribute
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        functions: Functions,
        frozen: FrozenWeight | None,
    ) -> Tensor:
        ctx.functions, ctx.frozen = functions, frozen
        ctx.save_for_backward(x if frozen is None else None, weight)
        if frozen is not None:
            return functions.with_ready(x, frozen.forward) + bias
        return functions.with_both(x, weight) + bias

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        x, weight = ctx.saved_tensors
        if ctx.frozen is not None:
            return ctx.functions.with_ready(g, ctx.frozen.backward), None, None, None, None
        grad_x = ctx.functions.with_both(g, weight.t())
        grad_weight = ctx.functions.with_both(x.t(), g.t()).t()  # torchao's order
        return grad_x, grad_weight, g.sum(0), None, None


def int_mm_linear(
    x: Tensor, weight: Tensor, bias: Tensor, functions: Functions, frozen: FrozenWeight | None
) -> Tensor:
    """Apply IntMMLinear; without gradients nothing is saved."""
    result: Tensor = IntMMLinear.apply(x, weight, bias, functions, frozen)
    return result
