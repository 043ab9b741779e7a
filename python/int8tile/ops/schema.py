"""The torch ops: schemas, and the checks and empty results that every kernel starts from."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from functools import lru_cache, wraps

import torch

from int8tile import _core
from int8tile.config import check_options

LIBRARY = torch.library.Library("int8tile", "DEF")
DTYPE_CODES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
DEPTH_ALIGN = 16  # tokens and features are padded to whole turns of the GEMM's inner loop
MAX_GEMM_DEPTH = _core.SLICE_DEPTH
DEVICES = ("cpu", "cuda") if _core.cuda_compiled else ("cpu",)
DEVICES_TEXT = " and ".join(DEVICES)

_SPLIT = "float? threshold=5.0, int outlier_bits=12, int? outlier_capacity=None"
_SCALE = 'str granularity="row", str scale="absmax"'
_GRAD = 'str rounding="nearest", Tensor? seed=None'
_SAVED = (
    "Tensor saved_input, Tensor saved_limbs, Tensor input_scale, Tensor outlier_index, "
    "Tensor outlier_count"
)
_PACKED = "Tensor? packed_weight=None, Tensor? weight_scale=None"

for _schema in (
    f"linear(Tensor input, Tensor weight, Tensor? bias=None, {_SPLIT}, {_SCALE}, "
    'str grad_rounding="nearest") -> Tensor',
    f"linear_switched(Tensor input, Tensor weight, Tensor? bias, {_SPLIT}, {_SCALE}, "
    'str grad_rounding="nearest", bool forward=True, bool grad_input=True, '
    "bool grad_weight=True) -> Tensor",
    f"linear_forward(Tensor input, Tensor weight, Tensor? bias=None, {_SPLIT}, {_SCALE}, "
    f"ScalarType? out_dtype=None, {_PACKED}) -> (Tensor output, {_SAVED})",
    f"linear_forward_only(Tensor input, Tensor weight, Tensor? bias=None, {_SPLIT}, {_SCALE}, "
    f"ScalarType? out_dtype=None, {_PACKED}) -> Tensor",
    f"quantize_input(Tensor input, {_SPLIT}, {_SCALE}, bool save=True) -> (Tensor block, {_SAVED})",
    "linear_multiply(Tensor block, Tensor input_scale, Tensor outlier_index, "
    f"Tensor outlier_count, Tensor weight, Tensor? bias=None, {_SCALE}, "
    f"ScalarType? out_dtype=None, {_PACKED}) -> Tensor",
    f"linear_grad_input(Tensor grad_output, Tensor weight, {_SCALE}, {_GRAD}, "
    f"ScalarType? out_dtype=None, {_PACKED}) -> Tensor",
    f"linear_grad_weight(Tensor grad_output, {_SAVED}, int in_features, {_SCALE}, {_GRAD}, "
    "ScalarType? out_dtype=None, bool with_bias=True) -> (Tensor grad_weight, Tensor grad_bias)",
    f"linear_backward(Tensor grad_output, Tensor weight, {_SAVED}, {_SCALE}, {_GRAD}, "
    "ScalarType? out_dtype=None, bool with_bias=True) "
    "-> (Tensor grad_input, Tensor grad_weight, Tensor grad_bias)",
    f"pack_weight(Tensor weight, {_SCALE}, bool transpose=False) -> (Tensor packed, Tensor scale)",
    f"quantize(Tensor input, Tensor? fold=None, {_SCALE}, {_GRAD}, bool transpose=False) "
    "-> (Tensor q, Tensor scale)",
    f"quantize_split(Tensor input, {_SPLIT}, {_SCALE}) -> (Tensor q, Tensor high, Tensor low, "
    "Tensor scale, Tensor outlier_index, Tensor outlier_count)",
    "gemm(Tensor a, Tensor b, Tensor? a_high=None, Tensor? b_high=None) -> Tensor",
):
    LIBRARY.define(_schema, tags=(torch.Tag.pt2_compliant_tag,))


def _shape(tensor: torch.Tensor) -> list[int]:
    return list(tensor.shape)


def _check_float(who: str, **tensors: torch.Tensor | None) -> None:
    for name, tensor in tensors.items():
        if tensor is not None and tensor.dtype not in DTYPE_CODES:
            raise TypeError(
                f"{who}: {name} must be float32, bfloat16 or float16; got {tensor.dtype}"
            )


def _check_matrix(who: str, **tensors: torch.Tensor) -> None:
    for name, tensor in tensors.items():
        if tensor.dim() != 2:
            raise ValueError(f"{who}: {name} must have 2 dimensions; got {_shape(tensor)}")


def _check_device(who: str, first: torch.Tensor, **others: torch.Tensor | None) -> None:
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
            f"{who}: weight must be [n, {features}] to match input {_shape(input)}; "
            f"got {_shape(weight)}"
        )
    if bias is not None and (bias.dim() != 1 or bias.shape[0] != weight.shape[0]):
        raise ValueError(
            f"{who}: bias must be [{weight.shape[0]}] to match weight {_shape(weight)}; "
            f"got {_shape(bias)}"
        )
    _check_float(who, input=input, weight=weight, bias=bias)
    _check_device(who, input, weight=weight, bias=bias)


def _check_out_dtype(who: str, dtype: torch.dtype | None) -> None:
    if dtype is not None and dtype not in DTYPE_CODES:
        raise TypeError(f"{who}: out_dtype must be float32, bfloat16 or float16; got {dtype}")


def _check_layout(
    who: str, name: str, tensor: torch.Tensor, dtype: torch.dtype, shape: tuple[int, ...]
) -> None:
    # The core reads these by address: a wrong shape would be read past its end.
    if tensor.dtype != dtype or tuple(tensor.shape) != shape or not tensor.is_contiguous():
        raise ValueError(
            f"{who}: {name} must be contiguous {str(dtype).removeprefix('torch.')} "
            f"{list(shape)}; got {tensor.dtype} {_shape(tensor)}, strides {tensor.stride()}"
        )


def _check_seed(who: str, rounding: str, seed: torch.Tensor | None, device: torch.device) -> None:
    if rounding != "stochastic":
        return
    if seed is None or seed.dtype != torch.int64 or seed.numel() != 1:
        got = "None" if seed is None else f"{seed.dtype} {_shape(seed)}"
        raise ValueError(
            f"{who}: stochastic rounding needs seed, one int64 value in a tensor; got {got}"
        )
    if seed.device != device:
        raise ValueError(f"{who}: seed must be on {device}; got {seed.device}")


def _check_packed(
    who: str,
    first: torch.Tensor,
    packed: torch.Tensor | None,
    scale: torch.Tensor | None,
    rows: int,
    depth: int,
) -> None:
    if packed is None and scale is None:
        return
    _check_device(who, first, packed_weight=packed, weight_scale=scale)
    shape = panel_shape(rows, depth, first.device)
    if (
        packed is None
        or scale is None
        or packed.dtype != torch.uint8
        or tuple(packed.shape) != shape
        or not packed.is_contiguous()
    ):
        got = None if packed is None else f"{packed.dtype} {_shape(packed)}"
        raise ValueError(
            f"{who}: packed_weight and weight_scale must come together from "
            f"int8tile::pack_weight, uint8 {list(shape)}; got {got}"
        )
    _check_layout(who, "weight_scale", scale, torch.float32, (rows,))


def round_up(value: int, multiple: int) -> int:
    """`value` rounded up to a multiple; works on symbolic sizes."""
    return (value + multiple - 1) // multiple * multiple


def panel_shape(rows: int, depth: int, device: torch.device) -> tuple[int, int]:
    """Shape of the uint8 tensor that holds a [rows, depth] operand: B panels, or rows on CUDA."""
    panel = 1 if device.type == "cuda" else _core.panel_columns()
    return round_up(rows, panel), round_up(depth, DEPTH_ALIGN)


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
    *,
    who: str = "int8tile::linear_forward_only",
) -> torch.Tensor:
    """Checks, and the empty result, of int8tile::linear_forward_only."""
    check_options(who, threshold, outlier_bits, granularity, scale)
    _check_matrix(who, input=input)
    check_linear(who, input, weight, bias)
    n, k = weight.shape
    _check_out_dtype(who, out_dtype)
    _check_packed(who, input, packed_weight, weight_scale, n, k)
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
) -> tuple[torch.Tensor, ...]:
    """Checks, and empty results, of int8tile::linear_forward."""
    who = "int8tile::linear_forward"
    split = (threshold, outlier_bits, outlier_capacity)
    packed = (packed_weight, weight_scale)
    output = linear_forward_only(
        input, weight, bias, *split, granularity, scale, out_dtype, *packed, who=who
    )
    capacity = resolve_capacity(who, int(input.shape[1]), *split)
    return output, *_saved_input(input, capacity)


def _saved_input(input: torch.Tensor, capacity: int, save: bool = True) -> tuple[torch.Tensor, ...]:
    (m, k), device = input.shape, input.device
    empty, nothing = input.new_empty, (0, 0)
    return (
        empty(panel_shape(k, m, device) if save else nothing, dtype=torch.uint8),
        empty(
            panel_shape(capacity, m, device) if save and capacity else nothing, dtype=torch.uint8
        ),
        empty((m,), dtype=torch.float32),
        empty((capacity,), dtype=torch.int32),
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
    _check_matrix(who, input=input)
    _check_float(who, input=input)
    m, k = input.shape
    if k > MAX_GEMM_DEPTH:
        raise ValueError(f"{who}: input must have at most {MAX_GEMM_DEPTH} features; got {k}")
    capacity = resolve_capacity(who, int(k), threshold, outlier_bits, outlier_capacity)
    block = input.new_empty((block_bytes(m, k, capacity, input.device),), dtype=torch.uint8)
    return block, *_saved_input(input, capacity, save)


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
    _check_matrix(who, weight=weight)
    _check_float(who, weight=weight, bias=bias)
    _check_device(
        who,
        block,
        input_scale=input_scale,
        outlier_index=outlier_index,
        outlier_count=outlier_count,
        weight=weight,
        bias=bias,
    )
    _check_out_dtype(who, out_dtype)
    n, k = weight.shape
    m, capacity = input_scale.shape[0], outlier_index.shape[0]
    for name, tensor, dtype, shape in (
        ("block", block, torch.uint8, (block_bytes(m, k, capacity, block.device),)),
        ("input_scale", input_scale, torch.float32, (m,)),
        ("outlier_index", outlier_index, torch.int32, (capacity,)),
        ("outlier_count", outlier_count, torch.int32, (2,)),
    ):
        _check_layout(who, name, tensor, dtype, shape)
    if bias is not None and tuple(bias.shape) != (n,):
        raise ValueError(f"{who}: bias must be [{n}]; got {_shape(bias)}")
    _check_packed(who, weight, packed_weight, weight_scale, n, k)
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
    _check_matrix(who, grad_output=grad_output, weight=weight)
    _check_float(who, grad_output=grad_output, weight=weight)
    _check_device(who, grad_output, weight=weight)
    _check_seed(who, rounding, seed, grad_output.device)
    _check_out_dtype(who, out_dtype)
    if grad_output.shape[1] != weight.shape[0]:
        raise ValueError(
            f"{who}: weight must be [{grad_output.shape[1]}, k] to match grad_output "
            f"{_shape(grad_output)}; got {_shape(weight)}"
        )
    n, k = weight.shape
    _check_packed(who, grad_output, packed_weight, weight_scale, k, n)
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
    *,
    who: str = "int8tile::linear_grad_weight",
) -> tuple[torch.Tensor, torch.Tensor]:
    """Checks, and empty results, of int8tile::linear_grad_weight."""
    check_options(who, None, 12, granularity, scale, rounding)
    _check_matrix(who, grad_output=grad_output)
    _check_float(who, grad_output=grad_output)
    _check_device(
        who,
        grad_output,
        saved_input=saved_input,
        saved_limbs=saved_limbs,
        input_scale=input_scale,
        outlier_index=outlier_index,
        outlier_count=outlier_count,
    )
    _check_seed(who, rounding, seed, grad_output.device)
    _check_out_dtype(who, out_dtype)
    m, n = grad_output.shape
    wanted = panel_shape(in_features, m, grad_output.device)
    if saved_input.dtype != torch.uint8 or tuple(saved_input.shape) != wanted:
        raise ValueError(
            f"{who}: saved_input must be what int8tile::linear_forward saved for "
            f"[{m}, {in_features}], uint8 {list(wanted)}; got {saved_input.dtype} "
            f"{_shape(saved_input)}"
        )
    capacity = outlier_index.numel()
    limbs = panel_shape(capacity, m, grad_output.device) if capacity else (0, 0)
    for name, tensor, dtype, shape in (
        ("saved_input", saved_input, torch.uint8, wanted),
        ("input_scale", input_scale, torch.float32, (m,)),
        ("outlier_index", outlier_index, torch.int32, (capacity,)),
        ("saved_limbs", saved_limbs, torch.uint8, limbs),
        ("outlier_count", outlier_count, torch.int32, (2,)),
    ):
        _check_layout(who, name, tensor, dtype, shape)
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
        who=who,
    )
    return grad_input, grad_weight, grad_bias


def pack_weight(
    weight: torch.Tensor, granularity: str = "row", scale: str = "absmax", transpose: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """Checks, and empty results, of int8tile::pack_weight."""
    who = "int8tile::pack_weight"
    check_options(who, None, 12, granularity, scale)
    _check_matrix(who, weight=weight)
    _check_float(who, weight=weight)
    rows, depth = (weight.shape[1], weight.shape[0]) if transpose else weight.shape
    return (
        weight.new_empty(panel_shape(rows, depth, weight.device), dtype=torch.uint8),
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
    _check_matrix(who, input=input)
    _check_float(who, input=input)
    _check_device(who, input, fold=fold)
    _check_seed(who, rounding, seed, input.device)
    rows, cols = input.shape
    if fold is not None and (fold.dtype != torch.float32 or tuple(fold.shape) != (rows,)):
        raise ValueError(
            f"{who}: fold must be float32 [{rows}] to match input {_shape(input)}; "
            f"got {fold.dtype} {_shape(fold)}"
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
    _check_matrix(who, input=input)
    _check_float(who, input=input)
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
    _check_device(who, a, b=b, a_high=a_high, b_high=b_high)
    pairs = [("a", a, "b", b)]
    if a_high is not None or b_high is not None:
        if a_high is None or b_high is None:
            raise ValueError(f"{who}: a_high and b_high must be given together; got one of them")
        if a_high.shape[0] != a.shape[0] or b_high.shape[0] != b.shape[0]:
            raise ValueError(
                f"{who}: a_high must be [{a.shape[0]}, h] and b_high [{b.shape[0]}, h]; "
                f"got {_shape(a_high)} and {_shape(b_high)}"
            )
        pairs.append(("a_high", a_high, "b_high", b_high))
    for left_name, left, right_name, right in pairs:
        _check_matrix(who, **{left_name: left, right_name: right})
        if left.dtype != torch.int8 or right.dtype != torch.int8:
            raise TypeError(
                f"{who}: {left_name} and {right_name} must be int8; "
                f"got {left.dtype} and {right.dtype}"
            )
        if left.shape[1] != right.shape[1]:
            raise ValueError(
                f"{who}: {right_name} must be [n, {left.shape[1]}] to match {left_name} "
                f"{_shape(left)}; got {_shape(right)}"
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


def implement(device: str, kernels: Iterable[Kernel]) -> None:
    """Register the kernels of one device."""
    for kernel in kernels:
        LIBRARY.impl(kernel.__name__, checked(kernel), device)


for _name, _check in CHECKS.items():
    torch.library.register_fake(f"int8tile::{_name}", _check, lib=LIBRARY)
