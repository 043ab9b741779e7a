"""The candidates of bench_gpu as functions of x and weight, each differentiable, in torch ops."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

import int_mm
from peers import BITSANDBYTES_THRESHOLD

FP8 = torch.float8_e4m3fn
FP8_MAX = 448.0
RECOMPILE_LIMIT = 64  # every shape of every product has a kernel of its own
BASELINE, INT8TILE = "bf16", "int8-split"
OURS = (BASELINE, "int8", INT8TILE)  # must run and be right; the others may drop out

Product = Callable[[Tensor, Tensor], Tensor]  # a [m, k], b [n, k] -> a @ b.T


@dataclass(frozen=True)
class Arm:
    """A way to run a linear layer without bias.

    Args:
        layer: x [m, k], weight [n, k] -> y [m, n].
        op: The operator that must show up in a profile.
        split: Outlier columns may not cost accuracy.
        waits: It waits for the device, so that no CUDA graph can hold it.
    """

    layer: Product
    op: str
    split: bool = False
    waits: bool = False


class ThreeProducts(torch.autograd.Function):
    """All three GEMMs by one product that quantises both of its operands in the call."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401 - torch's context takes any attribute
        x: Tensor,
        weight: Tensor,
        product: Product,
    ) -> Tensor:
        ctx.product = product
        ctx.save_for_backward(x, weight)
        return product(x, weight)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        x, weight = ctx.saved_tensors
        return ctx.product(g, weight.t()), ctx.product(g.t(), x.t()), None


class SplitLinear(torch.autograd.Function):
    """Outlier columns of x in float beside an int8 GEMM, as in bitsandbytes; backward in float."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:  # noqa: ANN401
        ctx.save_for_backward(x, weight)
        columns = (x.abs().amax(0) > BITSANDBYTES_THRESHOLD).nonzero().flatten()  # a host wait
        if not len(columns):
            return int_mm.multiply_both(x, weight)
        regular = int_mm.multiply_both(x.index_fill(1, columns, 0), weight)
        return regular + x[:, columns] @ weight[:, columns].t()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor]:  # noqa: ANN401
        x, weight = ctx.saved_tensors
        return g @ weight, g.t() @ x


def quantize_rows_fp8(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Scale each row to the range of e4m3; the scales are [rows, 1]."""
    scale = matrix.abs().amax(1, keepdim=True).float() / FP8_MAX
    q = matrix.float() * (1 / scale.clamp(min=1e-12))
    return q.clamp(-FP8_MAX, FP8_MAX).to(FP8).contiguous(), scale


def multiply_fp8(a: Tensor, b: Tensor) -> Tensor:
    """Compute a[m, k] @ b[n, k].T, both quantised in the call."""
    (a8, a_scale), (b8, b_scale) = quantize_rows_fp8(a), quantize_rows_fp8(b)
    return torch._scaled_mm(
        a8, b8.t(), scale_a=a_scale, scale_b=b_scale.t(), out_dtype=a.dtype, use_fast_accum=True
    )


def three_products(product: Product) -> Product:
    """Make a layer of a product."""

    def layer(x: Tensor, weight: Tensor) -> Tensor:
        result: Tensor = ThreeProducts.apply(x, weight, product)
        return result

    return layer


def int8tile_layer(threshold: float | None, capacity: int | None) -> Product:
    """Make a layer of int8tile's op."""

    def layer(x: Tensor, weight: Tensor) -> Tensor:
        result: Tensor = torch.ops.int8tile.linear(
            x,
            weight,
            threshold=threshold,
            outlier_capacity=capacity,
            grad_split=threshold is not None,
        )
        return result

    return layer


def arms(
    threshold: float | None, capacity: int | None, compiled: bool, trains: bool
) -> dict[str, Arm]:
    """List the candidates by name; torch.compile's variants with `compiled`."""
    op = f"int8tile::linear_forward{'' if trains else '_only'}"
    found = {
        BASELINE: Arm(functional.linear, "aten::linear", split=True),
        "int8": Arm(int8tile_layer(None, None), op),
        INT8TILE: Arm(int8tile_layer(threshold, capacity), op, split=True),
        "int_mm": Arm(three_products(int_mm.multiply_both), "aten::_int_mm"),
        "fp8": Arm(three_products(multiply_fp8), "aten::_scaled_mm"),
        "bitsandbytes-style": Arm(SplitLinear.apply, "aten::_int_mm", split=True, waits=True),
    }
    if compiled:
        torch._dynamo.config.recompile_limit = RECOMPILE_LIMIT
        for name, product in (("int_mm", int_mm.multiply_both), ("fp8", multiply_fp8)):
            fused = torch.compile(product, dynamic=False)
            found[f"{name} compiled"] = Arm(three_products(fused), found[name].op)
    return found
