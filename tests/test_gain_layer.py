"""The option outlier_gain of the torch ops and of Int8Linear, and where it is refused."""

import copy

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import int8tile
from helpers import DTYPES, array, close, dtype_name, expected_linear, matrix, randn, same
from int8tile import Int8TileConfig, reference
from int8tile.nn import Int8Linear
from int8tile.ops.autograd import linear
from int8tile.ops.shared import SharedInput

ops = torch.ops.int8tile
GAIN = Int8TileConfig(outlier_gain=True)
COLUMNS = [3, 17, 40]


def stressed(*lead, k=70, n=66, dtype=torch.float32, needs="xwb"):
    """Input whose outlier columns meet small weights, weight, bias and output gradient."""
    x, w = randn(*lead, k), randn(n, k, seed=1)
    x[..., COLUMNS] *= 60
    w[:, COLUMNS] /= 60
    bias, g = (randn(*s, n, seed=2, dtype=dtype) for s in ((), lead))
    given = {"x": x.to(dtype), "w": w.to(dtype), "b": bias}
    return *(t.requires_grad_(name in needs) for name, t in given.items()), g


def layer(w, bias, config=GAIN):
    module = Int8Linear(w.shape[1], w.shape[0], dtype=w.dtype, config=config)
    module.weight, module.bias = nn.Parameter(w.detach().clone()), nn.Parameter(bias.detach())
    return module


def gradients(call, x, g):
    x = x.detach().requires_grad_()
    y = call(x)
    y.backward(g)
    return y.detach(), x.grad


@pytest.mark.parametrize("options", [{}, {"granularity": "tensor", "scale": "pow2"}],
                         ids=["row", "paper"])  # fmt: skip
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
def test_linear_is_the_reference(dtype, options):
    x, w, bias, g = stressed(4, 9, dtype=dtype)
    y = ops.linear(x, w, bias, outlier_gain=True, **options)
    y.backward(g)
    expected = expected_linear(x, w, bias, g, outlier_gain=True, **options)
    same(y.detach(), expected.output)
    same(x.grad, expected.grad_input)
    same(w.grad, expected.grad_weight)
    assert (expected.split.gain > 1).sum() >= 3
    assert not torch.equal(y, ops.linear(x, w, bias, **options))


def test_forward_gives_the_columns_and_the_exponents_of_their_gains():
    x, w, *_ = stressed(40, needs="")
    _, _, _, _, index, count = ops.linear_forward(x, w, outlier_gain=True)
    found = int(count[0])
    expected = reference.outlier_gains(matrix(x), array(w), array(index[0, :found]), 5.0)
    same(torch.exp2(index[1, :found].float()), expected)
    assert index[0, found:].tolist() == [-1] * (index.shape[1] - found)
    assert not index[1, found:].any()
    assert ops.linear_forward(x, w)[4].tolist() == index[0].tolist()


def test_int8linear_has_the_gradients_of_the_op():
    x, w, bias, g = stressed(40)
    module = layer(w, bias)
    results = *gradients(module, x, g), module.weight.grad, module.bias.grad
    y = ops.linear(x, w, bias, outlier_gain=True)
    y.backward(g)
    for actual, expected in zip(results, (y.detach(), x.grad, w.grad, bias.grad), strict=True):
        same(actual, expected)
    with torch.no_grad():
        same(module(x), y.detach())


def test_it_trains_like_float_where_the_weights_are_small():
    x, w, bias, g = stressed(200)
    exact = nn.functional.linear(x, w, bias)
    exact.backward(g)
    wanted, w.grad = w.grad, None
    y = ops.linear(x, w, bias, outlier_gain=True)
    y.backward(g)
    close(w.grad, wanted, 0.03)
    assert not torch.equal(w.grad, wanted)
    without = ops.linear(x, w, bias)
    assert (y - exact).norm() < 0.5 * (without - exact).norm()


def test_an_input_quantised_with_gains_is_not_multiplied_again():
    x, w, *_ = stressed(40, needs="")
    block, _, _, scale, index, count = ops.quantize_input(x)
    index = torch.stack([index, torch.zeros_like(index)])
    with pytest.raises(
        ValueError, match=r"outlier_index must be \[capacity\], of a forward without"
    ):
        ops.linear_multiply(block, scale, index, count, w)


def test_compiled_and_checkpointed_layers_give_the_same():
    x, w, bias, g = stressed(40)
    module = layer(w, bias)
    expected = *gradients(module, x, g), module.weight.grad.clone()
    for call in (
        torch.compile(copy.deepcopy(module), backend="aot_eager", fullgraph=True),
        lambda x: checkpoint(module, x, use_reentrant=False),
    ):
        module.zero_grad()
        results = gradients(call, x, g)
        weight = (call if isinstance(call, nn.Module) else module).get_parameter
        name = "_orig_mod.weight" if isinstance(call, nn.Module) else "weight"
        for actual, wanted in zip((*results, weight(name).grad), expected, strict=True):
            same(actual, wanted)


@pytest.mark.parametrize("granularity", ["row", "tensor"])
def test_a_frozen_weight_keeps_its_packed_copy_as_it_is(granularity):
    x, w, bias, g = stressed(40)
    config = Int8TileConfig(outlier_gain=True, granularity=granularity)
    trained = layer(w, bias, config)
    frozen = copy.deepcopy(trained)
    frozen.weight.requires_grad_(False)
    expected = gradients(trained, x, g)
    for _ in range(2):
        for actual, wanted in zip(gradients(frozen, x, g), expected, strict=True):
            same(actual, wanted)
    with torch.no_grad():
        same(frozen(x), expected[0])
    panels, scale = frozen.__dict__["_cache"].get(frozen.weight, granularity, "absmax", False)
    clean = ops.pack_weight(frozen.weight, granularity)
    same(panels, clean[0])
    same(scale, clean[1])
    with torch.no_grad():
        frozen.weight[5] *= 3
        trained.weight[5] *= 3
    same(frozen(x), trained(x))


def test_without_int8_in_forward_there_is_nothing_to_gain():
    x, w, bias, g = stressed(40)
    grads = []
    for gain in (False, True):
        w.grad = None
        ops.linear_switched(x, w, bias, forward=False, outlier_gain=gain).backward(g)
        grads.append(w.grad)
    same(*grads)


def test_layers_that_share_an_input_are_refused():
    model = nn.ModuleDict({name: nn.Linear(32, 32) for name in ("q_proj", "k_proj", "v_proj")})
    message = r"int8tile.convert_: share_inputs must be False with outlier_gain"
    for config in (GAIN, {"q_proj": GAIN, "*": None}):
        with pytest.raises(ValueError, match=message):
            int8tile.convert_(model, config, share_inputs=True)
    assert type(model["q_proj"]) is nn.Linear
    assert int8tile.convert_(model, GAIN).shared == []
    x, w, bias, _ = stressed(4)
    with pytest.raises(ValueError, match=r"a layer with it cannot share its quantised input"):
        linear(x, w, bias, GAIN.split, GAIN.scales, shared=SharedInput(2), outlier_gain=True)


def test_an_option_of_another_type_is_refused():
    with pytest.raises(TypeError, match=r"outlier_gain must be a bool; got 1"):
        Int8TileConfig(outlier_gain=1)


def _column_parallel(rank, style):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Replicate
    from torch.distributed.tensor.parallel import (
        ColwiseParallel,
        RowwiseParallel,
        parallelize_module,
    )

    x, w, bias, g = stressed(40)
    how = {
        "columns": ColwiseParallel(output_layouts=Replicate()),
        "rows": RowwiseParallel(input_layouts=Replicate()),
    }[style]
    module = parallelize_module(layer(w, bias), init_device_mesh("cpu", (2,)), how)
    results = gradients(module, x, g)
    return [t.detach() for t in (*results, module.weight.grad.full_tensor())]


@pytest.mark.parametrize("style", ["columns", "rows"])
def test_each_rank_of_a_sharded_layer_has_gains_of_its_own(ranks, style):
    x, w, bias, g = stressed(40)
    module = layer(w, bias)
    expected = *gradients(module, x, g), module.weight.grad
    for results in ranks(_column_parallel, style):
        for actual, wanted in zip(results, expected, strict=True):
            close(actual, wanted, 0.02)
