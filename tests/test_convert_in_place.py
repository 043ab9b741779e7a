"""Conversion keeps objects, hooks, ties and optimizers, and can be taken back."""

import pytest
import torch
from torch import nn

import int8tile
from helpers import TINY_LAYERS, RecordOps, TinyModel, activations, same
from int8tile import Int8TileConfig


@pytest.fixture
def model(device):
    torch.manual_seed(0)
    return TinyModel().to(device)


@pytest.fixture
def ids(device):
    return torch.arange(12, device=device).reshape(2, 6)


def classes(model):
    return {n: type(m) for n, m in model.named_modules() if isinstance(m, nn.Linear)}


def test_parameters_ties_and_keys_stay_the_same_objects(model):
    before = dict(model.named_parameters())
    keys, modules = list(model.state_dict()), dict(model.named_modules())
    int8tile.convert_(model, skip=())
    assert list(model.state_dict()) == keys
    assert all(p is before[n] for n, p in model.named_parameters())
    assert all(m is modules[n] for n, m in model.named_modules())
    assert model.lm_head.weight is model.embed.weight


def test_reverting_restores_classes_objects_and_outputs(model, ids):
    exact, kinds = model(ids), classes(model)
    modules = dict(model.named_modules())
    int8tile.convert_(model)
    assert not torch.equal(model(ids), exact)
    assert int8tile.revert_(model) == TINY_LAYERS
    same(model(ids), exact)
    assert classes(model) == kinds
    assert all(m is modules[n] for n, m in model.named_modules())
    assert set(vars(model.layers[0].query)) == set(vars(nn.Linear(1, 1)))
    assert int8tile.revert_(model) == []


def test_reverting_is_all_or_nothing(model):
    int8tile.convert_(model)
    last = model.get_submodule(TINY_LAYERS[-1])
    last.forward = last.forward
    with pytest.raises(TypeError, match="must have its own forward"):
        int8tile.revert_(model)
    del last.forward
    assert int8tile.revert_(model) == TINY_LAYERS


def test_converting_again_changes_only_the_config(model, ids):
    int8tile.convert_(model)
    once = model(ids)
    again = int8tile.convert_(model)
    assert again.converted == TINY_LAYERS
    same(model(ids), once)
    int8tile.convert_(model, Int8TileConfig.paper())
    assert model.layers[0].query.config == Int8TileConfig.paper()
    assert not torch.equal(model(ids), once)


def test_hooks_survive(model, ids):
    calls = []
    query = model.layers[0].query
    query.register_forward_hook(lambda *_: calls.append("forward"))
    query.register_full_backward_hook(lambda *_: calls.append("backward"))
    query.weight.register_post_accumulate_grad_hook(lambda _: calls.append("grad"))
    int8tile.convert_(model)
    model(ids).sum().backward()
    assert sorted(calls) == ["backward", "forward", "grad"]
    int8tile.revert_(model)
    model(ids)
    assert calls.count("forward") == 2


@pytest.mark.parametrize("fused", [False, True], ids=["adamw", "fused_adamw"])
def test_an_optimizer_made_before_conversion_trains_the_model(fused, model, ids):
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, fused=fused)
    int8tile.convert_(model)
    losses = []
    for _ in range(12):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(ids).flatten(0, 1), ids.flatten().roll(1))
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_lora_style_adapters_train_on_a_frozen_int8_base(device):
    base = nn.Linear(32, 16, device=device)
    down = nn.Linear(32, 4, bias=False, device=device)
    up = nn.Linear(4, 16, bias=False, device=device)
    int8tile.convert_(base.requires_grad_(False))
    x = activations(20, 32, device=device)
    with RecordOps() as record:
        (base(x) + up(down(x))).square().sum().backward()
    keeps = device.type == "cpu"  # a packed copy
    assert record.names == ["pack_weight"] * keeps + ["linear_forward_only"]
    assert base.weight.grad is None
    assert down.weight.grad is not None


def test_training_mode_and_frozen_state_are_kept(model):
    model.eval().layers[0].requires_grad_(False)
    int8tile.convert_(model)
    assert not model.layers[0].query.training
    assert not model.layers[0].query.weight.requires_grad
    assert model.layers[1].query.weight.requires_grad
