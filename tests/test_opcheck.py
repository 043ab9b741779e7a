"""Every op keeps torch's contract for custom operators: schema, autograd, fake kernel, tracing."""

import pytest
import torch

from helpers import DTYPES, PAPER, SEED, activations, dtype_name, randn

ops = torch.ops.int8tile

# Said by torch 2.14 of its own look at an argument.
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")

# Without the comparison of traced with eager values and gradients: `linear` draws its own seed, and
# the raw ops have no gradient of their own (they are what autograd is made of).
WITHOUT_VALUES = ("test_schema", "test_autograd_registration", "test_faketensor")
ALL = (*WITHOUT_VALUES, "test_aot_dispatch_dynamic")
# Their results are padded for the GEMM, and on CUDA nothing writes all of the padding.
PADDED = ("linear_forward", "quantize_input", "pack_weight")


def check(op, *args, **kwargs):
    raw = op not in ("linear", "linear_switched")
    stochastic = not raw and kwargs.get("grad_rounding") == "stochastic"
    grad = any(isinstance(a, torch.Tensor) and a.requires_grad for a in args)
    padded = op in PADDED and args[0].is_cuda
    tests = WITHOUT_VALUES if stochastic or padded or (raw and grad) else ALL
    torch.library.opcheck(getattr(ops, op).default, args, kwargs, test_utils=tests)


def saved_for(x, w, **options):
    return ops.linear_forward(x, w, **options)[1:]


INPUTS = {
    "plain": lambda device: activations(9, 40, device=device),
    "transposed": lambda device: activations(40, 9, device=device).t(),
    "broadcast": lambda device: activations(1, 40, device=device).expand(9, 40),
    "empty": lambda device: activations(0, 40, device=device),
    "one_row": lambda device: activations(1, 40, device=device),
    "differentiable": lambda device: activations(9, 40, device=device).requires_grad_(),
}
EACH_INPUT = pytest.mark.parametrize("x", INPUTS.values(), ids=INPUTS)
OPTIONS = {
    "split": {},
    "no_split": {"threshold": None},
    "capacity": {"outlier_capacity": 2, "outlier_bits": 9},
    "paper": PAPER,
}
EACH_OPTION = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)


@EACH_INPUT
def test_linear_forward(x, device):
    x = x(device)
    w = randn(7, 40, seed=1, requires_grad=x.requires_grad, device=device)
    check("linear_forward", x, w, randn(7, device=device))


@EACH_OPTION
def test_linear_forward_options(options, device):
    x = activations(9, 40, device=device)
    check("linear_forward", x, randn(7, 40, seed=1, device=device), None, **options)
    check("linear_forward_only", x, randn(40, 7, device=device).t(), **options)


def test_linear_forward_with_a_packed_weight(device):
    w = randn(7, 40, seed=1, device=device)
    panels, scale = ops.pack_weight(w)
    given = {"packed_weight": panels, "weight_scale": scale, "out_dtype": torch.bfloat16}
    check("linear_forward", activations(9, 40, device=device), w, **given)


@EACH_INPUT
def test_outlier_gain(x):
    x = x("cpu")
    train = {"requires_grad": x.requires_grad}
    w, g = randn(7, 40, seed=1, **train), randn(len(x), 7, seed=2)
    check("linear_forward", x, w, outlier_gain=True)
    check("linear_forward_only", x, w, outlier_gain=True)
    check("linear", x, w, outlier_gain=True)
    check("linear_switched", x, w, None, outlier_gain=True)
    saved = saved_for(x.detach(), w.detach(), outlier_gain=True)
    check("linear_grad_weight", g, *saved, 40)
    check("linear_backward", g, w.detach(), *saved)


@EACH_INPUT
def test_linear_grad_input(x, device):
    g = x(device)
    w = randn(40, 7, seed=1, requires_grad=g.requires_grad, device=device)
    check("linear_grad_input", g, w)


@EACH_INPUT
def test_linear_grad_weight(x, device):
    g = x(device)
    saved = saved_for(activations(len(g), 30, device=device), randn(40, 30, seed=1, device=device))
    check("linear_grad_weight", g, *saved, 30)
    check("linear_grad_weight", g, *saved, 30, with_bias=False, out_dtype=torch.float16)
    if device.type == "cpu":
        check("linear_grad_weight", g, *saved, 30, grad_split=False)


@EACH_INPUT
def test_linear_backward(x, device):
    g = x(device)
    w = randn(40, 30, seed=1, requires_grad=g.requires_grad, device=device)
    saved = saved_for(activations(len(g), 30, device=device), w.detach())
    check("linear_backward", g, w, *saved)
    check("linear_backward", g, w, *saved, with_bias=False, out_dtype=torch.float16)
    if device.type == "cpu":
        check("linear_backward", g, w, *saved, grad_split=False)


@EACH_OPTION
def test_gradients_of_each_option(options, device):
    x = activations(9, 40, device=device)
    w = randn(7, 40, seed=1, device=device)
    g = randn(9, 7, seed=2, device=device)
    scales = {name: value for name, value in options.items() if name in PAPER}
    how = {"rounding": "stochastic", "seed": SEED.to(device), **scales}
    check("linear_grad_input", g, w, **how)
    saved = saved_for(x, w, **options)
    check("linear_grad_weight", g, *saved, 40, **how)
    check("linear_backward", g, w, *saved, **how)


@EACH_INPUT
def test_pack_weight(x, device):
    x = x(device)
    check("pack_weight", x)
    check("pack_weight", x, transpose=True, **PAPER)


@EACH_INPUT
def test_quantize(x, device):
    x = x(device)
    check("quantize", x)
    fold = randn(len(x), seed=1, device=device).abs()
    check("quantize", x, fold, rounding="stochastic", seed=SEED.to(device), transpose=True)


@EACH_INPUT
def test_quantize_split(x, device):
    check("quantize_split", x(device))


@EACH_INPUT
def test_quantize_input_and_linear_multiply(x, device):
    x = x(device)
    w = randn(7, 40, seed=1, requires_grad=x.requires_grad, device=device)
    check("quantize_input", x)
    block, _, _, *rest = ops.quantize_input(x)
    check("linear_multiply", block, *rest, w)


@EACH_OPTION
def test_quantize_split_options(options, device):
    check("quantize_split", activations(9, 40, device=device), **options)


@pytest.mark.parametrize("transposed", [False, True], ids=["contiguous", "transposed"])
def test_gemm(transposed, device):
    def ones(rows, cols):
        values = torch.ones(rows, cols, dtype=torch.int8, device=device)
        return values.t().contiguous().t() if transposed else values

    check("gemm", ones(5, 9), ones(7, 9))
    check("gemm", ones(5, 9), ones(7, 9), ones(5, 2), ones(7, 2))
    check("gemm", ones(0, 9), ones(7, 9))


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
def test_every_op_in_each_dtype(dtype, device):
    x = activations(9, 40, dtype=dtype, device=device)
    w = randn(7, 40, dtype=dtype, device=device)
    g = randn(9, 7, dtype=dtype, device=device)
    check("linear", x, w)
    check("linear_forward", x, w)
    check("linear_grad_input", g, w)
    check("linear_grad_weight", g, *saved_for(x, w), 40)
    check("pack_weight", w)
    check("quantize", x)
    check("quantize_split", x)


@EACH_INPUT
def test_linear(x, device):
    x = x(device)
    w = randn(7, 40, seed=1, requires_grad=x.requires_grad, device=device)
    check("linear", x, w, randn(7, seed=2, requires_grad=x.requires_grad, device=device))


@EACH_OPTION
def test_linear_trains_with_each_option(options, device):
    x = activations(2, 5, 40, device=device).requires_grad_()
    w = randn(7, 40, seed=1, requires_grad=True, device=device)
    check("linear", x, w, **options)


@pytest.mark.parametrize("lead", [(), (3,), (2, 3), (2, 1, 3)], ids=str)
def test_linear_takes_leading_dimensions(lead, device):
    x = activations(*lead, 40, device=device).requires_grad_()
    bias = randn(7, seed=2, requires_grad=True, device=device)
    check("linear", x, randn(7, 40, seed=1, device=device), bias)


def test_linear_with_stochastic_gradients(device):
    x = activations(9, 40, device=device).requires_grad_()
    w = randn(7, 40, seed=1, requires_grad=True, device=device)
    check("linear", x, w, grad_rounding="stochastic", **PAPER)


@pytest.mark.parametrize("switch", ["forward", "grad_input", "grad_weight"])
def test_linear_with_one_gemm_in_float(switch, device):
    x = activations(9, 40, device=device).requires_grad_()
    w = randn(7, 40, seed=1, requires_grad=True, device=device)
    check("linear_switched", x, w, randn(7, requires_grad=True, device=device), **{switch: False})
