"""CPU kernels of the ops: they fill the checked results through the C++ core."""

from __future__ import annotations

import torch

from int8tile import _core
from int8tile.ops import checks, schema
from int8tile.ops.views import contiguous, matrix, pointer, vector

Tensors = tuple[torch.Tensor, ...]


def linear_forward(
    results: Tensors,
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    threshold: float | None,
    outlier_bits: int,
    _outlier_capacity: int | None,
    granularity: str,
    scale: str,
    _out_dtype: torch.dtype | None,
    packed_weight: torch.Tensor | None,
    weight_scale: torch.Tensor | None,
    outlier_gain: bool,
    weight_absmax: torch.Tensor | None,
) -> None:
    """Run y = x @ w.T + bias and keep x, quantised, for grad_weight."""
    output, saved_input, saved_limbs, input_scale, outlier_index, outlier_count = results
    _core.linear_forward(
        matrix(input),
        matrix(weight),
        vector(bias),
        pointer(packed_weight),
        pointer(weight_scale),
        threshold or 0.0,
        outlier_bits,
        outlier_index.shape[-1],
        granularity,
        scale,
        saved_input.data_ptr(),
        saved_limbs.data_ptr(),
        input_scale.data_ptr(),
        outlier_index.data_ptr(),
        outlier_count.data_ptr(),
        matrix(output),
        torch.get_num_threads(),
        "",
        outlier_gain,
        pointer(weight_absmax),
    )


def linear_forward_only(
    output: torch.Tensor,
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    threshold: float | None,
    outlier_bits: int,
    outlier_capacity: int | None,
    granularity: str,
    scale: str,
    _out_dtype: torch.dtype | None,
    packed_weight: torch.Tensor | None,
    weight_scale: torch.Tensor | None,
    outlier_gain: bool,
    weight_absmax: torch.Tensor | None,
) -> None:
    """Run y = x @ w.T + bias and keep nothing."""
    _core.linear_forward(
        matrix(input),
        matrix(weight),
        vector(bias),
        pointer(packed_weight),
        pointer(weight_scale),
        threshold or 0.0,
        outlier_bits,
        checks.resolve_capacity(
            "int8tile::linear_forward_only",
            input.shape[1],
            threshold,
            outlier_bits,
            outlier_capacity,
        ),
        granularity,
        scale,
        0,
        0,
        0,
        0,
        0,
        matrix(output),
        torch.get_num_threads(),
        "",
        outlier_gain,
        pointer(weight_absmax),
    )


def quantize_input(
    results: Tensors,
    input: torch.Tensor,
    threshold: float | None,
    outlier_bits: int,
    _outlier_capacity: int | None,
    granularity: str,
    scale: str,
    save: bool,
) -> None:
    """Quantise activations once for several weights."""
    block, saved_input, saved_limbs, input_scale, outlier_index, outlier_count = results
    _core.quantize_input(
        matrix(input),
        threshold or 0.0,
        outlier_bits,
        outlier_index.shape[0],
        granularity,
        scale,
        saved_input.data_ptr() if save else 0,
        saved_limbs.data_ptr() if save else 0,
        block.data_ptr(),
        input_scale.data_ptr(),
        outlier_index.data_ptr(),
        outlier_count.data_ptr(),
        torch.get_num_threads(),
    )


def linear_multiply(
    output: torch.Tensor,
    block: torch.Tensor,
    input_scale: torch.Tensor,
    outlier_index: torch.Tensor,
    outlier_count: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    granularity: str,
    scale: str,
    _out_dtype: torch.dtype | None,
    packed_weight: torch.Tensor | None,
    weight_scale: torch.Tensor | None,
) -> None:
    """Multiply quantised activations with one weight."""
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


def _saved(
    saved_input: torch.Tensor,
    saved_limbs: torch.Tensor,
    input_scale: torch.Tensor,
    outlier_index: torch.Tensor,
    outlier_count: torch.Tensor,
) -> tuple[int, int, int, int, int, int, bool]:
    return (
        saved_input.data_ptr(),
        saved_limbs.data_ptr(),
        input_scale.data_ptr(),
        outlier_index.data_ptr(),
        outlier_count.data_ptr(),
        outlier_index.shape[-1],
        outlier_index.dim() == 2,
    )


def _seed(rounding: str, seed: torch.Tensor | None) -> int:
    return int(seed.item()) if seed is not None and rounding == "stochastic" else 0


def linear_grad_input(
    grad_input: torch.Tensor,
    grad_output: torch.Tensor,
    weight: torch.Tensor,
    granularity: str,
    scale: str,
    rounding: str,
    seed: torch.Tensor | None,
    _out_dtype: torch.dtype | None,
    packed_weight: torch.Tensor | None,
    weight_scale: torch.Tensor | None,
) -> None:
    """Run grad_x = g @ w."""
    _core.linear_grad_input(
        matrix(grad_output),
        matrix(weight),
        pointer(packed_weight),
        pointer(weight_scale),
        granularity,
        scale,
        rounding,
        _seed(rounding, seed),
        matrix(grad_input),
        torch.get_num_threads(),
    )


def linear_grad_weight(
    results: Tensors,
    grad_output: torch.Tensor,
    saved_input: torch.Tensor,
    saved_limbs: torch.Tensor,
    input_scale: torch.Tensor,
    outlier_index: torch.Tensor,
    outlier_count: torch.Tensor,
    _in_features: int,
    granularity: str,
    scale: str,
    rounding: str,
    seed: torch.Tensor | None,
    _out_dtype: torch.dtype | None,
    with_bias: bool,
    grad_split: bool,
) -> None:
    """Run grad_w = g.T @ x and, with_bias, the sum of g over tokens."""
    grad_weight, grad_bias = results
    _core.linear_grad_weight(
        matrix(grad_output),
        _saved(saved_input, saved_limbs, input_scale, outlier_index, outlier_count),
        granularity,
        scale,
        rounding,
        _seed(rounding, seed),
        matrix(grad_weight),
        grad_bias.data_ptr() if with_bias else 0,
        torch.get_num_threads(),
        "",
        grad_split,
    )


def linear_backward(
    results: Tensors,
    grad_output: torch.Tensor,
    weight: torch.Tensor,
    saved_input: torch.Tensor,
    saved_limbs: torch.Tensor,
    input_scale: torch.Tensor,
    outlier_index: torch.Tensor,
    outlier_count: torch.Tensor,
    granularity: str,
    scale: str,
    rounding: str,
    seed: torch.Tensor | None,
    _out_dtype: torch.dtype | None,
    with_bias: bool,
    grad_split: bool,
) -> None:
    """Run linear_grad_input and linear_grad_weight with one read of g less."""
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
        grad_bias.data_ptr() if with_bias else 0,
        torch.get_num_threads(),
        "",
        grad_split,
    )


def pack_weight(
    results: Tensors, weight: torch.Tensor, granularity: str, scale: str, transpose: bool
) -> None:
    """Quantise a weight into the panels that linear_forward (or, transposed, grad_input) reads."""
    packed, weight_scale = results
    _core.pack_weight(
        matrix(weight),
        granularity,
        scale,
        transpose,
        packed.data_ptr(),
        weight_scale.data_ptr(),
        torch.get_num_threads(),
    )


def quantize(
    results: Tensors,
    input: torch.Tensor,
    fold: torch.Tensor | None,
    granularity: str,
    scale: str,
    rounding: str,
    seed: torch.Tensor | None,
    transpose: bool,
) -> None:
    """Quantise a matrix per row, or per column and transposed."""
    q, scales = results
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


def quantize_split(
    results: Tensors,
    input: torch.Tensor,
    threshold: float | None,
    outlier_bits: int,
    _outlier_capacity: int | None,
    granularity: str,
    scale: str,
) -> None:
    """Quantise activations with their outlier columns in two limbs."""
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


def gemm(
    output: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    a_high: torch.Tensor | None,
    b_high: torch.Tensor | None,
) -> None:
    """Multiply int8 matrices exactly: ((a_high @ b_high.T) << 7) + a @ b.T."""
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


schema.implement("CPU", globals())
