"""The differentiable linear: an autograd.Function over the raw ops, and the public op's kernel.

The Function is the cheapest way through eager torch and is traceable; torch.ops.int8tile.linear
is a composite over it, so that it trains when called directly.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial, wraps
from typing import Any, Protocol

import torch

from int8tile.config import check_options
from int8tile.ops import checks, sharding
from int8tile.ops.definitions import LIBRARY
from int8tile.ops.shared import Quantized, SharedInput

Packed = tuple[torch.Tensor, torch.Tensor]


class WeightCache(Protocol):
    """Packed copies of a frozen weight; see int8tile.nn.linear."""

    def get(
        self, weight: torch.Tensor, granularity: str, scale: str, transpose: bool
    ) -> Packed | None:
        """Packed panels and scales of `weight`, or None if it may change between calls."""

    def absmax(self, weight: torch.Tensor, granularity: str) -> torch.Tensor | None:
        """[n] float32 absmax of the rows of the `weight` that get(..., False) has just given."""


def _draw_seed(rounding: str, device: torch.device) -> torch.Tensor | None:
    if rounding != "stochastic":
        return None
    return torch.randint(-(2**63), 2**63 - 1, (1,), dtype=torch.int64, device=device)


def _matrix(tensor: torch.Tensor) -> torch.Tensor:
    # The number of rows is spelled out: -1 is ambiguous where the last dimension is 0.
    rows = math.prod(tensor.shape[:-1])
    return tensor if tensor.dim() == 2 else tensor.reshape(rows, tensor.shape[-1])


def _unflatten(matrix: torch.Tensor, lead: torch.Size) -> torch.Tensor:
    """`matrix` with leading dimensions in place of its rows."""
    return matrix if len(lead) == 1 else matrix.view(*lead, matrix.shape[1])


def _once_differentiable(
    backward: Callable[..., tuple[torch.Tensor | None, ...]],
) -> Callable[..., tuple[torch.Tensor | None, ...]]:
    # torch's own once_differentiable looks at grad_output only, so a penalty on a gradient would
    # silently lose its derivative by the weight and the input.
    @wraps(backward)
    def wrapper(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # noqa: ANN401
        with torch.no_grad():
            results = backward(ctx, *grads)
        if not torch.is_grad_enabled():
            return results
        refuse = torch._C._functions.DelayedError(
            b"int8tile::linear: differentiable once; a gradient was to be differentiated again",
            len(results),
        )
        marked: Any = [r if r is None else r.requires_grad_() for r in results]
        refused: Any = refuse(*marked)
        return tuple(refused)

    return wrapper


class LinearFunction(torch.autograd.Function):
    """y = x @ w.T + bias with each of its three GEMMs in int8 or in float."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401 - torch's context takes any attribute
        input: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        split: tuple[float | None, int, int | None],
        scales: tuple[str, str, str],
        switches: tuple[bool, bool, bool],
        out_dtype: torch.dtype,
        cache: WeightCache | None,
        seed: torch.Tensor | None,
        quantized: Quantized | None,
        outlier_gain: bool,
        grad_split: bool,
    ) -> torch.Tensor:
        """Run the forward GEMM and save what backward needs, int8 where it is int8."""
        granularity, scale, _ = scales
        forward_int8, _, grad_weight_int8 = switches
        needs_input, needs_weight = ctx.needs_input_grad[:2]
        x = _matrix(input)
        save = needs_weight and grad_weight_int8
        if forward_int8:
            packed = cache.get(weight, granularity, scale, False) if cache else None
            weights = _weights(weight, granularity, packed, cache, outlier_gain)
            if quantized is not None:
                output = _multiply(quantized, weight, bias, scales, out_dtype, packed)
                saved = list(quantized[1:])
            elif save:
                output, *saved = torch.ops.int8tile.linear_forward(
                    x, weight, bias, *split, granularity, scale, out_dtype, *weights
                )
            else:
                output = torch.ops.int8tile.linear_forward_only(
                    x, weight, bias, *split, granularity, scale, out_dtype, *weights
                )
        else:
            cast = None if bias is None else bias.to(out_dtype)
            output = torch.nn.functional.linear(x.to(out_dtype), weight.to(out_dtype), cast)
            saved = []
            if save:  # no output features: x is quantised for backward, and nothing multiplied
                _, *saved = torch.ops.int8tile.linear_forward(
                    x, weight[:0], None, *split, granularity, scale, out_dtype
                )
        ctx.scales, ctx.switches, ctx.cache = scales, switches, cache
        ctx.grad_split = grad_split
        ctx.address = weight.data_ptr() if cache else 0
        ctx.lead = input.shape[:-1]
        ctx.in_features = weight.shape[1]
        ctx.dtypes = (input.dtype, weight.dtype, None if bias is None else bias.dtype)
        float_input = x if needs_weight and not grad_weight_int8 else None
        ctx.save_for_backward(
            weight if needs_input else None, float_input, seed, *(saved if save else ())
        )
        return _unflatten(output, ctx.lead)

    @staticmethod
    @_once_differentiable
    def backward(ctx: Any, grad_output: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # noqa: ANN401
        """Gradients of input, weight and bias."""
        weight, float_input, seed, *saved = ctx.saved_tensors
        needs_input, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        g = _matrix(grad_output)
        grad_input = grad_weight = sums = None
        if needs_input and needs_weight and saved and ctx.switches[1]:
            grad_input, grad_weight, sums = torch.ops.int8tile.linear_backward(
                g, weight, *saved, *ctx.scales, seed, ctx.dtypes[0], needs_bias, ctx.grad_split
            )
        else:
            if needs_input:
                grad_input = _grad_input(ctx, g, weight, seed)
            if needs_weight and saved:
                how = (*ctx.scales, seed, ctx.dtypes[1], needs_bias, ctx.grad_split)
                grad_weight, sums = torch.ops.int8tile.linear_grad_weight(
                    g, *saved, ctx.in_features, *how
                )
            elif needs_weight:
                grad_weight = (g.to(float_input.dtype).t() @ float_input).to(ctx.dtypes[1])
            if needs_bias and sums is None:
                sums = g.sum(0, dtype=torch.float32)
        if grad_input is not None:
            grad_input = _unflatten(grad_input, ctx.lead)
        grad_bias = sums.to(ctx.dtypes[2]) if needs_bias and sums is not None else None
        return grad_input, grad_weight, grad_bias, *(None,) * 9


def _weights(
    weight: torch.Tensor,
    granularity: str,
    packed: Packed | None,
    cache: WeightCache | None,
    outlier_gain: bool,
) -> tuple[Any, ...]:
    """The last arguments of int8tile::linear_forward, after out_dtype."""
    if not outlier_gain:
        return packed or ()
    if packed is None or cache is None:
        return None, None, True
    return *packed, True, cache.absmax(weight, granularity)


def _multiply(
    quantized: Quantized,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    scales: tuple[str, str, str],
    out_dtype: torch.dtype,
    packed: Packed | None,
) -> torch.Tensor:
    block, _, _, input_scale, index, count = quantized
    result: torch.Tensor = torch.ops.int8tile.linear_multiply(
        block, input_scale, index, count, weight, bias, *scales[:2], out_dtype, *(packed or ())
    )
    return result


def _grad_input(
    ctx: Any,  # noqa: ANN401
    g: torch.Tensor,
    weight: torch.Tensor,
    seed: torch.Tensor | None,
) -> torch.Tensor:
    granularity, scale, rounding = ctx.scales
    dtype = ctx.dtypes[0]
    if not ctx.switches[1]:
        return (g @ weight.to(g.dtype)).to(dtype)
    # Saved-tensor hooks may hand back a copy, whose address and version say nothing.
    cached = ctx.cache is not None and weight.data_ptr() == ctx.address
    packed = ctx.cache.get(weight, granularity, scale, True) if cached else None
    result: torch.Tensor = torch.ops.int8tile.linear_grad_input(
        g, weight, granularity, scale, rounding, seed, dtype, *(packed or ())
    )
    return result


def linear(
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    split: tuple[float | None, int, int | None],
    scales: tuple[str, str, str],
    switches: tuple[bool, bool, bool] = (True, True, True),
    cache: WeightCache | None = None,
    shared: SharedInput | None = None,
    outlier_gain: bool = False,
    grad_split: bool = True,
) -> torch.Tensor:
    """Apply a linear layer in int8; differentiable once.

    DTensors are multiplied shard by shard, see `int8tile.ops.sharding`; they share no input.

    Args:
        input: [..., k] float32, bfloat16 or float16.
        weight: [n, k], the same dtype except under autocast.
        bias: [n] or None.
        split: threshold (None or 0: no split), outlier bits, outlier capacity (None: default).
        scales: granularity, scale kind, rounding of gradients.
        switches: int8 for forward, grad_input and grad_weight.
        cache: packed copies of a frozen weight.
        shared: where layers with the same input find it quantised.
        outlier_gain: move powers of two from outlier columns of the input to those of the weight.
        grad_split: hold outlier tokens of the gradient in two limbs, for that of the weight.

    Returns:
        [..., n] in the input's dtype, or in the autocast dtype under autocast.

    Raises:
        ValueError: shapes, devices or options that do not fit.
        TypeError: dtypes that do not fit.
        NotImplementedError: a device without int8tile kernels.
    """
    who = "int8tile::linear"
    if outlier_gain and shared is not None:
        raise ValueError(
            f"{who}: outlier_gain depends on the weight, so a layer with it cannot share its "
            "quantised input (convert with share_inputs=False or outlier_gain=False)"
        )
    check_options(who, split[0], split[1], *scales)
    checks.check_linear(who, input, weight, bias)
    if sharding.is_distributed(input, weight, bias):
        local = partial(
            linear, split=split, scales=scales, switches=switches, cache=cache,
            outlier_gain=outlier_gain, grad_split=grad_split,
        )  # fmt: skip
        return sharding.linear(who, local, input, weight, bias)
    device = input.device.type
    if device not in checks.DEVICES:
        raise NotImplementedError(
            f"{who}: this build runs on {checks.DEVICES_TEXT}; got a tensor on {device}"
        )
    dtype = input.dtype
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
    elif weight.dtype != dtype or (bias is not None and bias.dtype != dtype):
        got = weight.dtype if weight.dtype != dtype else bias.dtype if bias is not None else None
        raise TypeError(f"{who}: weight and bias must be {dtype} like input; got {got}")
    checks.resolve_capacity(who, int(weight.shape[1]), *split)
    # Drawn whether or not gradients are wanted: a checkpointed segment runs without them first, and
    # its recomputation must find torch's generator (dropout!) where the first run had it.
    seed = _draw_seed(scales[2], input.device) if switches[1] or switches[2] else None
    needs_grad = torch.is_grad_enabled() and (
        input.requires_grad or weight.requires_grad or (bias is not None and bias.requires_grad)
    )
    quantized = None
    if shared is not None and switches[0]:
        save = needs_grad and weight.requires_grad and switches[2]
        quantized = shared.quantize(input, split, scales[0], scales[1], save)
    if needs_grad or not switches[0]:
        apply: Callable[..., torch.Tensor] = LinearFunction.apply
        how = (split, scales, switches, dtype, cache, seed, quantized, outlier_gain, grad_split)
        return apply(input, weight, bias, *how)
    packed = cache.get(weight, scales[0], scales[1], False) if cache else None
    if quantized is not None:
        output = _multiply(quantized, weight, bias, scales, dtype, packed)
    else:
        weights = _weights(weight, scales[0], packed, cache, outlier_gain)
        output = torch.ops.int8tile.linear_forward_only(
            _matrix(input), weight, bias, *split, *scales[:2], dtype, *weights
        )
    return _unflatten(output, input.shape[:-1])


def _linear(
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    threshold: float | None = 5.0,
    outlier_bits: int = 12,
    outlier_capacity: int | None = None,
    granularity: str = "row",
    scale: str = "absmax",
    grad_rounding: str = "nearest",
    outlier_gain: bool = False,
    grad_split: bool = True,
) -> torch.Tensor:
    split = (threshold, outlier_bits, outlier_capacity)
    scales = (granularity, scale, grad_rounding)
    extras = (outlier_gain, grad_split)
    return linear(input, weight, bias, split, scales, (True, True, True), None, None, *extras)


def _linear_switched(
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    threshold: float | None = 5.0,
    outlier_bits: int = 12,
    outlier_capacity: int | None = None,
    granularity: str = "row",
    scale: str = "absmax",
    grad_rounding: str = "nearest",
    forward: bool = True,
    grad_input: bool = True,
    grad_weight: bool = True,
    outlier_gain: bool = False,
    grad_split: bool = True,
) -> torch.Tensor:
    split = (threshold, outlier_bits, outlier_capacity)
    scales = (granularity, scale, grad_rounding)
    switches = (forward, grad_input, grad_weight)
    return linear(
        input, weight, bias, split, scales, switches, None, None, outlier_gain, grad_split
    )


_COMPOSITES: dict[str, Callable[..., torch.Tensor]] = {
    "linear": _linear,
    "linear_switched": _linear_switched,
}
for _name, _kernel in _COMPOSITES.items():
    LIBRARY.impl(_name, _kernel, "CompositeImplicitAutograd")
