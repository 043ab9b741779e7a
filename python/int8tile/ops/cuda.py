"""CUDA kernels of the ops: they fill the checked results through the C++ core.

Nothing here waits for the device, and all memory comes from torch's caching allocator. A build
without the CUDA backend refuses tensors on CUDA with one clear error.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NoReturn

import torch

from int8tile import _core
from int8tile.ops import checks, schema
from int8tile.ops.definitions import LIBRARY
from int8tile.ops.views import contiguous, matrix, pointer

Tensors = tuple[torch.Tensor, ...]

_BLOCK_ALIGN = 64
# What bounds gains: the weight, the absmax of its rows, and whether that is filled in
_Gains = tuple[torch.Tensor, torch.Tensor, bool]
# (device index, stream, address of the workspace), and the workspace, to keep it alive
_Call = tuple[tuple[int, int, int], torch.Tensor]


def _current_stream(tensor: torch.Tensor) -> tuple[int, int]:
    index = tensor.device.index or 0
    return index, torch.cuda.current_stream(tensor.device).cuda_stream


def _workspace(tensor: torch.Tensor, size: int) -> torch.Tensor:
    return tensor.new_empty((size,), dtype=torch.uint8)


def _call(tensor: torch.Tensor, size: int) -> _Call:
    # The allocator hands memory out in the order of the stream, so it may be freed on return.
    workspace = _workspace(tensor, size)
    return (*_current_stream(tensor), workspace.data_ptr()), workspace


def _limb_starts(m: int, in_features: int, capacity: int) -> tuple[int, int]:
    """Where a block has its high limbs, and its low limbs if they have a panel."""
    widths = (checks.round_up(size, checks.DEPTH_ALIGN) for size in (in_features, capacity))
    regular, limbs = (checks.round_up(m * width, _BLOCK_ALIGN) for width in widths)
    return regular, regular + limbs


def _input(
    block: torch.Tensor | None,
    saved_input: torch.Tensor | None,
    saved_limbs: torch.Tensor | None,
    input_scale: torch.Tensor,
    outlier_index: torch.Tensor,
    outlier_count: torch.Tensor,
    in_features: int,
    low_apart: bool = False,
) -> tuple[int, int, int, int, int, int, int, int, int, int]:
    values, capacity = pointer(block), outlier_index.shape[-1]
    high, low = _limb_starts(input_scale.shape[0], in_features, capacity)
    index = outlier_index.data_ptr()
    gain = index + capacity * outlier_index.element_size() if outlier_index.dim() == 2 else 0
    low_apart = low_apart or in_features > checks.MAX_GEMM_DEPTH
    return (
        values,
        values + high if values else 0,
        values + low if values and low_apart else 0,
        pointer(saved_input),
        pointer(saved_limbs),
        input_scale.data_ptr(),
        index,
        outlier_count.data_ptr(),
        gain,
        capacity,
    )


def _multiply(
    block: torch.Tensor,
    input_scale: torch.Tensor,
    outlier_index: torch.Tensor,
    outlier_count: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    options: tuple[str, str],
    packed_weight: torch.Tensor | None,
    weight_scale: torch.Tensor | None,
    output: torch.Tensor,
    weight_absmax: torch.Tensor | None = None,
) -> None:
    (n, k), m, capacity = weight.shape, input_scale.shape[0], outlier_index.shape[-1]
    as_packed = packed_weight is not None and outlier_index.dim() == 1
    call, _kept = _call(weight, _core.cuda_multiply_workspace(m, n, k, capacity, as_packed))
    bias = None if bias is None else bias.float().contiguous()
    _core.cuda_linear_multiply(
        call,
        m,
        _input(block, None, None, input_scale, outlier_index, outlier_count, k),
        matrix(weight),
        (pointer(packed_weight), pointer(weight_scale)),
        pointer(weight_absmax),
        options,
        pointer(bias),
        matrix(output),
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
    block, *rest = results
    _quantize_into(input, threshold, outlier_bits, (granularity, scale), save, block, rest)


def _quantize_into(
    input: torch.Tensor,
    threshold: float | None,
    outlier_bits: int,
    options: tuple[str, str],
    save: bool,
    block: torch.Tensor,
    rest: list[torch.Tensor],
    low_apart: bool = False,
    gains: _Gains | None = None,
) -> None:
    saved_input, saved_limbs, input_scale, outlier_index, outlier_count = rest
    call, _kept = _call(input, _core.cuda_quantize_workspace(*input.shape))
    _core.cuda_quantize_input(
        call,
        matrix(input),
        threshold or 0.0,
        outlier_bits,
        options,
        None if gains is None else (matrix(gains[0]), gains[1].data_ptr(), gains[2]),
        _input(
            block,
            saved_input if save else None,
            saved_limbs if save and saved_limbs.numel() else None,
            input_scale,
            outlier_index,
            outlier_count,
            input.shape[1],
            low_apart,
        ),
    )


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
    output, *saved = results
    _forward(
        input,
        weight,
        bias,
        threshold,
        outlier_bits,
        (granularity, scale),
        packed_weight,
        weight_scale,
        output,
        saved,
        True,
        outlier_gain,
        weight_absmax,
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
    who = "int8tile::linear_forward_only"
    (m, k), empty = input.shape, input.new_empty
    capacity = checks.resolve_capacity(who, k, threshold, outlier_bits, outlier_capacity)
    nothing = empty((0,), dtype=torch.uint8)
    saved = [
        nothing,
        nothing,
        empty((m,), dtype=torch.float32),
        empty((2, capacity) if outlier_gain else (capacity,), dtype=torch.int32),
        empty((2,), dtype=torch.int32),
    ]
    _forward(
        input,
        weight,
        bias,
        threshold,
        outlier_bits,
        (granularity, scale),
        packed_weight,
        weight_scale,
        output,
        saved,
        False,
        outlier_gain,
        weight_absmax,
    )


def _forward(
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    threshold: float | None,
    outlier_bits: int,
    options: tuple[str, str],
    packed_weight: torch.Tensor | None,
    weight_scale: torch.Tensor | None,
    output: torch.Tensor,
    saved: list[torch.Tensor],
    save: bool,
    outlier_gain: bool,
    weight_absmax: torch.Tensor | None,
) -> None:
    _, _, input_scale, outlier_index, outlier_count = saved
    (m, k), capacity = input.shape, outlier_index.shape[-1]
    block = _workspace(input, checks.block_bytes(m, k, capacity, input.device))
    gains: _Gains | None = None
    if outlier_gain and capacity:
        known = weight_absmax is not None
        if weight_absmax is None:
            weight_absmax = input.new_empty((weight.shape[0],), dtype=torch.float32)
        gains = (weight, weight_absmax, known)
    _quantize_into(input, threshold, outlier_bits, options, save, block, saved, gains=gains)
    _multiply(
        block,
        input_scale,
        outlier_index,
        outlier_count,
        weight,
        bias,
        options,
        packed_weight,
        weight_scale,
        output,
        weight_absmax,
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
    _multiply(
        block,
        input_scale,
        outlier_index,
        outlier_count,
        weight,
        bias,
        (granularity, scale),
        packed_weight,
        weight_scale,
        output,
    )


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
    (m, n), k, packed = grad_output.shape, weight.shape[1], packed_weight is not None
    call, _kept = _call(grad_output, _core.cuda_grad_input_workspace(m, n, k, packed))
    _core.cuda_linear_grad_input(
        call,
        matrix(grad_output),
        matrix(weight),
        (pointer(packed_weight), pointer(weight_scale)),
        (granularity, scale, rounding, pointer(seed)),
        matrix(grad_input),
    )


def linear_grad_weight(
    results: Tensors,
    grad_output: torch.Tensor,
    saved_input: torch.Tensor,
    saved_limbs: torch.Tensor,
    input_scale: torch.Tensor,
    outlier_index: torch.Tensor,
    outlier_count: torch.Tensor,
    in_features: int,
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
    (m, n), capacity = grad_output.shape, outlier_index.shape[-1]
    size = _core.cuda_grad_weight_workspace(m, n, in_features, capacity, grad_split)
    call, _kept = _call(grad_output, size)
    _core.cuda_linear_grad_weight(
        call,
        matrix(grad_output),
        _input(
            None, saved_input, saved_limbs, input_scale, outlier_index, outlier_count, in_features
        ),
        (granularity, scale, rounding, pointer(seed)),
        matrix(grad_weight),
        pointer(grad_bias) if with_bias else 0,
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
    """Run linear_grad_input and linear_grad_weight with two reads of g less."""
    grad_input, grad_weight, grad_bias = results
    (m, n), k, capacity = grad_output.shape, weight.shape[1], outlier_index.shape[-1]
    call, _kept = _call(grad_output, _core.cuda_backward_workspace(m, n, k, capacity, grad_split))
    _core.cuda_linear_backward(
        call,
        matrix(grad_output),
        matrix(weight),
        _input(None, saved_input, saved_limbs, input_scale, outlier_index, outlier_count, k),
        (granularity, scale, rounding, pointer(seed)),
        matrix(grad_input),
        matrix(grad_weight),
        pointer(grad_bias) if with_bias else 0,
        grad_split,
    )


def _quantize_rows(
    input: torch.Tensor,
    fold: torch.Tensor | None,
    transpose: bool,
    options: tuple[str, str, str],
    seed: torch.Tensor | None,
    q: torch.Tensor,
    scales: torch.Tensor,
) -> None:
    call, _kept = _call(input, _core.cuda_quantize_workspace(*input.shape))
    address = pointer(seed)
    how = (*options, address)
    _core.cuda_quantize(
        call, matrix(input), pointer(fold), transpose, how, 0, q.data_ptr(), scales.data_ptr()
    )


def pack_weight(
    results: Tensors, weight: torch.Tensor, granularity: str, scale: str, transpose: bool
) -> None:
    """Quantise a weight for linear_forward (or, transposed, grad_input)."""
    how = (granularity, scale, "nearest")
    _quantize_rows(weight, None, transpose, how, None, *results)


class PackedWeight:
    """A copy of a weight that is quantised again only where the weight has changed.

    The device finds out by a fingerprint of 1,024 spread words, so nothing waits for it. The copy
    belongs to the stream that is current when it is made.

    Args:
        weight: [n, k], contiguous.
        granularity: "row" or "tensor".
        scale: "absmax" or "pow2".
        transpose: for linear_grad_input; else for linear_forward.
    """

    def __init__(self, weight: torch.Tensor, granularity: str, scale: str, transpose: bool) -> None:
        self._how = (transpose, (granularity, scale))
        self._copy = schema.pack_weight(weight, granularity, scale, transpose)
        self._mark = weight.new_zeros((2,), dtype=torch.int32)

    def refreshed(self, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The arguments packed_weight and weight_scale, of the weight as it is now."""
        call, _kept = _call(weight, _core.cuda_quantize_workspace(*weight.shape))
        addresses = (each.data_ptr() for each in (*self._copy, self._mark))
        _core.cuda_refresh_weight(call, matrix(weight), *self._how, *addresses)
        return self._copy


def is_capturing() -> bool:
    """Whether the current stream is being captured in a CUDA graph."""
    return torch.cuda.is_current_stream_capturing()


def current_stream(tensor: torch.Tensor) -> int:
    """The handle of the stream that the tensor's device has current."""
    return _current_stream(tensor)[1]


def _padded(input: torch.Tensor, rows: int, depth: int) -> torch.Tensor:
    shape = (rows, checks.round_up(depth, checks.DEPTH_ALIGN))
    return input.new_empty(shape, dtype=torch.int8)


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
    padded, how = _padded(input, *q.shape), (granularity, scale, rounding)
    _quantize_rows(input, contiguous(fold), transpose, how, seed, padded, scales)
    q.copy_(padded[:, : q.shape[1]])


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
    (m, k), capacity = input.shape, outlier_index.shape[0]
    starts = (0, *_limb_starts(m, k, capacity))
    block = _workspace(input, 2 * starts[2] - starts[1])
    empty = block[:0]
    rest = [empty, empty, scales, outlier_index, outlier_count]
    options = (granularity, scale)
    _quantize_into(input, threshold, outlier_bits, options, False, block, rest, low_apart=True)
    for start, part in zip(starts, (q, high, low), strict=True):
        width = checks.round_up(part.shape[1], checks.DEPTH_ALIGN)
        whole = block[start : start + m * width].view(torch.int8).view(m, width)
        part.copy_(whole[:, : part.shape[1]])


def gemm(
    output: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    a_high: torch.Tensor | None,
    b_high: torch.Tensor | None,
) -> None:
    """Multiply int8 matrices exactly: ((a_high @ b_high.T) << 7) + a @ b.T."""
    (m, _), n = a.shape, b.shape[0]
    columns = 0 if a_high is None else a_high.shape[1]
    a, b = _whole_depths(a), _whole_depths(b)
    call, _kept = _call(a, 0)
    high = (None, None) if a_high is None or b_high is None else (a_high, b_high)
    padded = [None if each is None else _whole_depths(each) for each in high]
    count = a.new_full((1,), columns, dtype=torch.int32)
    _core.cuda_gemm(
        call,
        a.data_ptr(),
        m,
        a.shape[1],
        b.data_ptr(),
        n,
        pointer(padded[0]),
        pointer(padded[1]),
        0 if padded[0] is None else padded[0].shape[1],
        count.data_ptr(),
        output.data_ptr(),
    )


def _whole_depths(q: torch.Tensor) -> torch.Tensor:
    # At least one step, so that an empty depth is a product of zeros.
    depth = checks.round_up(max(q.shape[1], 1), checks.DEPTH_ALIGN)
    return torch.nn.functional.pad(q, (0, depth - q.shape[1])).contiguous()


def _refuse(name: str) -> Callable[..., NoReturn]:
    def kernel(*_args: object) -> NoReturn:
        raise NotImplementedError(
            f"int8tile::{name}: this build runs on {checks.DEVICES_TEXT}; got a tensor on cuda"
        )

    return kernel


if _core.cuda_compiled:
    schema.implement("CUDA", globals())
else:
    for _name in schema.CHECKS:
        LIBRARY.impl(_name, _refuse(_name), "CUDA")
