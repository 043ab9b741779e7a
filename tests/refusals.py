"""Every argument the raw ops refuse: the message, and a call that is refused with it.

The tensors are made when the call runs, on torch's default device, so the same tables serve every
device, and real, fake and meta tensors.
"""

import torch

from int8tile import _core

ops = torch.ops.int8tile
NAN, INF = float("nan"), float("inf")
DEEP = _core.SLICE_DEPTH
# With 2048 features: floor((2**31 - 1 - 2048 * 127**2) / (16384 * 127)).
MOST_OUTLIERS = 1016

PACKED = "packed_weight and weight_scale must come together from int8tile::pack_weight, uint8"
SEED = "stochastic rounding needs seed, one int64 value in a tensor; got"
SAVED = "saved_input must be what int8tile::linear_forward saved for"
FLOATS = "must be float32, bfloat16 or float16; got"
THRESHOLD = "threshold must be None or finite and >= 0; got"
SAVED_NAMES = ("saved_input", "saved_limbs", "input_scale", "outlier_index", "outlier_count")


def z(*shape, dtype=torch.float32):
    return torch.zeros(shape, dtype=dtype)


def f64(*shape):
    return z(*shape, dtype=torch.float64)


def i8(*shape):
    return z(*shape, dtype=torch.int8)


def u8(*shape):
    return z(*shape, dtype=torch.uint8)


def i64(*shape):
    return z(*shape, dtype=torch.int64)


def forward(input=None, weight=None, bias=None, **options):
    input, weight = (z(2, 4) if input is None else input), (z(3, 4) if weight is None else weight)
    return ops.linear_forward(input, weight, bias, **options)


def grad_input(grad_output=None, weight=None, **options):
    grad_output = z(2, 3) if grad_output is None else grad_output
    return ops.linear_grad_input(grad_output, z(3, 4) if weight is None else weight, **options)


def stochastic(**options):
    return grad_input(rounding="stochastic", **options)


def saved_with(options):
    """What linear_forward saves of [2, 4] by [3, 4], with tensors named in options replaced."""
    _, *saved = ops.linear_forward(z(2, 4), z(3, 4))
    return [options.pop(name, old) for name, old in zip(SAVED_NAMES, saved, strict=True)]


def grad_weight(grad_output=None, features=4, **options):
    saved = saved_with(options)
    grad_output = z(2, 3) if grad_output is None else grad_output
    return ops.linear_grad_weight(grad_output, *saved, features, **options)


def backward(grad_output=None, weight=None, **options):
    saved = saved_with(options)
    grad_output = z(2, 3) if grad_output is None else grad_output
    weight = z(3, 4) if weight is None else weight
    return ops.linear_backward(grad_output, weight, *saved, **options)


def packed(change=lambda panels: panels, scale=None, rows=3):
    panels, its_scale = ops.pack_weight(z(rows, 4))
    scale = its_scale if scale is None else scale
    return {"packed_weight": change(panels), "weight_scale": scale}


# Options of the split and of the scales, refused alike by every op that takes them.
SPLIT_OPTIONS = [
    (f"{THRESHOLD} -1.0", {"threshold": -1.0}),
    (f"{THRESHOLD} nan", {"threshold": NAN}),
    (f"{THRESHOLD} inf", {"threshold": INF}),
    ("outlier_bits must be 8..15; got 7", {"outlier_bits": 7}),
    ("outlier_bits must be 8..15; got 16", {"outlier_bits": 16}),
    ("outlier_capacity must be 0..4 (the input features); got 5", {"outlier_capacity": 5}),
    ("outlier_capacity must be 0..4 (the input features); got -1", {"outlier_capacity": -1}),
    (
        "outlier_capacity must be 0..4 (the input features); got 6",
        {"outlier_capacity": 6, "threshold": None},
    ),
]
SCALE_OPTIONS = [
    ("granularity must be one of ('row', 'tensor'); got 'column'", {"granularity": "column"}),
    ("scale must be one of ('absmax', 'pow2'); got 'mean'", {"scale": "mean"}),
]
ROUNDING = (
    "rounding of gradients must be one of ('nearest', 'stochastic'); got 'up'",
    {"rounding": "up"},
)

ABSMAX = "weight_absmax is only taken with packed_weight and outlier_gain"

VALUE_ERRORS = {
    "linear_forward": [
        (ABSMAX, lambda: forward(weight_absmax=z(3), outlier_gain=True)),
        (ABSMAX, lambda: forward(weight_absmax=z(3), **packed())),
        (
            "weight_absmax must be contiguous float32 [3]; got torch.float32 [4]",
            lambda: forward(weight_absmax=z(4), outlier_gain=True, **packed()),
        ),
        ("input must have 2 dimensions; got [1, 2, 4]", lambda: forward(z(1, 2, 4))),
        (
            "weight must be [n, 4] to match input [2, 4]; got [3, 5]",
            lambda: forward(weight=z(3, 5)),
        ),
        ("weight must be [n, 4] to match input [2, 4]; got [4]", lambda: forward(weight=z(4))),
        ("bias must be [3] to match weight [3, 4]; got [2]", lambda: forward(bias=z(2))),
        ("bias must be [3] to match weight [3, 4]; got [1, 3]", lambda: forward(bias=z(1, 3))),
        (
            f"outlier_capacity must be at most {MOST_OUTLIERS} so that sums over 2048 features "
            f"fit int32; got {MOST_OUTLIERS + 1}",
            lambda: forward(z(1, 2048), z(1, 2048), outlier_capacity=MOST_OUTLIERS + 1),
        ),
        (PACKED, lambda: forward(packed_weight=ops.pack_weight(z(3, 4))[0])),
        (PACKED, lambda: forward(weight_scale=z(3))),
        (PACKED, lambda: forward(**packed(rows=200))),
        (PACKED, lambda: forward(**packed(lambda panels: panels.to(torch.int8)))),
        (PACKED, lambda: forward(**packed(lambda panels: panels.t().contiguous().t()))),
        ("weight_scale must be", lambda: forward(**packed(scale=z(2)))),
        ("weight_scale must be", lambda: forward(**packed(scale=f64(3)))),
    ],
    "linear_grad_input": [
        (
            "grad_output must have 2 dimensions; got [1, 2, 3]",
            lambda: grad_input(z(1, 2, 3)),
        ),
        (
            "weight must be [5, k] to match grad_output [2, 5]; got [3, 4]",
            lambda: grad_input(z(2, 5)),
        ),
        (f"{SEED} None", stochastic),
        (f"{SEED} torch.float32 [1]", lambda: stochastic(seed=z(1))),
        (f"{SEED} torch.int64 [2]", lambda: stochastic(seed=i64(2))),
        (PACKED, lambda: grad_input(z(2, 80), z(80, 4), **packed(rows=80))),
    ],
    "linear_grad_weight": [
        (
            "grad_output must have 2 dimensions; got [1, 2, 3]",
            lambda: grad_weight(z(1, 2, 3)),
        ),
        (f"{SAVED} [40, 4], uint8", lambda: grad_weight(z(40, 3))),
        (f"{SAVED} [2, 200], uint8", lambda: grad_weight(features=200)),
        (f"{SAVED} [2, 4], uint8", lambda: grad_weight(saved_input=i8(64, 16))),
        ("input_scale must be", lambda: grad_weight(z(5, 3))),
        ("input_scale must be", lambda: grad_weight(input_scale=f64(2))),
        ("saved_limbs must be", lambda: grad_weight(saved_limbs=u8(1, 1))),
        ("outlier_index must be", lambda: grad_weight(outlier_index=z(4))),
        ("outlier_index must be", lambda: grad_weight(outlier_index=i64(3, 4))),
        ("outlier_count must be", lambda: grad_weight(outlier_count=i64(2))),
        (f"{SEED} None", lambda: grad_weight(rounding="stochastic")),
    ],
    "linear_backward": [
        ("grad_output must have 2 dimensions; got [1, 2, 3]", lambda: backward(z(1, 2, 3))),
        (
            "weight must be [5, k] to match grad_output [2, 5]; got [3, 4]",
            lambda: backward(z(2, 5)),
        ),
        (f"{SAVED} [40, 4], uint8", lambda: backward(z(40, 3))),
        (f"{SAVED} [2, 200], uint8", lambda: backward(weight=z(3, 200))),
        ("input_scale must be", lambda: backward(input_scale=f64(2))),
        ("outlier_count must be", lambda: backward(outlier_count=i64(2))),
        (f"{SEED} None", lambda: backward(rounding="stochastic")),
    ],
    "pack_weight": [
        ("weight must have 2 dimensions; got [4]", lambda: ops.pack_weight(z(4))),
    ],
    "quantize": [
        ("input must have 2 dimensions; got [1, 2, 3]", lambda: ops.quantize(z(1, 2, 3))),
        (
            "fold must be float32 [2] to match input [2, 3]; got torch.float32 [3]",
            lambda: ops.quantize(z(2, 3), z(3)),
        ),
        (
            "fold must be float32 [2] to match input [2, 3]; got torch.float64 [2]",
            lambda: ops.quantize(z(2, 3), f64(2)),
        ),
        (f"{SEED} None", lambda: ops.quantize(z(2, 3), rounding="stochastic")),
    ],
    "quantize_split": [
        ("input must have 2 dimensions; got [1, 2, 3]", lambda: ops.quantize_split(z(1, 2, 3))),
    ],
    "gemm": [
        ("a must have 2 dimensions; got [3]", lambda: ops.gemm(i8(3), i8(2, 3))),
        (
            "b must be [n, 3] to match a [2, 3]; got [4, 5]",
            lambda: ops.gemm(i8(2, 3), i8(4, 5)),
        ),
        (
            "a_high and b_high must be given together; got one of them",
            lambda: ops.gemm(i8(2, 3), i8(4, 3), i8(2, 1)),
        ),
        (
            "a_high must be [2, h] and b_high [4, h]; got [3, 1] and [4, 1]",
            lambda: ops.gemm(i8(2, 3), i8(4, 3), i8(3, 1), i8(4, 1)),
        ),
        (
            "b_high must be [n, 1] to match a_high [2, 1]; got [4, 2]",
            lambda: ops.gemm(i8(2, 3), i8(4, 3), i8(2, 1), i8(4, 2)),
        ),
        (
            f"k + 128 * high columns must be below {DEEP} so that every sum fits int32; got {DEEP}",
            lambda: ops.gemm(i8(1, DEEP), i8(1, DEEP)),
        ),
        (
            f"k + 128 * high columns must be below {DEEP} so that every sum fits int32; got {DEEP}",
            lambda: ops.gemm(i8(1, 0), i8(1, 0), i8(1, 1024), i8(1, 1024)),
        ),
    ],
}

TYPE_ERRORS = {
    "linear_forward": [
        (f"input {FLOATS} torch.float64", lambda: forward(f64(2, 4))),
        (f"weight {FLOATS} torch.int8", lambda: forward(weight=i8(3, 4))),
        (f"bias {FLOATS} torch.int64", lambda: forward(bias=i64(3))),
        (f"out_dtype {FLOATS} torch.int32", lambda: forward(out_dtype=torch.int32)),
    ],
    "linear_grad_input": [
        (f"grad_output {FLOATS} torch.float64", lambda: grad_input(f64(2, 3))),
        (f"weight {FLOATS} torch.int8", lambda: grad_input(weight=i8(3, 4))),
        (f"out_dtype {FLOATS} torch.int32", lambda: grad_input(out_dtype=torch.int32)),
    ],
    "linear_grad_weight": [
        (f"grad_output {FLOATS} torch.float64", lambda: grad_weight(f64(2, 3))),
        (f"out_dtype {FLOATS} torch.int32", lambda: grad_weight(out_dtype=torch.int32)),
    ],
    "linear_backward": [
        (f"grad_output {FLOATS} torch.float64", lambda: backward(f64(2, 3))),
        (f"weight {FLOATS} torch.int8", lambda: backward(weight=i8(3, 4))),
        (f"out_dtype {FLOATS} torch.int32", lambda: backward(out_dtype=torch.int32)),
    ],
    "pack_weight": [(f"weight {FLOATS} torch.int8", lambda: ops.pack_weight(i8(3, 4)))],
    "quantize": [(f"input {FLOATS} torch.int64", lambda: ops.quantize(i64(2, 3)))],
    "quantize_split": [(f"input {FLOATS} torch.float64", lambda: ops.quantize_split(f64(2, 3)))],
    "gemm": [
        (
            "a and b must be int8; got torch.float32 and torch.int8",
            lambda: ops.gemm(z(2, 3), i8(4, 3)),
        ),
        (
            "a_high and b_high must be int8; got torch.uint8 and torch.int8",
            lambda: ops.gemm(i8(2, 3), i8(4, 3), u8(2, 1), i8(4, 1)),
        ),
    ],
}
