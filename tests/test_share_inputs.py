"""Layers that share an input quantise it once, with the same results."""

import copy
import gc
import pickle
import threading
import weakref

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import int8tile
from int8tile import Int8TileConfig, _core
from int8tile.ops import checks
from int8tile.ops.shared import SharedInput


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(96, 96) for _ in range(4))

    def forward(self, x):
        q, k, v = self.q_proj(x), self.k_proj(x), self.v_proj(x)
        return self.o_proj(torch.tanh(q) * torch.sigmoid(k) + v)


class OpCounter(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.counts = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name
        self.counts[name] = self.counts.get(name, 0) + 1
        return func(*args, **(kwargs or {}))


@pytest.fixture
def with_outliers(device):
    def draw(*shape):
        x = torch.randn(*shape, device=device)
        x[..., 3] *= 40
        return x

    return draw


@pytest.fixture
def models(device):
    torch.manual_seed(0)
    plain = Attention().to(device)
    shared = copy.deepcopy(plain)
    int8tile.convert_(plain)
    report = int8tile.convert_(shared, share_inputs=True)
    assert report.shared == [("q_proj", "k_proj", "v_proj")]
    assert "1 groups" in str(report)
    return plain, shared


def gradients(model, x, target):
    model.zero_grad()
    x = x.clone().requires_grad_()
    y = model(x)
    (y - target).square().sum().backward()
    return [y, x.grad, *(p.grad for p in model.parameters())]


def test_results_are_the_same_bit_for_bit(models, with_outliers):
    x = with_outliers(4, 17, 96)
    target = torch.randn_like(x)
    for plain, shared in zip(*(gradients(m, x, target) for m in models), strict=True):
        assert torch.equal(plain, shared)


def test_the_input_is_quantised_once(models, with_outliers):
    x = with_outliers(30, 96).requires_grad_()
    with OpCounter() as counter:
        models[1](x).sum().backward()
    assert counter.counts["int8tile::quantize_input"] == 1
    assert counter.counts["int8tile::linear_multiply"] == 3
    assert counter.counts["int8tile::linear_forward"] == 1  # o_proj reads something else


def test_the_saved_input_is_held_once(models, with_outliers):
    x = with_outliers(256, 96)
    sizes = []
    for model in models:
        storages = {}

        def pack(tensor, storages=storages):
            storage = tensor.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
            return tensor

        parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            y = model(x)
        sizes.append(sum(size for at, size in storages.items() if at not in parameters))
        del y
    panels = 128 * 256 + 64 * 256  # int8 regular part and high limbs, padded to whole panels
    assert sizes[0] - sizes[1] >= 2 * panels


def test_an_input_written_in_between_is_quantised_again(models, with_outliers):
    layer, x = models[1], with_outliers(30, 96)
    with torch.no_grad():
        layer.q_proj(x)
        x.mul_(3)
        assert torch.equal(layer.k_proj(x), models[0].k_proj(x))


def test_another_tensor_at_the_same_address_is_quantised_again(models, with_outliers):
    with torch.no_grad():
        for seed in range(5):
            torch.manual_seed(seed)
            x = with_outliers(30, 96)
            models[1].q_proj(x)
            y = with_outliers(30, 96)
            del x
            gc.collect()
            assert torch.equal(models[1].k_proj(y), models[0].k_proj(y))


def test_a_frozen_projection_shares_with_trained_ones(models, with_outliers):
    for model in models:
        model.q_proj.requires_grad_(False)
    x = with_outliers(30, 96)
    target = torch.randn_like(x)
    for model in models:
        model.zero_grad(set_to_none=True)
    for plain, shared in zip(*(gradients(m, x, target) for m in models), strict=True):
        assert (plain is None and shared is None) or torch.equal(plain, shared)


def test_inference_mode_and_empty_batches_work(models, with_outliers):
    with torch.inference_mode():
        x = with_outliers(3, 96)
        assert torch.equal(models[0](x), models[1](x))
    assert models[1](with_outliers(0, 96)).shape == (0, 96)


def test_a_thread_in_between_changes_nothing(monkeypatch):
    mine, other = torch.randn(4, 96), torch.randn(5, 96)
    group, ref, how = SharedInput(3), weakref.ref, ((5.0, 12, None), "row", "absmax", False)
    others = []

    def interrupted(*args):
        monkeypatch.setattr(weakref, "ref", ref)
        thread = threading.Thread(target=lambda: others.append(group.quantize(other, *how)))
        thread.start()
        thread.join()
        return ref(*args)

    monkeypatch.setattr(weakref, "ref", interrupted)
    found = group.quantize(mine, *how)
    for results, x in ((found, mine), (others[0], other)):
        for got, expected in zip(results, SharedInput(3).quantize(x, *how), strict=True):
            assert torch.equal(got, expected)


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_a_copy_shares_among_its_own_layers(models, clone, with_outliers):
    model = clone(models[1])
    group = model.q_proj.__dict__["_shared"]
    assert group is model.k_proj.__dict__["_shared"]
    assert group is not models[1].q_proj.__dict__["_shared"]
    x = with_outliers(9, 96)
    assert torch.equal(model(x), models[0](x))


def test_converting_again_and_reverting_undo_it(models):
    int8tile.convert_(models[1])
    assert "_shared" not in models[1].q_proj.__dict__
    int8tile.convert_(models[1], share_inputs=True)
    int8tile.revert_(models[1])
    assert "_shared" not in models[1].q_proj.__dict__


@pytest.mark.parametrize(("m", "k", "capacity"), [(0, 5, 0), (1, 1, 1), (33, 97, 32), (7, 800, 50)])
def test_the_schema_knows_the_size_of_a_quantised_input(m, k, capacity):
    size = checks.block_bytes(m, k, capacity, torch.device("cpu"))
    assert size == _core.quantized_input_bytes(m, k, capacity)


def test_layers_that_turn_to_float_at_other_sizes_share_nothing():
    model = Attention()
    fewer = {"k_proj": Int8TileConfig(min_tokens=8), "*": Int8TileConfig()}
    assert int8tile.convert_(model, fewer, share_inputs=True).shared == []
    same = int8tile.convert_(model, Int8TileConfig(min_tokens=8), share_inputs=True)
    assert same.shared == [("q_proj", "k_proj", "v_proj")]


def test_calls_in_float_leave_the_group_as_it_was(models, with_outliers):
    for model in models:
        int8tile.convert_(model, Int8TileConfig(min_tokens=8), share_inputs=model is models[1])
    many, few = with_outliers(2, 17, 96), with_outliers(1, 7, 96)
    for x in (many, few, many, few, few, many):
        target = torch.randn_like(x)
        for plain, shared in zip(*(gradients(m, x, target) for m in models), strict=True):
            assert torch.equal(plain, shared)
    with torch.no_grad():
        models[1].q_proj(many)  # one of three reads; a call in float comes before the others
        models[1](few)
        assert torch.equal(models[1].k_proj(many), models[0].k_proj(many))


def test_a_bert_shares_in_every_layer():
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        hidden_size=64, num_hidden_layers=2, num_attention_heads=2, intermediate_size=128
    )
    model = transformers.BertModel(config)
    report = int8tile.convert_(model, share_inputs=True)
    assert len(report.shared) == 2
    assert report.shared[0][0] == "encoder.layer.0.attention.self.query"


def test_other_layouts_are_refused(with_outliers):
    block, *saved = torch.ops.int8tile.quantize_input(with_outliers(13, 96))
    rest = (*saved[2:], with_outliers(20, 96))
    with pytest.raises(ValueError, match="block must be contiguous uint8"):
        torch.ops.int8tile.linear_multiply(block[:-1], *rest)
