"""Int8Linear is an nn.Linear in every way but its arithmetic."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn

from helpers import RecordOps, activations, expected_linear, same
from int8tile import Int8TileConfig
from int8tile.nn import Int8Linear

K, N = 64, 48


def expected_output(layer, x):
    return expected_linear(x, layer.weight, layer.bias, torch.zeros(len(x), N)).output


@pytest.fixture
def layer_of(device):
    def build(frozen=False, **config):
        torch.manual_seed(0)
        layer = Int8Linear(K, N, config=Int8TileConfig(**config))
        return layer.to(device).requires_grad_(not frozen)

    return build


@pytest.fixture
def x(device):
    return activations(9, K, device=device)


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no_bias"])
def test_parameters_keys_and_initial_values_are_those_of_linear(bias):
    torch.manual_seed(3)
    plain = nn.Linear(K, N, bias)
    torch.manual_seed(3)
    ours = Int8Linear(K, N, bias)
    assert isinstance(ours, nn.Linear)
    assert list(ours.state_dict()) == list(plain.state_dict())
    assert [name for name, _ in ours.named_parameters()] == list(plain.state_dict())
    same(ours.weight, plain.weight)
    assert (ours.bias is None) == (not bias)


def test_state_dicts_are_exchanged_with_linear(x, device, layer_of):
    plain, ours = nn.Linear(K, N, device=device), layer_of()
    ours.load_state_dict(plain.state_dict())
    same(ours(x).detach(), expected_output(ours, x))
    plain.load_state_dict(ours.state_dict())
    same(plain.weight, ours.weight)


def test_a_packed_copy_is_no_part_of_the_state(x, layer_of):
    layer = layer_of(frozen=True)
    layer(x)
    assert list(layer.state_dict()) == ["weight", "bias"]
    assert list(layer.buffers()) == []


@pytest.mark.parametrize("used", [False, True], ids=["unused", "used"])
@pytest.mark.parametrize("frozen", [False, True], ids=["trained", "frozen"])
def test_copies_and_pickles_work_and_are_independent(frozen, used, x, layer_of):
    layer = layer_of(frozen, threshold=3.0)
    if used:
        layer(x)
    saved = io.BytesIO()
    torch.save(layer, saved)
    saved.seek(0)
    copies = [
        copy.deepcopy(layer),
        copy.copy(layer),
        pickle.loads(pickle.dumps(layer)),
        torch.load(saved, weights_only=False),
    ]
    before = layer(x)
    for twin in copies:
        assert type(twin) is Int8Linear
        assert twin.config == layer.config
        same(twin(x), before)
    with torch.no_grad():
        copies[0].weight.zero_()
    same(copies[0](x).detach(), layer.bias.detach().expand(9, N))
    same(layer(x), before)


def test_a_packed_copy_is_not_pickled(x, layer_of):
    layer = layer_of(frozen=True)
    unused = len(pickle.dumps(layer))
    layer(x)
    assert len(pickle.dumps(layer)) == unused


def test_tied_weights_stay_tied_and_collect_both_gradients(x, layer_of):
    first, second = layer_of(), layer_of()
    second.weight = first.weight
    y = first(x).sum() + second(x).sum()
    y.backward()
    alone = torch.autograd.grad(first(x).sum(), first.weight)[0]
    same(first.weight.grad, 2 * alone)
    twins = copy.deepcopy(nn.ModuleList([first, second]))
    assert twins[0].weight is twins[1].weight


def test_repr_names_the_config(layer_of):
    text = repr(layer_of(threshold=3.5))
    assert text.startswith("Int8Linear(in_features=64, out_features=48, bias=True")
    assert "threshold=3.5" in text


def test_device_and_dtype_arguments_are_those_of_linear():
    assert Int8Linear(K, N, device="meta").weight.is_meta
    assert Int8Linear(K, N, dtype=torch.bfloat16).weight.dtype == torch.bfloat16


# --- Few tokens in float


def gradients(layer, x):
    """Output and gradients of input, weight and bias, and the int8tile ops that ran."""
    x = x.detach().clone().requires_grad_()
    with RecordOps() as record:
        y = layer(x)
        grads = torch.autograd.grad(y.square().sum(), [x, layer.weight, layer.bias])
    return [y.detach(), *grads], record.names


@pytest.mark.parametrize("lead", [(7,), (1, 7), (0,), ()], ids=str)
def test_fewer_tokens_than_min_tokens_run_in_float(lead, device, layer_of):
    ours, x = layer_of(min_tokens=8), activations(*lead, K, device=device)
    plain = nn.Linear(K, N, device=device)
    plain.load_state_dict(ours.state_dict())
    results, ops = gradients(ours, x)
    assert ops == []
    for actual, expected in zip(results, gradients(plain, x)[0], strict=True):
        same(actual, expected)


@pytest.mark.parametrize("lead", [(8,), (2, 4), (130,)], ids=str)
def test_min_tokens_and_more_run_in_int8(lead, device, layer_of):
    layer, always, x = layer_of(min_tokens=8), layer_of(), activations(*lead, K, device=device)
    results, ops = gradients(layer, x)
    assert ops == ["linear_forward", "linear_backward"]
    for actual, expected in zip(results, gradients(always, x)[0], strict=True):
        same(actual, expected)


def test_no_call_runs_in_float_by_default(device, layer_of):
    _, ops = gradients(layer_of(), activations(1, K, device=device))
    assert ops == ["linear_forward", "linear_backward"]


def test_a_frozen_weight_in_float_is_never_stale(device, layer_of):
    layer = layer_of(frozen=True, min_tokens=8)
    few = activations(3, K, device=device)
    many = activations(9, K, device=device)
    layer(many)
    with torch.no_grad():
        layer.weight.mul_(2)
    same(layer(few), nn.functional.linear(few, layer.weight, layer.bias))
    same(layer(many), expected_output(layer, many))


def test_few_tokens_follow_autocast(device, layer_of):
    layer, x = layer_of(min_tokens=8), activations(3, K, device=device)
    with torch.autocast(device.type, torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16
