"""The torch ops: the checks and empty results that every kernel starts from; see definitions."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any

import torch

from int8tile.config import check_options
from int8tile.ops import checks
from int8tile.ops.checks import (
    MAX_GEMM_DEPTH,
    check_device,
    check_float,
    check_gain,
    check_layout,
    check_linear,
    check_matrix,
    check_out_dtype,
    check_packed,
    check_seed,
    resolve_capacity,
    shape_of,
)
from int8tile.ops.definitions import LIBRARY


def linear_forward_only(
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    threshold: float | None = 5.0,
    outlier_bits: int = 12,
    outlier_capacity: int | None = None,
    granularity: str = "row",
    scale: str = "absmax",
    out_dtype: torch.dtype | None = None,
    packed_weight: torch.Tensor | None = None,
    weight_scale: torch.Tensor | None = None,
    outlier_gain: bool = False,
    weight_absmax: torch.Tensor | None = None,
    *,
    who: str = "int8tile::linear_forward_only",
) -> torch.Tensor:
    """Checks, and the empty result, of int8tile::linear_forward_only."""
    check_options(who, threshold, outlier_bits, granularity, scale)
    check_matrix(who, input=input)
    check_linear(who, input, weight, bias)
    n, k = weight.shape
    check_out_dtype(who, out_dtype)
    check_packed(who, input, packed_weight, weight_scale, n, k)
    check_gain(who, input, outlier_gain, packed_weight, weight_absmax, n)
    resolve_capacity(who, int(k), threshold, outlier_bits, outlier_capacity)
    return input.new_empty((input.shape[0], n), dtype=out_dtype or input.dtype)


def linear_forward(
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    threshold: float | None = 5.0,
    outlier_bits: int = 12,
    outlier_capacity: int | None = None,
    granularity: str = "row",
    scale: str = "absmax",
    out_dtype: torch.dtype | None = None,
    packed_weight: torch.Tensor | None = None,
    weight_scale: torch.Tensor | None = None,
    outlier_gain: bool = False,
    weight_absmax: torch.Tensor | None = None,
) -> tuple[torch.Tensor, ...]:
    """Checks, and empty results, of int8tile::linear_forward."""
    who = "int8tile::linear_forward"
    split = (threshold, outlier_bits, outlier_capacity)
    packed = (packed_weight, weight_scale)
    gain = (outlier_gain, weight_absmax)
    output = linear_forward_only(
        input, weight, bias, *split, granularity, scale, out_dtype, *packed, *gain, who=who
    )
    capacity = resolve_capacity(who, int(input.shape[1]), *split)
    return output, *_saved_input(input, capacity, gain=outlier_gain)


def _saved_input(
    input: torch.Tensor, capacity: int, save: bool = True, gain: bool = False
) -> tuple[torch.Tensor, ...]:
    (m, k), device = input.shape, input.device
    empty, nothing = input.new_empty, (0, 0)
    return (
        empty(checks.panel_shape(k, m, device) if save else nothing, dtype=torch.uint8),
        empty(
            checks.panel_shape(capacity, m, device) if save and capacity else nothing,
            dtype=torch.uint8,
        ),
        empty((m,), dtype=torch.float32),
        empty((2, capacity) if gain else (capacity,), dtype=torch.int32),
        empty((2,), dtype=torch.int32),
    )


def quantize_input(
    input: torch.Tensor,
    threshold: float | None = 5.0,
    outlier_bits: int = 12,
    outlier_capacity: int | None = None,
    granularity: str = "row",
    scale: str = "absmax",
    save: bool = True,
) -> tuple[torch.Tensor, ...]:
    """Checks, and empty results, of int8tile::quantize_input."""
    who = "int8tile::quantize_input"
    check_options(who, threshold, outlier_bits, granularity, scale)
    check_matrix(who, input=input)
    check_float(who, input=input)
    m, k = input.shape
    if k > MAX_GEMM_DEPTH:
        raise ValueError(f"{who}: input must have at most {MAX_GEMM_DEPTH} features; got {k}")
    capacity = resolve_capacity(who, int(k), threshold, outlier_bits, outlier_capacity)
    block = input.new_empty((checks.block_bytes(m, k, capacity, input.device),), dtype=torch.uint8)
    return block, *_saved_input(input, capacity, save)


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
    """Checks, and the empty result, of int8tile::linear_multiply."""
    who = "int8tile::linear_multiply"
    check_options(who, None, 12, granularity, scale)
    check_matrix(who, weight=weight)
    check_float(who, weight=weight, bias=bias)
    check_device(
        who,
        block,
        input_scale=input_scale,
        outlier_index=outlier_index,
        outlier_count=outlier_count,
        weight=weight,
        bias=bias,
    )
    check_out_dtype(who, out_dtype)
    if outlier_index.dim() != 1:
        raise ValueError(
            f"{who}: outlier_index must be [capacity], of a forward without outlier_gain; "
            f"got {shape_of(outlier_index)}"
        )
    n, k = weight.shape
    if k > MAX_GEMM_DEPTH:
        raise ValueError(f"{who}: weight must have at most {MAX_GEMM_DEPTH} features; got {k}")
    m, capacity = input_scale.shape[0], outlier_index.shape[0]
    for name, tensor, dtype, shape in (
        ("block", block, torch.uint8, (checks.block_bytes(m, k, capacity, block.device),)),
        ("input_scale", input_scale, torch.float32, (m,)),
        ("outlier_index", outlier_index, torch.int32, (capacity,)),
        ("outlier_count", outlier_count, torch.int32, (2,)),
    ):
        check_layout(who, name, tensor, dtype, shape)
    if bias is not None and tuple(bias.shape) != (n,):
        raise ValueError(f"{who}: bias must be [{n}]; got {shape_of(bias)}")
    check_packed(who, weight, packed_weight, weight_scale, n, k)
    return weight.new_empty((m, n), dtype=out_dtype or weight.dtype)


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
    *,
    who: str = "int8tile::linear_grad_input",
) -> torch.Tensor:
    """Checks, and the empty result, of int8tile::linear_grad_input."""
    check_options(who, None, 12, granularity, scale, rounding)
    check_matrix(who, grad_output=grad_output, weight=weight)
    check_float(who, grad_output=grad_output, weight=weight)
    check_device(who, grad_output, weight=weight)
    check_seed(who, rounding, seed, grad_output.device)
    check_out_dtype(who, out_dtype)
    if grad_output.shape[1] != weight.shape[0]:
        raise ValueError(
            f"{who}: weight must be [{grad_output.shape[1]}, k] to match grad_output "
            f"{shape_of(grad_output)}; got {shape_of(weight)}"
        )
    n, k = weight.shape
    check_packed(who, grad_output, packed_weight, weight_scale, k, n)
    return grad_output.new_empty((grad_output.shape[0], k), dtype=out_dtype or grad_output.dtype)


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
    grad_split: bool = True,
    *,
    who: str = "int8tile::linear_grad_weight",
) -> tuple[torch.Tensor, torch.Tensor]:
    """Checks, and empty results, of int8tile::linear_grad_weight."""
    check_options(who, None, 12, granularity, scale, rounding)
    check_matrix(who, grad_output=grad_output)
    check_float(who, grad_output=grad_output)
    check_device(
        who,
        grad_output,
        saved_input=saved_input,
        saved_limbs=saved_limbs,
        input_scale=input_scale,
        outlier_index=outlier_index,
        outlier_count=outlier_count,
    )
    check_seed(who, rounding, seed, grad_output.device)
    check_out_dtype(who, out_dtype)
    m, n = grad_output.shape
    wanted = checks.panel_shape(in_features, m, grad_output.device)
    if saved_input.dtype != torch.uint8 or tuple(saved_input.shape) != wanted:
        raise ValueError(
            f"{who}: saved_input must be what int8tile::linear_forward saved for "
            f"[{m}, {in_features}], uint8 {list(wanted)}; got {saved_input.dtype} "
            f"{shape_of(saved_input)}"
        )
    index = checks.index_shape(outlier_index)
    capacity = index[-1]
    limbs = checks.panel_shape(capacity, m, grad_output.device) if capacity else (0, 0)
    for name, tensor, dtype, shape in (
        ("saved_input", saved_input, torch.uint8, wanted),
        ("input_scale", input_scale, torch.float32, (m,)),
        ("outlier_index", outlier_index, torch.int32, index),
        ("saved_limbs", saved_limbs, torch.uint8, limbs),
        ("outlier_count", outlier_count, torch.int32, (2,)),
    ):
        check_layout(who, name, tensor, dtype, shape)
    return (
        grad_output.new_empty((n, in_features), dtype=out_dtype or grad_output.dtype),
        grad_output.new_empty((n if with_bias else 0,), dtype=torch.float32),
    )


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
    grad_split: bool = True,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Checks, and empty results, of int8tile::linear_backward."""
    who = "int8tile::linear_backward"
    grad_input = linear_grad_input(
        grad_output, weight, granularity, scale, rounding, seed, out_dtype, who=who
    )
    grad_weight, grad_bias = linear_grad_weight(
        grad_output,
        saved_input,
        saved_limbs,
        input_scale,
        outlier_index,
        outlier_count,
        weight.shape[1],
        granularity,
        scale,
        rounding,
        seed,
        weight.dtype,
        with_bias,
        grad_split,
        who=who,
    )
    return grad_input, grad_weight, grad_bias


def pack_weight(
    weight: torch.Tensor, granularity: str = "row", scale: str = "absmax", transpose: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """Checks, and empty results, of int8tile::pack_weight."""
    who = "int8tile::pack_weight"
    check_options(who, None, 12, granularity, scale)
    check_matrix(who, weight=weight)
    check_float(who, weight=weight)
    rows, depth = (weight.shape[1], weight.shape[0]) if transpose else weight.shape
    return (
        weight.new_empty(checks.panel_shape(rows, depth, weight.device), dtype=torch.uint8),
        weight.new_empty((rows,), dtype=torch.float32),
    )


def quantize(
    input: torch.Tensor,
    fold: torch.Tensor | None = None,
    granularity: str = "row",
    scale: str = "absmax",
    rounding: str = "nearest",
    seed: torch.Tensor | None = None,
    transpose: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Checks, and empty results, of int8tile::quantize."""
    who = "int8tile::quantize"
    check_options(who, None, 12, granularity, scale, rounding)
    check_matrix(who, input=input)
    check_float(who, input=input)
    check_device(who, input, fold=fold)
    check_seed(who, rounding, seed, input.device)
    rows, cols = input.shape
    if fold is not None and (fold.dtype != torch.float32 or tuple(fold.shape) != (rows,)):
        raise ValueError(
            f"{who}: fold must be float32 [{rows}] to match input {shape_of(input)}; "
            f"got {fold.dtype} {shape_of(fold)}"
        )
    shape = (cols, rows) if transpose else (rows, cols)
    return (
        input.new_empty(shape, dtype=torch.int8),
        input.new_empty((shape[0],), dtype=torch.float32),
    )


def quantize_split(
    input: torch.Tensor,
    threshold: float | None = 5.0,
    outlier_bits: int = 12,
    outlier_capacity: int | None = None,
    granularity: str = "row",
    scale: str = "absmax",
) -> tuple[torch.Tensor, ...]:
    """Checks, and empty results, of int8tile::quantize_split."""
    who = "int8tile::quantize_split"
    check_options(who, threshold, outlier_bits, granularity, scale)
    check_matrix(who, input=input)
    check_float(who, input=input)
    m, k = input.shape
    capacity = resolve_capacity(who, int(k), threshold, outlier_bits, outlier_capacity)
    empty = input.new_empty
    return (
        empty((m, k), dtype=torch.int8),
        empty((m, capacity), dtype=torch.int8),
        empty((m, capacity), dtype=torch.int8),
        empty((m,), dtype=torch.float32),
        empty((capacity,), dtype=torch.int32),
        empty((2,), dtype=torch.int32),
    )


def gemm(
    a: torch.Tensor,
    b: torch.Tensor,
    a_high: torch.Tensor | None = None,
    b_high: torch.Tensor | None = None,
) -> torch.Tensor:
    """Checks, and the empty result, of int8tile::gemm."""
    who = "int8tile::gemm"
    check_device(who, a, b=b, a_high=a_high, b_high=b_high)
    pairs = [("a", a, "b", b)]
    if a_high is not None or b_high is not None:
        if a_high is None or b_high is None:
            raise ValueError(f"{who}: a_high and b_high must be given together; got one of them")
        if a_high.shape[0] != a.shape[0] or b_high.shape[0] != b.shape[0]:
            raise ValueError(
                f"{who}: a_high must be [{a.shape[0]}, h] and b_high [{b.shape[0]}, h]; "
                f"got {shape_of(a_high)} and {shape_of(b_high)}"
            )
        pairs.append(("a_high", a_high, "b_high", b_high))
    for left_name, left, right_name, right in pairs:
        check_matrix(who, **{left_name: left, right_name: right})
        if left.dtype != torch.int8 or right.dtype != torch.int8:
            raise TypeError(
                f"{who}: {left_name} and {right_name} must be int8; "
                f"got {left.dtype} and {right.dtype}"
            )
        if left.shape[1] != right.shape[1]:
            raise ValueError(
                f"{who}: {right_name} must be [n, {left.shape[1]}] to match {left_name} "
                f"{shape_of(left)}; got {shape_of(right)}"
            )
    depth = a.shape[1] + (0 if a_high is None else 128 * a_high.shape[1])
    if depth >= MAX_GEMM_DEPTH:
        raise ValueError(
            f"{who}: k + 128 * high columns must be below {MAX_GEMM_DEPTH} so that every sum "
            f"fits int32; got {depth}"
        )
    return a.new_empty((a.shape[0], b.shape[0]), dtype=torch.int32)


Results = torch.Tensor | tuple[torch.Tensor, ...]
Check = Callable[..., Results]
Kernel = Callable[..., None]

CHECKS: dict[str, Check] = {
    check.__name__: check
    for check in (
        linear_forward,
        linear_forward_only,
        quantize_input,
        linear_multiply,
        linear_grad_input,
        linear_grad_weight,
        linear_backward,
        pack_weight,
        quantize,
        quantize_split,
        gemm,
    )
}


def checked(kernel: Kernel) -> Check:
    """The op named like `kernel(results, *arguments)`, which fills the results of its check."""
    check = CHECKS[kernel.__name__]
    parameters = inspect.signature(check).parameters.values()
    taken = [each for each in parameters if each.kind is each.POSITIONAL_OR_KEYWORD]
    defaults = tuple(each.default for each in taken)

    @wraps(kernel)
    def run(*arguments: object) -> Results:
        # The dispatcher leaves out trailing arguments that equal their defaults.
        arguments += defaults[len(arguments) :]
        results = check(*arguments)
        kernel(results, *arguments)
        return results

    return run


def implement(device: str, kernels: Mapping[str, Any]) -> None:
    """Register the kernels of one device: its module's functions named like the ops."""
    for name in CHECKS:
        LIBRARY.impl(name, checked(kernels[name]), device)


for _name, _check in CHECKS.items():
    torch.library.register_fake(f"int8tile::{_name}", _check, lib=LIBRARY)
