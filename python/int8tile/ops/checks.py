"""What the ops' checks are made of, and the sizes that shapes and devices give."""

from __future__ import annotations

from functools import lru_cache

import torch

from int8tile import _core

DTYPE_CODES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
DEPTH_ALIGN = 16  # tokens and features are padded to whole turns of the GEMM's inner loop
MAX_GEMM_DEPTH = _core.SLICE_DEPTH
DEVICES = ("cpu", "cuda") if _core.cuda_compiled else ("cpu",)
DEVICES_TEXT = " and ".join(DEVICES)


def shape_of(tensor: torch.Tensor) -> list[int]:
    """The shape, as messages show it."""
    return list(tensor.shape)


def check_float(who: str, **tensors: torch.Tensor | None) -> None:
    """Raise TypeError unless each tensor (or None) has a dtype that can be quantised."""
    for name, tensor in tensors.items():
        if tensor is not None and tensor.dtype not in DTYPE_CODES:
            raise TypeError(
                f"{who}: {name} must be float32, bfloat16 or float16; got {tensor.dtype}"
            )


def check_matrix(who: str, **tensors: torch.Tensor) -> None:
    """Raise ValueError unless each tensor has two dimensions."""
    for name, tensor in tensors.items():
        if tensor.dim() != 2:
            raise ValueError(f"{who}: {name} must have 2 dimensions; got {shape_of(tensor)}")


def check_device(who: str, first: torch.Tensor, **others: torch.Tensor | None) -> None:
    """Raise ValueError unless all tensors are where the first one is."""
    for name, tensor in others.items():
        if tensor is not None and tensor.device != first.device:
            raise ValueError(
                f"{who}: {name} must be on {first.device} like the first argument; "
                f"got {tensor.device}"
            )


@lru_cache(maxsize=4096, typed=True)
def resolve_capacity(
    who: str, features: int, threshold: float | None, bits: int, capacity: int | None
) -> int:
    """Outlier columns to make room for: 0 without a split.

    Raises:
        ValueError: the capacity exceeds the features or could overflow int32 sums.
    """
    if capacity is not None:
        if capacity < 0:  # -1 asks the planner for its default
            raise ValueError(
                f"{who}: outlier_capacity must be 0..{features} (the input features); "
                f"got {capacity}"
            )
        try:
            _core.plan(0, 0, features, capacity, bits, 1)
        except ValueError as error:
            raise ValueError(str(error).replace("int8tile::plan", who)) from None
    if not threshold:
        return 0
    return _core.default_capacity(features) if capacity is None else capacity


def check_linear(
    who: str, input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
) -> None:
    """Check shapes, dtypes and devices of a linear layer's arguments.

    Raises:
        ValueError: shapes or devices do not match.
        TypeError: a dtype is not float32, bfloat16 or float16.
    """
    fits = (  # on the path of every call: one look at what is nearly always right
        weight.dim() == 2
        and input.dim() > 0
        and input.shape[-1] == weight.shape[1]
        and input.dtype in DTYPE_CODES
        and weight.dtype in DTYPE_CODES
        and input.device == weight.device
    )
    bias_fits = bias is None or (
        bias.shape == weight.shape[:1]
        and bias.dtype in DTYPE_CODES
        and bias.device == weight.device
    )
    if not (fits and bias_fits):
        _refuse_linear(who, input, weight, bias)


def _refuse_linear(
    who: str, input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
) -> None:
    if input.dim() == 0 or weight.dim() != 2 or input.shape[-1] != weight.shape[1]:
        features = input.shape[-1] if input.dim() else "k"
        raise ValueError(
            f"{who}: weight must be [n, {features}] to match input {shape_of(input)}; "
            f"got {shape_of(weight)}"
        )
    if bias is not None and (bias.dim() != 1 or bias.shape[0] != weight.shape[0]):
        raise ValueError(
            f"{who}: bias must be [{weight.shape[0]}] to match weight {shape_of(weight)}; "
            f"got {shape_of(bias)}"
        )
    check_float(who, input=input, weight=weight, bias=bias)
    check_device(who, input, weight=weight, bias=bias)


def check_out_dtype(who: str, dtype: torch.dtype | None) -> None:
    """Raise TypeError unless an output can have the dtype."""
    if dtype is not None and dtype not in DTYPE_CODES:
        raise TypeError(f"{who}: out_dtype must be float32, bfloat16 or float16; got {dtype}")


def check_layout(
    who: str, name: str, tensor: torch.Tensor, dtype: torch.dtype, shape: tuple[int, ...]
) -> None:
    """Raise ValueError unless a tensor is just what the core will read."""
    # The core reads these by address: a wrong shape would be read past its end.
    if tensor.dtype != dtype or tuple(tensor.shape) != shape or not tensor.is_contiguous():
        raise ValueError(
            f"{who}: {name} must be contiguous {str(dtype).removeprefix('torch.')} "
            f"{list(shape)}; got {tensor.dtype} {shape_of(tensor)}, strides {tensor.stride()}"
        )


def check_seed(who: str, rounding: str, seed: torch.Tensor | None, device: torch.device) -> None:
    """Raise ValueError unless stochastic rounding has its seed."""
    if rounding != "stochastic":
        return
    if seed is None or seed.dtype != torch.int64 or seed.numel() != 1:
        got = "None" if seed is None else f"{seed.dtype} {shape_of(seed)}"
        raise ValueError(
            f"{who}: stochastic rounding needs seed, one int64 value in a tensor; got {got}"
        )
    if seed.device != device:
        raise ValueError(f"{who}: seed must be on {device}; got {seed.device}")


def check_packed(
    who: str,
    first: torch.Tensor,
    packed: torch.Tensor | None,
    scale: torch.Tensor | None,
    rows: int,
    depth: int,
) -> None:
    """Raise ValueError unless a packed weight and its scales fit, or are both None."""
    if packed is None and scale is None:
        return
    check_device(who, first, packed_weight=packed, weight_scale=scale)
    shape = panel_shape(rows, depth, first.device)
    if (
        packed is None
        or scale is None
        or packed.dtype != torch.uint8
        or tuple(packed.shape) != shape
        or not packed.is_contiguous()
    ):
        got = None if packed is None else f"{packed.dtype} {shape_of(packed)}"
        raise ValueError(
            f"{who}: packed_weight and weight_scale must come together from "
            f"int8tile::pack_weight, uint8 {list(shape)}; got {got}"
        )
    check_layout(who, "weight_scale", scale, torch.float32, (rows,))


def check_gain(
    who: str,
    first: torch.Tensor,
    outlier_gain: bool,
    packed: torch.Tensor | None,
    absmax: torch.Tensor | None,
    rows: int,
) -> None:
    """Check the option outlier_gain, and the absmax of a packed weight's rows.

    Raises:
        ValueError: an absmax without a packed weight and gains, or one that does not fit.
    """
    if absmax is None:
        return
    if packed is None or not outlier_gain:
        raise ValueError(f"{who}: weight_absmax is only taken with packed_weight and outlier_gain")
    check_device(who, first, weight_absmax=absmax)
    check_layout(who, "weight_absmax", absmax, torch.float32, (rows,))


def index_shape(index: torch.Tensor) -> tuple[int, ...]:
    """[C], or [2, C] where the exponents of gains follow the outlier columns."""
    return (2, index.numel() // 2) if index.dim() == 2 else (index.numel(),)


def round_up(value: int, multiple: int) -> int:
    """`value` rounded up to a multiple; works on symbolic sizes."""
    return (value + multiple - 1) // multiple * multiple


def panel_shape(rows: int, depth: int, device: torch.device) -> tuple[int, int]:
    """Shape of the uint8 tensor that holds a [rows, depth] operand: B panels, or rows on CUDA."""
    panel = 1 if device.type == "cuda" else _core.panel_columns()
    return round_up(rows, panel), round_up(depth, DEPTH_ALIGN)


def block_bytes(m: int, k: int, capacity: int, device: torch.device) -> int:
    """Bytes of a quantised input's block; sizes may be symbolic.

    On CPU as _core.quantized_input_bytes: int8 panels of the regular part and of the high limbs,
    and an int32 a row. On CUDA both parts row-major, with rows of whole 16 bytes, and the low limbs
    where K is summed in slices.
    """
    regular = m * round_up(k, DEPTH_ALIGN)
    if device.type == "cuda":
        limbs = m * round_up(capacity, DEPTH_ALIGN)
        panels = [regular, limbs, limbs if k > MAX_GEMM_DEPTH else 0]
    else:
        panels = [regular, m * round_up(capacity, 4), m * 4]
    return sum(round_up(size, 64) for size in panels)
