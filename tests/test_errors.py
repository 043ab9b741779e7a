"""Every refusal says who refuses, what is required and what came, before any work is done."""

import re

import pytest
import torch

import int8tile
from helpers import randn
from int8tile import Int8TileConfig
from int8tile.nn import Int8Linear
from int8tile.ops import checks
from refusals import ROUNDING, SCALE_OPTIONS, SPLIT_OPTIONS, TYPE_ERRORS, VALUE_ERRORS, i64, z

ops = torch.ops.int8tile


def refuses(error, message, call, *args, **kwargs):
    with pytest.raises(error, match="^" + re.escape(message)):
        call(*args, **kwargs)


def cases_of(tables):
    return [
        pytest.param(f"int8tile::{op}: {message}", call, id=f"{op}: {message}")
        for op, cases in tables.items()
        for message, call in cases
    ]


@pytest.mark.parametrize(("message", "call"), cases_of(VALUE_ERRORS))
def test_raw_ops_refuse_values(message, call, device):
    with device:
        refuses(ValueError, message, call)


@pytest.mark.parametrize(("message", "call"), cases_of(TYPE_ERRORS))
def test_raw_ops_refuse_types(message, call, device):
    with device:
        refuses(TypeError, message, call)


@pytest.mark.parametrize(("message", "options"), [*SPLIT_OPTIONS, *SCALE_OPTIONS])
@pytest.mark.parametrize("op", ["linear", "linear_forward", "quantize_split"])
def test_ops_refuse_options_of_the_split(op, message, options, device):
    with device:
        args = (z(2, 4),) if op == "quantize_split" else (z(2, 4), z(3, 4))
    refuses(ValueError, f"int8tile::{op}: {message}", getattr(ops, op), *args, **options)


@pytest.mark.parametrize(("message", "options"), [*SCALE_OPTIONS, ROUNDING])
@pytest.mark.parametrize("op", ["linear_grad_input", "quantize"])
def test_ops_refuse_options_of_the_scales(op, message, options, device):
    with device:
        args = (z(2, 4),) if op == "quantize" else (z(2, 3), z(3, 4))
    refuses(ValueError, f"int8tile::{op}: {message}", getattr(ops, op), *args, **options)


@pytest.mark.parametrize(
    ("error", "message", "args"),
    [
        (ValueError, "weight must be [n, 4] to match input [1, 2, 4]; got [3, 5]", ("124", "35")),
        (ValueError, "weight must be [n, k] to match input []; got [3, 4]", ("", "34")),
        (ValueError, "weight must be [n, 4] to match input [4]; got [4]", ("4", "4")),
        (ValueError, "bias must be [3] to match weight [3, 4]; got [4]", ("24", "34", "4")),
    ],
    ids=["features", "scalar", "vector_weight", "bias"],
)
def test_linear_refuses_shapes(error, message, args, device):
    tensors = [z(*map(int, shape)).to(device) for shape in args]
    refuses(error, f"int8tile::linear: {message}", ops.linear, *tensors)


def test_linear_refuses_dtypes(device):
    half, whole = z(2, 4, dtype=torch.bfloat16).to(device), z(3, 4).to(device)
    message = "int8tile::linear: weight and bias must be torch.bfloat16 like input; got"
    refuses(TypeError, f"{message} torch.float32", ops.linear, half, whole)
    refuses(TypeError, f"{message} torch.float32", ops.linear, half, whole.bfloat16(), whole[:, 0])
    refuses(
        TypeError,
        "int8tile::linear: input must be float32, bfloat16 or float16; got torch.int64",
        ops.linear,
        half.long(),
        whole,
    )


def test_linear_refuses_a_rounding_it_does_not_know():
    message = f"int8tile::linear: {ROUNDING[0]}"
    refuses(ValueError, message, ops.linear, z(2, 4), z(3, 4), grad_rounding="up")


def test_linear_refuses_a_device_without_kernels():
    message = f"int8tile::linear: this build runs on {checks.DEVICES_TEXT}; got a tensor on meta"
    x, w = z(2, 4).to("meta"), z(3, 4).to("meta")
    refuses(NotImplementedError, message, ops.linear, x, w)
    refuses(NotImplementedError, message, Int8Linear(4, 3, device="meta"), x)


def others(device):
    """Devices that a tensor may be on by mistake."""
    return [other for other in ("meta", "cpu") if other != device.type]


@pytest.mark.parametrize("op", ["linear", "linear_forward"])
def test_operands_must_be_on_one_device(op, device):
    x, w = z(2, 4).to(device), z(3, 4)
    for other in others(device):
        message = f"int8tile::{op}: weight must be on {device} like the first argument; got {other}"
        refuses(ValueError, message, getattr(ops, op), x, w.to(other))


def every_operand(device):
    """The raw ops that take several tensors, with all of them: by position and by name."""
    x, w, g = z(2, 4).to(device), z(3, 4).to(device), z(2, 3).to(device)
    a = torch.ones(2, 4, dtype=torch.int8, device=device)
    _, *saved = ops.linear_forward(x, w)
    block, _, _, *rest = ops.quantize_input(x)
    names = ("packed_weight", "weight_scale")
    packed, turned = (
        dict(zip(names, ops.pack_weight(w, transpose=t), strict=True)) for t in (False, True)
    )
    return [
        (ops.linear_forward, (x, w, w[:, 0]), packed),
        (ops.linear_forward_only, (x, w, w[:, 0]), packed),
        (ops.linear_multiply, (block, *rest, w, w[:, 0]), packed),
        (ops.linear_grad_input, (g, w), turned),
        (ops.linear_grad_weight, (g, *saved, 4), {}),
        (ops.linear_backward, (g, w, *saved), {}),
        (ops.quantize, (x, x[:, 0]), {}),
        (ops.gemm, (a, a, a, a), {}),
    ]


def test_every_operand_must_be_on_one_device(device):
    """The core reads operands by address."""
    refused = pytest.raises(ValueError, match=f"must be on {device} like the first argument; got")
    for op, args, options in every_operand(device):
        op(*args, **options)
        for other in others(device):
            for at, value in enumerate(args):
                if at and isinstance(value, torch.Tensor):
                    with refused:
                        op(*args[:at], value.to(other), *args[at + 1 :], **options)
            for name, value in options.items():
                with refused:
                    op(*args, **{**options, name: value.to(other)})


def test_a_quantised_input_must_fit_one_slice(device):
    """What quantize_input refuses, whatever block comes with it."""
    k = 131088
    block = torch.zeros(k, dtype=torch.uint8, device=device)
    scale, index, count = (torch.zeros(n, device=device) for n in (1, 0, 2))
    operands = (block, scale, index.int(), count.int(), torch.zeros(1, k, device=device))
    message = f"int8tile::linear_multiply: weight must have at most 131072 features; got {k}"
    refuses(ValueError, message, ops.linear_multiply, *operands)


@pytest.mark.parametrize("op", ["linear_grad_input", "linear_grad_weight"])
def test_a_seed_must_be_on_the_device(op, device):
    g, w = z(2, 3).to(device), z(3, 4).to(device)
    _, *saved = ops.linear_forward(z(2, 4).to(device), w)
    args = (w,) if op == "linear_grad_input" else (*saved, 4)
    for other in others(device):
        options = {"rounding": "stochastic", "seed": i64(1).to(other)}
        message = f"int8tile::{op}: seed must be on {device}; got {other}"
        refuses(ValueError, message, getattr(ops, op), g, *args, **options)


@pytest.mark.parametrize(
    ("error", "options", "message"),
    [
        (ValueError, {"threshold": -0.5}, "threshold must be None or finite and >= 0; got -0.5"),
        (ValueError, {"outlier_bits": 7}, "outlier_bits must be 8..15; got 7"),
        (ValueError, {"outlier_bits": 16}, "outlier_bits must be 8..15; got 16"),
        (ValueError, {"outlier_capacity": -1}, "outlier_capacity must be None or >= 0; got -1"),
        (ValueError, *reversed(SCALE_OPTIONS[0])),
        (ValueError, *reversed(SCALE_OPTIONS[1])),
        (ValueError, {"grad_rounding": "up"}, ROUNDING[0]),
        (TypeError, {"threshold": "5"}, "threshold must be"),
        (TypeError, {"outlier_bits": 12.5}, "outlier_bits must be"),
        (TypeError, {"outlier_bits": 12.0}, "outlier_bits must be an int; got 12.0"),
        (TypeError, {"outlier_capacity": 2.5}, "outlier_capacity must be"),
        (ValueError, {"min_tokens": -1}, "min_tokens must be >= 0; got -1"),
        (TypeError, {"min_tokens": 1.5}, "min_tokens must be an int; got 1.5"),
        (TypeError, {"min_tokens": None}, "min_tokens must be an int; got None"),
        (TypeError, {"forward": "false"}, "forward must be a bool; got 'false'"),
        (TypeError, {"grad_weight": None}, "grad_weight must be a bool; got None"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else None,
)
def test_config_refuses(error, options, message):
    refuses(error, f"int8tile.Int8TileConfig: {message}", Int8TileConfig, **options)
    refuses(error, f"int8tile.Int8TileConfig: {message}", Int8TileConfig.paper, **options)


def test_config_is_frozen():
    with pytest.raises(AttributeError, match="threshold"):
        Int8TileConfig().threshold = 3.0


def test_a_layer_refuses_a_capacity_beyond_its_features(device):
    layer = Int8Linear(8, 4, device=device, config=Int8TileConfig(outlier_capacity=9))
    message = "int8tile::linear: outlier_capacity must be 0..8 (the input features); got 9"
    refuses(ValueError, message, layer, randn(2, 8, device=device))


def test_a_layer_refuses_a_config_of_another_type():
    message = "int8tile.nn.Int8Linear: config must be an Int8TileConfig; got dict"
    refuses(TypeError, message, Int8Linear, 4, 3, config={"threshold": 5.0})


WRONG_CLASS = {
    "Bilinear": "must be an nn.Linear; got Bilinear",
    "LazyLinear": "cannot be converted: LazyLinear is a subclass of nn.Linear",
}


@pytest.mark.parametrize("module", [torch.nn.Bilinear(2, 2, 2), torch.nn.LazyLinear(3)])
def test_from_linear_refuses_another_class(module):
    name = type(module).__name__
    message = f"int8tile.nn.Int8Linear.from_linear: module {WRONG_CLASS[name]}"
    refuses(TypeError, message, Int8Linear.from_linear, module)


def test_layers_whose_forward_was_replaced_are_refused():
    plain, converted = torch.nn.Linear(2, 2), Int8Linear(2, 2)
    plain.forward, converted.forward = plain.forward, converted.forward
    who, turn = "int8tile.nn.Int8Linear", Int8Linear.from_linear
    message = f"{who}.from_linear: module cannot be converted: its forward was replaced"
    refuses(TypeError, message, turn, plain)
    message = f"{who}.to_linear: module must have its own forward"
    refuses(TypeError, message, converted.to_linear)


@pytest.mark.parametrize(
    ("config", "came"),
    [("row", "str"), (5.0, "float"), ({"*": {"threshold": 5}}, "dict"), ([("*", None)], "list")],
    ids=["string", "number", "mapping_of_dicts", "list"],
)
def test_convert_refuses_a_config_of_another_type_and_leaves_the_model(config, came):
    model = torch.nn.Sequential(torch.nn.Linear(2, 2))
    message = (
        "int8tile.convert_: config must be an Int8TileConfig or a mapping of name patterns to "
        f"them; got {came}"
    )
    refuses(TypeError, message, int8tile.convert_, model, config)
    assert type(model[0]) is torch.nn.Linear


@pytest.mark.parametrize(
    ("error", "value", "message"),
    [
        (TypeError, 64.0, "must be an int; got 64.0"),
        (TypeError, None, "must be an int; got None"),
        (ValueError, -1, "must be >= 0; got -1"),
    ],
    ids=str,
)
def test_convert_refuses_min_features_and_leaves_the_model(error, value, message):
    model = torch.nn.Sequential(torch.nn.Linear(2, 2))
    message = f"int8tile.convert_: min_features {message}"
    refuses(error, message, int8tile.convert_, model, min_features=value)
    assert type(model[0]) is torch.nn.Linear


def test_convert_refuses_a_kernel_it_does_not_know_and_leaves_the_model(monkeypatch):
    monkeypatch.setenv("INT8TILE_ISA", "sse9")
    model = torch.nn.Sequential(torch.nn.Linear(2, 2))
    refuses(ValueError, "int8tile: instruction set must be one of", int8tile.convert_, model)
    assert type(model[0]) is torch.nn.Linear


def test_a_refused_call_leaves_no_gradient_and_no_cache(device):
    layer = Int8Linear(8, 4, device=device).requires_grad_(False)
    x = randn(2, 7, requires_grad=True, device=device)
    refuses(ValueError, "int8tile::linear: weight must be [n, 7]", layer, x)
    assert x.grad is None


def test_plan_refuses():
    message = "int8tile::plan: m, n and k must not be negative; got -1, 2, 3"
    refuses(ValueError, message, int8tile.plan, -1, 2, 3)
    refuses(
        ValueError, "int8tile::plan: outlier_bits must be 8..15", int8tile.plan, 1, 2, 3, None, 7
    )
    message = "int8tile::plan: outlier_capacity must be 0..3 (the input features); got 4"
    refuses(ValueError, message, int8tile.plan, 1, 2, 3, 4)
