"""CPU kernels of the ops: checks and results from the schema, work by the C++ core."""

from __future__ import annotations

from collections.abc import Callable

import torch

from int8tile import _core
from int8tile.ops import schema
from int8tile.ops.views import contiguous, matrix, pointer, vector


def _saved(
    saved_input: torch.Tensor,
    saved_limbs: torch.Tensor,
    input_scale: torch.Tensor,
    outlier_index: torch.Tensor,
    outlier_count: torch.Tensor,
) -> tuple[int, int, int, int, int, int]:
    return (
        saved_input.data_ptr(),
        saved_limbs.data_ptr(),
        input_scale.data_ptr(),
        outlier_index.data_ptr(),
        outlier_count.data_ptr(),
        outlier_index.shape[0],
    )


def _seed(rounding: str, seed: torch.Tensor | None) -> int:
    return int(seed.item()) if seed is not None and rounding == "stochastic" else 0


def linear_forward(
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    threshold: float | None = 5.0,
    outlier_bits: int = 12,
    outlier_capacity: int | None = None,
    granularity: str = "row",
    scale: str = "absmax",
    save: bool = True,
    out_dtype: torch.dtype | None = None,
    packed_weight: torch.Tensor | None = None,
    weight_scale: torch.Tensor | None = None,
) -> tuple[torch.Tensor, ...]:
    """Run y = x @ w.T + bias; see the schema for the results."""
    results = schema.linear_forward(
        input,
        weight,
        bias,
        threshold,
        outlier_bits,
        outlier_capacity,
        granularity,
        scale,
        save,
        out_dtype,
        packed_weight,
        weight_scale,
    )
    output, saved_input, saved_limbs, input_scale, outlier_index, outlier_count = results
    _core.linear_forward(
        matrix(input),
        matrix(weight),
        vector(bias),
        pointer(packed_weight),
        pointer(weight_scale),
        threshold or 0.0,
        outlier_bits,
        outlier_index.shape[0],
        granularity,
        scale,
        pointer(saved_input) if save else 0,
        pointer(saved_limbs) if saved_limbs.numel() else 0,
        input_scale.data_ptr(),
        outlier_index.data_ptr(),
        outlier_count.data_ptr(),
        matrix(output),
        torch.get_num_threads(),
    )
    return results


def quantize_input(
    input: torch.Tensor,
    threshold: float | None = 5.0,
    outlier_bits: int = 12,
    outlier_capacity: int | None = None,
    granularity: str = "row",
    scale: str = "absmax",
    save: bool = True,
) -> tuple[torch.Tensor, ...]:
    """Quantise activations once for several weights; see the schema for the results."""
    results = schema.quantize_input(
        input, threshold, outlier_bits, outlier_capacity, granularity, scale, save
    )
    block, saved_input, saved_limbs, input_scale, outlier_index, outlier_count = results
    _core.quantize_input(
        matrix(input),
        threshold or 0.0,
        outlier_bits,
        outlier_index.shape[0],
        granularity,
        scale,
        pointer(saved_input) if save else 0,
        pointer(saved_limbs) if saved_limbs.numel() else 0,
        block.data_ptr(),
        input_scale.data_ptr(),
        outlier_index.data_ptr(),
        outlier_count.data_ptr(),
        torch.get_num_threads(),
    )
    return results


def linear_multiply(
    block: torch.Tensor,
    input_scale: torch.Tensor,
    outlier_index: torch.Tensor,
    outlier_count: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    granularity: str = "row",
    scale: str = "absmax",
    out_dtype: torch.dtype | None = None,
    packed_weight: torch.Tensor | None = None,
    weight_scale: torch.Tensor | None = None,
) -> torch.Tensor:
    """Multiply quantised activations with one weight."""
    output = schema.linear_multiply(
        block,
        input_scale,
        outlier_index,
        outlier_count,
        weight,
        bias,
        granularity,
        scale,
        out_dtype,
        packed_weight,
        weight_scale,
    )
    _core.linear_multiply(
        block.data_ptr(),
        input_scale.data_ptr(),
        outlier_index.data_ptr(),
        outlier_count.data_ptr(),
        outlier_index.shape[0],
        matrix(weight),
        vector(bias),
        pointer(packed_weight),
        pointer(weight_scale),
        granularity,
        scale,
        matrix(output),
        torch.get_num_threads(),
    )
    return output


def linear_grad_input(
    grad_output: torch.Tensor,
    weight: torch.Tensor,
    granularity: str = "row",
    scale: str = "absmax",
    rounding: str = "nearest",
    seed: torch.Tensor | None = None,
    out_dtype: torch.dtype | None = None,
    packed_weight: torch.Tensor | None = None,
    weight_scale: torch.Tensor | None = None,
) -> torch.Tensor:
    """Run grad_x = g @ w."""
    output = schema.linear_grad_input(
        grad_output,
        weight,
        granularity,
        scale,
        rounding,
        seed,
        out_dtype,
        packed_weight,
        weight_scale,
    )
    _core.linear_grad_input(
        matrix(grad_output),
        matrix(weight),
        pointer(packed_weight),
        pointer(weight_scale),
        granularity,
        scale,
        rounding,
        _seed(rounding, seed),
        matrix(output),
        torch.get_num_threads(),
    )
    return output


def linear_grad_weight(
    grad_output: torch.Tensor,
    saved_input: torch.Tensor,
    saved_limbs: torch.Tensor,
    input_scale: torch.Tensor,
    outlier_index: torch.Tensor,
    outlier_count: torch.Tensor,
    in_features: int,
    granularity: str = "row",
    scale: str = "absmax",
    rounding: str = "nearest",
    seed: torch.Tensor | None = None,
    out_dtype: torch.dtype | None = None,
    with_bias: bool = True,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Run grad_w = g.T @ x and, with_bias, the sum of g over tokens."""
    grad_weight, grad_bias = schema.linear_grad_weight(
        grad_output,
        saved_input,
        saved_limbs,
        input_scale,
        outlier_index,
        outlier_count,
        in_features,
        granularity,
        scale,
        rounding,
        seed,
        out_dtype,
        with_bias,
    )
    _core.linear_grad_weight(
        matrix(grad_output),
        _saved(saved_input, saved_limbs, input_scale, outlier_index, outlier_count),
        granularity,
        scale,
        rounding,
        _seed(rounding, seed),
        matrix(grad_weight),
        pointer(grad_bias) if with_bias else 0,
        torch.get_num_threads(),
    )
    return grad_weight, grad_bias


def linear_backward(
    grad_output: torch.Tensor,
    weight: torch.Tensor,
    saved_input: torch.Tensor,
    saved_limbs: torch.Tensor,
    input_scale: torch.Tensor,
    outlier_index: torch.Tensor,
    outlier_count: torch.Tensor,
    granularity: str = "row",
    scale: str = "absmax",
    rounding: str = "nearest",
    seed: torch.Tensor | None = None,
    out_dtype: torch.dtype | None = None,
    with_bias: bool = True,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Run linear_grad_input and linear_grad_weight with one read of g less."""
    results = schema.linear_backward(
        grad_output,
        weight,
        saved_input,
        saved_limbs,
        input_scale,
        outlier_index,
        outlier_count,
        granularity,
        scale,
        rounding,
        seed,
        out_dtype,
        with_bias,
    )
    grad_input, grad_weight, grad_bias = results
    _core.linear_backward(
        matrix(grad_output),
        matrix(weight),
        _saved(saved_input, saved_limbs, input_scale, outlier_index, outlier_count),
        granularity,
        scale,
        rounding,
        _seed(rounding, seed),
        matrix(grad_input),
        matrix(grad_weight),
        pointer(grad_bias) if with_bias else 0,
        torch.get_num_threads(),
    )
    return results


def pack_weight(
    weight: torch.Tensor, granularity: str = "row", scale: str = "absmax", transpose: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantise a weight into the panels that linear_forward (or, transposed, grad_input) reads."""
    packed, scales = schema.pack_weight(weight, granularity, scale, transpose)
    _core.pack_weight(
        matrix(weight),
        granularity,
        scale,
        transpose,
        packed.data_ptr(),
        scales.data_ptr(),
        torch.get_num_threads(),
    )
    return packed, scales


def quantize(
    input: torch.Tensor,
    fold: torch.Tensor | None = None,
    granularity: str = "row",
    scale: str = "absmax",
    rounding: str = "nearest",
    seed: torch.Tensor | None = None,
    transpose: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantise a matrix per row, or per column and transposed."""
    q, scales = schema.quantize(input, fold, granularity, scale, rounding, seed, transpose)
    fold = contiguous(fold)
    _core.quantize(
        matrix(input),
        pointer(fold),
        granularity,
        scale,
        rounding,
        _seed(rounding, seed),
        0,
        transpose,
        q.data_ptr(),
        scales.data_ptr(),
        torch.get_num_threads(),
    )
    return q, scales


def quantize_split(
    input: torch.Tensor,
    threshold: float | None = 5.0,
    outlier_bits: int = 12,
    outlier_capacity: int | None = None,
    granularity: str = "row",
    scale: str = "absmax",
) -> tuple[torch.Tensor, ...]:
    """Quantise activations with their outlier columns in two limbs."""
    results = schema.quantize_split(
        input, threshold, outlier_bits, outlier_capacity, granularity, scale
    )
    q, high, low, scales, outlier_index, outlier_count = results
    _core.quantize_split(
        matrix(input),
        threshold or 0.0,
        outlier_bits,
        outlier_index.shape[0],
        granularity,
        scale,
        q.data_ptr(),
        high.data_ptr(),
        low.data_ptr(),
        scales.data_ptr(),
        outlier_index.data_ptr(),
        outlier_count.data_ptr(),
        torch.get_num_threads(),
    )
    return results


def gemm(
    a: torch.Tensor,
    b: torch.Tensor,
    a_high: torch.Tensor | None = None,
    b_high: torch.Tensor | None = None,
) -> torch.Tensor:
    """Multiply int8 matrices exactly: ((a_high @ b_high.T) << 7) + a @ b.T."""
    output = schema.gemm(a, b, a_high, b_high)
    a, b = a.contiguous(), b.contiguous()
    a_high, b_high = contiguous(a_high), contiguous(b_high)
    (m, k), n = a.shape, b.shape[0]
    _core.gemm(
        a.data_ptr(),
        m,
        k,
        b.data_ptr(),
        n,
        pointer(a_high),
        pointer(b_high),
        0 if a_high is None else a_high.shape[1],
        output.data_ptr(),
        torch.get_num_threads(),
    )
    return output


KERNELS: dict[str, Callable[..., object]] = {
    "linear_forward": linear_forward,
    "quantize_input": quantize_input,
    "linear_multiply": linear_multiply,
    "linear_grad_input": linear_grad_input,
    "linear_grad_weight": linear_grad_weight,
    "linear_backward": linear_backward,
    "pack_weight": pack_weight,
    "quantize": quantize,
    "quantize_split": quantize_split,
    "gemm": gemm,
}

for _name, _kernel in KERNELS.items():
    schema.LIBRARY.impl(_name, _kernel, "CPU")
