"""Fake kernels make the checks of the real ones and give the real ones' shapes."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from helpers import DTYPES, dtype_name, randn, same
from refusals import (
    ROUNDING,
    SCALE_OPTIONS,
    SPLIT_OPTIONS,
    TYPE_ERRORS,
    VALUE_ERRORS,
    backward,
    forward,
    grad_input,
    grad_weight,
    i8,
    i64,
    z,
)

ops = torch.ops.int8tile

CALLS = {
    "linear_forward": lambda: forward(bias=z(3)),
    "linear_forward_without_split": lambda: forward(threshold=None, out_dtype=torch.float16),
    "linear_forward_only": lambda: ops.linear_forward_only(z(2, 4), z(3, 4), z(3)),
    "linear_forward_capacity": lambda: forward(z(70, 200), z(3, 200), outlier_capacity=100),
    "linear_forward_empty": lambda: forward(z(0, 4)),
    "linear_grad_input": lambda: grad_input(out_dtype=torch.bfloat16),
    "linear_grad_input_stochastic": lambda: grad_input(rounding="stochastic", seed=i64(1)),
    "linear_grad_weight": grad_weight,
    "linear_grad_weight_without_bias": lambda: grad_weight(with_bias=False),
    "linear_backward": backward,
    "linear_backward_without_bias": lambda: backward(with_bias=False, out_dtype=torch.float16),
    "pack_weight": lambda: ops.pack_weight(z(70, 33)),
    "pack_weight_transposed": lambda: ops.pack_weight(z(70, 33), transpose=True),
    "quantize": lambda: ops.quantize(z(5, 9)),
    "quantize_transposed": lambda: ops.quantize(z(5, 9), z(5), transpose=True),
    "quantize_split": lambda: ops.quantize_split(z(5, 99)),
    "gemm": lambda: ops.gemm(i8(5, 9), i8(7, 9), i8(5, 2), i8(7, 2)),
    "linear": lambda: ops.linear(z(2, 5, 4), z(3, 4), z(3)),
}


def outcome(call):
    try:
        call()
    except Exception as error:
        return type(error), str(error)
    return None


def refusals():
    for table in (VALUE_ERRORS, TYPE_ERRORS):
        for op, cases in table.items():
            for message, call in cases:
                yield pytest.param(call, id=f"{op}: {message}")
    split = [*SPLIT_OPTIONS, *SCALE_OPTIONS]
    gradient = [*SCALE_OPTIONS, ROUNDING]
    for message, options in split:
        yield pytest.param(lambda o=options: forward(**o), id=f"linear_forward: {message}")
        yield pytest.param(
            lambda o=options: ops.quantize_split(z(2, 4), **o), id=f"quantize_split: {message}"
        )
    for message, options in gradient:
        yield pytest.param(lambda o=options: grad_input(**o), id=f"linear_grad_input: {message}")
        yield pytest.param(lambda o=options: grad_weight(**o), id=f"linear_grad_weight: {message}")
        yield pytest.param(lambda o=options: backward(**o), id=f"linear_backward: {message}")
        yield pytest.param(lambda o=options: ops.quantize(z(2, 4), **o), id=f"quantize: {message}")


@pytest.mark.parametrize("call", list(refusals()))
def test_fake_and_meta_tensors_are_refused_like_real_ones(call, device):
    with device:
        real = outcome(call)
    assert real is not None
    with FakeTensorMode(), device:
        assert outcome(call) == real
    with torch.device("meta"):
        assert outcome(call) == real


def test_linear_refuses_fake_tensors_like_real_ones(device):
    calls = [
        lambda: ops.linear(z(1, 2, 4), z(3, 5)),
        lambda: ops.linear(z(2, 4), z(3, 4), z(2)),
        lambda: ops.linear(z(2, 4), z(3, 4, dtype=torch.float16)),
        *(lambda o=options: ops.linear(z(2, 4), z(3, 4), **o) for _, options in SPLIT_OPTIONS),
    ]
    for call in calls:
        with device:
            real = outcome(call)
        assert real is not None
        with FakeTensorMode(), device:
            assert outcome(call) == real


def layout(tensor):
    return tuple(tensor.shape), tensor.dtype, tensor.stride()


def layouts(call, device):
    """The layouts of a call's results, which are all on the device of its arguments."""
    with device:
        results = call()
    results = results if isinstance(results, (tuple, list)) else (results,)
    assert {result.device for result in results} == {device}
    return [layout(result) for result in results]


@pytest.mark.parametrize("name", CALLS)
def test_fake_and_meta_results_have_the_real_shapes_dtypes_and_strides(name, device):
    real = layouts(CALLS[name], device)
    with FakeTensorMode():
        assert layouts(CALLS[name], device) == real
    if name != "linear":
        assert layouts(CALLS[name], torch.device("meta")) == real


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
def test_fake_gradients_have_the_real_shapes_and_dtypes(dtype, device):
    with FakeTensorMode(), device:
        x = z(2, 5, 40, dtype=dtype).requires_grad_()
        w, bias = z(7, 40, dtype=dtype).requires_grad_(), z(7, dtype=dtype).requires_grad_()
        ops.linear(x, w, bias, grad_rounding="stochastic").sum().backward()
    for tensor in (x, w, bias):
        assert layout(tensor.grad) == layout(tensor)


class Forward(torch.nn.Module):
    def forward(self, x, w):
        return ops.linear_forward(x, w)[0]


def test_the_number_of_tokens_can_be_symbolic(device):
    x, w = randn(6, 40, device=device), randn(7, 40, seed=1, device=device)
    exported = torch.export.export(
        Forward(), (x, w), dynamic_shapes=({0: torch.export.Dim("m")}, None)
    )
    x = randn(11, 40, seed=2, device=device)
    same(exported.module()(x, w), Forward()(x, w))
