"""convert_ turns linear layers into int8 ones in place and says what it left alone and why."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

import int8tile
from helpers import RecordOps, activations, same
from int8tile import ConversionReport, Int8TileConfig
from int8tile.nn import Int8Linear


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.query, self.value = nn.Linear(32, 32), nn.Linear(32, 32, bias=False)

    def forward(self, x):
        return self.query(x) + self.value(x)


class Model(nn.Module):
    """An embedding, two blocks, adapters and a tied head."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(50, 32)
        self.layers = nn.ModuleList([Attention(), Attention()])
        self.lora_A = nn.Linear(32, 4, bias=False)
        self.lora_B = nn.Linear(4, 32, bias=False)
        self.norm = nn.LayerNorm(32)
        self.lm_head = nn.Linear(32, 50, bias=False)
        self.lm_head.weight = self.embed.weight

    def forward(self, ids):
        x = self.embed(ids)
        for layer in self.layers:
            x = x + layer(x)
        x = self.norm(x + self.lora_B(self.lora_A(x)))
        return self.lm_head(x)


LAYERS = ["layers.0.query", "layers.0.value", "layers.1.query", "layers.1.value"]
IDS = torch.arange(12).reshape(2, 6)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Model()


def classes(model):
    return {n: type(m) for n, m in model.named_modules() if isinstance(m, nn.Linear)}


# --- What is converted


def test_the_defaults_convert_all_but_head_and_adapters(model):
    report = int8tile.convert_(model)
    assert report.converted == LAYERS
    assert report.skipped == {
        "lora_A": "its name matches skip pattern '*lora_*'",
        "lora_B": "its name matches skip pattern '*lora_*'",
        "lm_head": "its name matches skip pattern 'lm_head'",
    }
    assert [n for n, kind in classes(model).items() if kind is Int8Linear] == LAYERS


def test_the_report_prints_what_was_skipped_and_why(model):
    text = str(int8tile.convert_(model))
    assert text.splitlines()[0] == "4 linear layers converted, 3 skipped"
    assert "  skipped lm_head: its name matches skip pattern 'lm_head'" in text.splitlines()


@pytest.mark.parametrize(
    ("skip", "left"),
    [
        ((), []),
        ("query", ["layers.0.query", "layers.1.query"]),
        (("layers.0.*", "lora_A"), ["layers.0.query", "layers.0.value", "lora_A"]),
        (["layers.?.value"], ["layers.0.value", "layers.1.value"]),
        (("*",), [*LAYERS, "lora_A", "lora_B", "lm_head"]),
    ],
    ids=str,
)
def test_skip_patterns_match_names_or_their_ends(skip, left, model):
    report = int8tile.convert_(model, skip=skip)
    assert sorted(report.skipped) == sorted(left)
    assert set(report.converted).isdisjoint(left)
    assert len(report.converted) + len(left) == 7


def test_filter_fn_decides_per_module_and_name(model):
    seen = []

    def wants(module, name):
        seen.append((type(module), name))
        return module.bias is not None

    report = int8tile.convert_(model, filter_fn=wants)
    assert report.converted == ["layers.0.query", "layers.1.query"]
    assert report.skipped["layers.0.value"] == "filter_fn returned False"
    assert seen == [(nn.Linear, name) for name in LAYERS]


def test_a_mapping_gives_each_layer_the_config_of_its_first_match(model):
    first, rest = Int8TileConfig(threshold=None), Int8TileConfig.paper()
    configs = {"layers.1.value": None, "layers.0.*": first, "query": rest}
    report = int8tile.convert_(model, configs)
    assert report.converted == ["layers.0.query", "layers.0.value", "layers.1.query"]
    assert report.skipped["layers.1.value"] == "no config pattern matches, or it maps to None"
    assert model.layers[0].query.config is first
    assert model.layers[1].query.config is rest
    nothing = int8tile.convert_(Model(), {"no such layer": first})
    assert nothing.converted == []


def test_a_model_that_is_one_linear_is_converted_itself():
    layer = nn.Linear(32, 8)
    report = int8tile.convert_(layer)
    assert report.converted == [""]
    assert type(layer) is Int8Linear
    skipped = int8tile.convert_(nn.Linear(32, 8), filter_fn=lambda module, name: False)
    assert "  skipped (root): filter_fn returned False" in str(skipped)


def test_a_shared_module_is_converted_once():
    shared = nn.Linear(8, 8)
    report = int8tile.convert_(nn.Sequential(shared, nn.ReLU(), shared))
    assert report.converted == ["0"]
    assert type(shared) is Int8Linear


def test_a_model_without_linear_layers_gives_an_empty_report():
    report = int8tile.convert_(nn.Sequential(nn.Conv1d(3, 3, 1), nn.LSTM(3, 3), nn.BatchNorm1d(3)))
    assert report == ConversionReport()


# --- What is named but left alone


class Special(nn.Linear):
    pass


class FusedExperts(nn.Module):
    def __init__(self):
        super().__init__()
        self.gate_up_proj = nn.Parameter(torch.zeros(4, 32, 64))
        self.down_proj = nn.Parameter(torch.zeros(4, 32, 32))


@pytest.mark.parametrize(
    ("module", "skipped"),
    [
        (Special(4, 4), {"m": "Special is a subclass of nn.Linear"}),
        (
            nn.MultiheadAttention(8, 2),
            {
                "m": "MultiheadAttention is no nn.Linear (holds in_proj_weight)",
                "m.out_proj": "NonDynamicallyQuantizableLinear is a subclass of nn.Linear",
            },
        ),
        (
            FusedExperts(),
            {"m": "FusedExperts is no nn.Linear (holds gate_up_proj, down_proj)"},
        ),
        (nn.Bilinear(2, 3, 4), {"m": "Bilinear is no nn.Linear (holds weight)"}),
        (nn.Linear(4, 4).double(), {"m": "its weight is torch.float64"}),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else None,
)
def test_linear_like_modules_are_named(module, skipped):
    report = int8tile.convert_(nn.ModuleDict({"m": module, "plain": nn.Linear(2, 2)}))
    assert report.skipped == skipped
    assert report.converted == ["plain"]


def test_parametrized_and_lazy_layers_are_named():
    model = nn.Sequential(parametrizations.weight_norm(nn.Linear(4, 4)))
    report = int8tile.convert_(model)
    assert report.skipped["0"] == "ParametrizedLinear is a subclass of nn.Linear"
    assert report.converted == []


# --- In place, and back


def test_parameters_ties_and_keys_stay_the_same_objects(model):
    before = dict(model.named_parameters())
    keys, modules = list(model.state_dict()), dict(model.named_modules())
    int8tile.convert_(model, skip=())
    assert list(model.state_dict()) == keys
    assert all(p is before[n] for n, p in model.named_parameters())
    assert all(m is modules[n] for n, m in model.named_modules())
    assert model.lm_head.weight is model.embed.weight


def test_reverting_restores_classes_objects_and_outputs(model):
    exact, kinds = model(IDS), classes(model)
    modules = dict(model.named_modules())
    int8tile.convert_(model)
    assert not torch.equal(model(IDS), exact)
    assert int8tile.revert_(model) == LAYERS
    same(model(IDS), exact)
    assert classes(model) == kinds
    assert all(m is modules[n] for n, m in model.named_modules())
    assert set(vars(model.layers[0].query)) == set(vars(nn.Linear(1, 1)))
    assert int8tile.revert_(model) == []


def test_converting_again_changes_only_the_config(model):
    int8tile.convert_(model)
    once = model(IDS)
    again = int8tile.convert_(model)
    assert again.converted == LAYERS
    same(model(IDS), once)
    int8tile.convert_(model, Int8TileConfig.paper())
    assert model.layers[0].query.config == Int8TileConfig.paper()
    assert not torch.equal(model(IDS), once)


def test_hooks_survive(model):
    calls = []
    query = model.layers[0].query
    query.register_forward_hook(lambda *_: calls.append("forward"))
    query.register_full_backward_hook(lambda *_: calls.append("backward"))
    query.weight.register_post_accumulate_grad_hook(lambda _: calls.append("grad"))
    int8tile.convert_(model)
    model(IDS).sum().backward()
    assert sorted(calls) == ["backward", "forward", "grad"]
    int8tile.revert_(model)
    model(IDS)
    assert calls.count("forward") == 2


@pytest.mark.parametrize("fused", [False, True], ids=["adamw", "fused_adamw"])
def test_an_optimizer_made_before_conversion_trains_the_model(fused, model):
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, fused=fused)
    int8tile.convert_(model)
    losses = []
    for _ in range(12):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(IDS).flatten(0, 1), IDS.flatten().roll(1))
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_lora_style_adapters_train_on_a_frozen_int8_base():
    base, down, up = nn.Linear(32, 16), nn.Linear(32, 4, bias=False), nn.Linear(4, 16, bias=False)
    int8tile.convert_(base.requires_grad_(False))
    x = activations(20, 32)
    with RecordOps() as record:
        (base(x) + up(down(x))).square().sum().backward()
    assert record.names == ["pack_weight", "linear_forward"]
    assert base.weight.grad is None
    assert down.weight.grad is not None


def test_training_mode_and_frozen_state_are_kept(model):
    model.eval().layers[0].requires_grad_(False)
    int8tile.convert_(model)
    assert not model.layers[0].query.training
    assert not model.layers[0].query.weight.requires_grad
    assert model.layers[1].query.weight.requires_grad
