"""A frozen weight on CUDA stays packed, and the device packs it again where it has changed."""

import pytest
import torch

from helpers import activations, expected_linear, randn, same
from int8tile import Int8TileConfig
from int8tile.nn import Int8Linear, frozen
from int8tile.ops import cuda

N, K = 40, 300  # more words than the fingerprint samples

pytestmark = pytest.mark.usefixtures("emulated_layers")


def frozen_layer(dtype=torch.float32, **config):
    torch.manual_seed(0)
    config = Int8TileConfig(**config)
    return Int8Linear(K, N, dtype=dtype, config=config).requires_grad_(False)


def check(layer, x, g, **scales):
    """Output and gradient of the input are those of the weight as it is now."""
    x = x.clone().requires_grad_()
    y = layer(x)
    y.backward(g)
    expected = expected_linear(x, layer.weight, layer.bias, g, **scales)
    same(y.detach(), expected.output)
    same(x.grad, expected.grad_input)


def entries(layer):
    return {transpose: entry.copy for transpose, entry in layer._cache._on_device.items()}


def data(dtype=torch.float32):
    return activations(9, K, dtype=dtype), randn(9, N, dtype=dtype, seed=4)


@pytest.mark.parametrize("granularity", ["row", "tensor"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_one_copy_per_direction_is_kept_and_used(granularity, dtype):
    layer, (x, g) = frozen_layer(dtype, granularity=granularity), data(dtype)
    check(layer, x, g, granularity=granularity)
    before = entries(layer)
    assert before.keys() == {False, True}
    check(layer, x, g, granularity=granularity)
    assert entries(layer) == before
    layer.bias.data.zero_()
    y = layer(x)
    before[False]._copy[1].mul_(2)  # the scales: seen only if the copy is what is read
    same(layer(x), 2 * y)


def test_a_write_that_torch_does_not_record_is_seen_by_the_device():
    layer, (x, g) = frozen_layer(), data()
    check(layer, x, g)
    before = entries(layer)
    layer.weight.data.mul_(-1.5)
    check(layer, x, g)
    assert entries(layer) == before


def test_a_small_write_needs_invalidate():
    layer, (x, g) = frozen_layer(), data()
    check(layer, x, g)
    layer.weight.data[0, 2] = 1.0
    layer.invalidate()
    check(layer, x, g)


@pytest.mark.parametrize("event", ["recorded_write", "train", "load", "stream", "capture"])
def test_what_drops_a_copy(monkeypatch, event):
    layer, (x, g) = frozen_layer(), data()
    check(layer, x, g)
    before = entries(layer)
    if event == "recorded_write":
        with torch.no_grad():
            layer.weight[0, 0] = 3.0
    elif event == "train":
        layer.eval()
    elif event == "load":
        layer.load_state_dict(layer.state_dict())
    elif event == "stream":
        monkeypatch.setattr(cuda, "_current_stream", lambda tensor: (0, 1))
    else:
        monkeypatch.setattr(cuda, "is_capturing", lambda: True)
        layer.invalidate()
    check(layer, x, g)
    after = entries(layer)
    assert not set(before.values()) & set(after.values())
    assert len(after) == (0 if event == "capture" else 2)


def test_a_copy_is_written_only_where_the_weight_has_changed():
    weight = randn(N, K)
    copy = cuda.PackedWeight(weight, "row", "absmax", False)
    packed, scale = (each.clone() for each in copy.refreshed(weight))
    for each in copy._copy:
        each.zero_()
    assert not any(each.any() for each in copy.refreshed(weight))
    weight.data.neg_()
    again = copy.refreshed(weight)
    same(again[0].view(torch.int8), -packed.view(torch.int8))
    same(again[1], scale)


@pytest.mark.parametrize("numel", [1, 3, 4, 5, 1023])
def test_small_weights_are_seen_whole(numel):
    weight = torch.ones(numel, 1, dtype=torch.bfloat16)
    copy = cuda.PackedWeight(weight, "row", "absmax", False)
    copy.refreshed(weight)
    for i in range(0, numel, 97):
        weight.data[i] = 3 + i
        same(copy.refreshed(weight)[1][i], weight[i, 0].float() / 127)


def test_a_trained_weight_is_never_kept():
    cache = frozen.FrozenWeightCache()
    assert cache.get(randn(N, K).requires_grad_(), "row", "absmax", False) is None
