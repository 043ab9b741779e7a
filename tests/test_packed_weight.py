"""The packed copy of a frozen weight is made once, used, and never stale; CUDA keeps none."""

import pytest
import torch
from torch import nn

from helpers import RecordOps, activations, expected_linear, randn, same
from int8tile import Int8TileConfig
from int8tile.nn import Int8Linear

K, N = 64, 48


@pytest.fixture
def layer_of(device):
    def build(frozen=False, features=K):
        torch.manual_seed(0)
        return Int8Linear(features, N).to(device).requires_grad_(not frozen)

    return build


@pytest.fixture
def x(device):
    return activations(9, K, device=device)


@pytest.fixture
def kept(device):
    """Copies that a first call makes."""
    return int(device.type == "cpu")


def packs(call):
    """How often a call packed a weight to keep it."""
    with RecordOps() as record:
        call()
    return record.names.count("pack_weight")


def fresh(layer, x):
    """The reference's output with the weight as it is now."""
    return expected_linear(x, layer.weight, layer.bias, torch.zeros(len(x), N)).output


def assert_not_stale(layer, x):
    same(layer(x).detach(), fresh(layer, x))


def test_a_frozen_weight_is_packed_once_per_direction(device, layer_of, kept):
    layer = layer_of(frozen=True)
    x = activations(9, K, device=device).requires_grad_()
    assert packs(lambda: layer(x)) == kept
    assert packs(lambda: [layer(x) for _ in range(3)]) == 0
    assert packs(lambda: layer(x).sum().backward()) == kept
    assert packs(lambda: layer(x).sum().backward()) == 0
    same(layer(x).detach(), fresh(layer, x))


def test_a_packed_copy_gives_the_gradient_of_a_fresh_weight(device, layer_of):
    layer = layer_of(frozen=True)
    x, g = activations(9, K, device=device).requires_grad_(), randn(9, N, seed=4, device=device)
    for _ in range(2):
        x.grad = None
        layer(x).backward(g)
        same(x.grad, expected_linear(x, layer.weight, None, g).grad_input)


def test_a_trained_weight_is_never_kept(x, layer_of):
    layer = layer_of()
    assert packs(lambda: [layer(x) for _ in range(3)]) == 0
    with torch.no_grad():
        assert packs(lambda: [layer(x) for _ in range(3)]) == 0


def test_inference_mode_and_training_share_a_packed_copy(x, layer_of):
    layer = layer_of(frozen=True)
    with torch.inference_mode():
        inferred = layer(x)
    x = x.requires_grad_()
    y = layer(x)
    y.sum().backward()
    same(y.detach(), inferred.clone())
    assert x.grad is not None


def test_another_config_gets_its_own_packed_copy(x, layer_of):
    layer = layer_of(frozen=True)
    layer(x)
    layer.config = Int8TileConfig.paper()
    twin = layer_of(frozen=True)
    twin.config = layer.config
    twin.load_state_dict(layer.state_dict())
    same(layer(x), twin(x))


def test_fused_adamw_is_followed_step_by_step(x, layer_of):
    layer = layer_of()
    optimizer = torch.optim.AdamW(layer.parameters(), lr=0.1, fused=True)
    for _ in range(3):
        assert_not_stale(layer, x)
        optimizer.zero_grad()
        layer(x).square().sum().backward()
        optimizer.step()
    assert_not_stale(layer, x)


@pytest.mark.parametrize("write", ["whole", "element"])
def test_data_writes_to_a_trained_weight_are_seen(write, x, layer_of):
    layer = layer_of()
    layer(x)
    layer.weight.data[... if write == "whole" else (3, 5)] += 50.0
    assert_not_stale(layer, x)


WRITES = {
    "in_place": lambda w: w.mul_(3),
    "one_element_in_place": lambda w: w[3, 5].add_(50),
    "whole_data": lambda w: w.data.mul_(3),
    "copy_to_data": lambda w: w.data.copy_(randn(N, K, seed=9)),
}


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_writes_to_a_frozen_weight_are_seen(write, x, layer_of):
    layer = layer_of(frozen=True)
    layer(x)
    with torch.no_grad():
        write(layer.weight)
    assert_not_stale(layer, x)


def test_one_element_of_data_needs_invalidate(device, layer_of):
    layer = layer_of(frozen=True, features=300)  # more words than the fingerprint samples
    x = activations(9, 300, device=device)
    layer(x)
    layer.weight.data[3, 5] += 50.0
    layer.invalidate()
    assert_not_stale(layer, x)


def other_weight(device):
    return randn(N, K, seed=9, device=device)


def other_state(device):
    return nn.Linear(K, N, device=device).state_dict()


REPLACEMENTS = {
    "data": lambda layer, on: setattr(layer.weight, "data", other_weight(on)),
    "parameter": lambda layer, on: setattr(layer, "weight", nn.Parameter(other_weight(on), False)),
    "load": lambda layer, on: layer.load_state_dict(other_state("cpu")),
    "load_assign": lambda layer, on: layer.load_state_dict(other_state(on), assign=True),
    "to_device": lambda layer, on: layer.to("cpu").to(on),
    "share_memory": lambda layer, on: layer.share_memory(),
    "apply": lambda layer, on: layer._apply(lambda t: t * 3),
}


@pytest.mark.parametrize("replace", REPLACEMENTS.values(), ids=REPLACEMENTS)
def test_a_replaced_frozen_weight_is_seen(replace, x, layer_of, device):
    layer = layer_of(frozen=True)
    layer(x)
    replace(layer, device)
    assert_not_stale(layer, x)


@pytest.mark.parametrize(
    "view",
    [lambda w: w.t(), lambda w: w[: N // 2], lambda w: w.view(torch.int32).view(torch.float32)],
    ids=["turned", "cut", "same"],
)
def test_another_view_of_the_same_memory_is_seen(view, device):
    torch.manual_seed(0)
    layer = Int8Linear(N, N, bias=False).to(device).requires_grad_(False)
    x = activations(9, N, device=device)
    layer(x)
    layer.weight.data = view(layer.weight.data)
    g = torch.zeros(9, len(layer.weight))
    same(layer(x), expected_linear(x, layer.weight, None, g).output)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "f16"])
def test_a_cast_drops_the_packed_copy(dtype, x, layer_of):
    layer = layer_of(frozen=True)
    layer(x)
    layer.to(dtype)
    assert_not_stale(layer, x.to(dtype))
    layer.float()
    assert_not_stale(layer, x)


@pytest.mark.parametrize("mode", [True, False], ids=["train", "eval"])
def test_switching_the_mode_packs_again(mode, x, layer_of, kept):
    layer = layer_of(frozen=True).train(not mode)
    layer(x)
    assert layer.train(mode) is layer
    assert layer.training == mode
    assert packs(lambda: layer(x)) == kept
    layer.train(mode)  # as it is already: a Trainer does so before every step
    assert packs(lambda: layer(x)) == 0


def test_freezing_and_unfreezing_follow_the_weight(x, layer_of):
    layer = layer_of(frozen=True)
    layer(x)
    for _ in range(2):
        layer.requires_grad_(True)
        layer(x).square().sum().backward()
        torch.optim.AdamW(layer.parameters(), lr=0.1, fused=True).step()
        layer.requires_grad_(False)
        assert_not_stale(layer, x)


def test_training_part_of_a_weight_between_two_freezes_is_seen(device, layer_of):
    """Too few elements for the fingerprint move, and the fused step moves no version."""
    layer = layer_of(frozen=True, features=256)
    x = activations(9, 256, device=device)
    layer(x)
    layer.weight.requires_grad_(True)
    optimizer = torch.optim.AdamW([layer.weight], lr=0.1, weight_decay=0.0, fused=True)
    layer(x)
    layer.weight.grad = torch.zeros_like(layer.weight)
    layer.weight.grad[3, 5] = 1.0
    optimizer.step()
    layer.requires_grad_(False)
    assert_not_stale(layer, x)


def test_saved_tensor_hooks_that_copy_the_weight_are_followed(device, layer_of):
    layer = layer_of(frozen=True, features=256)
    x, g = activations(9, 256, device=device).requires_grad_(), randn(9, N, seed=4, device=device)
    for step in range(8):
        x.grad = None
        with torch.autograd.graph.saved_tensors_hooks(torch.clone, lambda tensor: tensor):
            layer(x).backward(g)
        same(x.grad, expected_linear(x, layer.weight, None, g).grad_input)
        with torch.no_grad():
            layer.weight[3, step] += 5.0
