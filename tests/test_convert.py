"""convert_ turns linear layers into int8 ones in place and says what it left alone and why."""

import os
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

import int8tile
from helpers import TINY_LAYERS, TinyModel
from int8tile import ConversionReport, Int8TileConfig, _core
from int8tile.nn import Int8Linear


@pytest.fixture
def model():
    torch.manual_seed(0)
    return TinyModel()


def test_the_defaults_convert_all_but_head_and_adapters(model):
    report = int8tile.convert_(model)
    assert report.converted == TINY_LAYERS
    assert report.skipped == {
        "lora_A": "its name matches skip pattern '*lora_*'",
        "lora_B": "its name matches skip pattern '*lora_*'",
        "lm_head": "its name matches skip pattern 'lm_head'",
    }
    int8 = [n for n, m in model.named_modules() if type(m) is Int8Linear]
    assert int8 == TINY_LAYERS


def test_a_layer_that_a_second_call_skips_stays_as_it_was_and_the_report_says_so(model):
    int8tile.convert_(model, Int8TileConfig(threshold=6.0))
    report = int8tile.convert_(model, skip=TINY_LAYERS[0])
    name = TINY_LAYERS[0]
    kept = f"its name matches skip pattern {name!r}; it stays the Int8Linear that it was"
    assert report.skipped[name] == kept
    assert model.get_submodule(name).config.threshold == 6.0


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
        (("*",), [*TINY_LAYERS, "lora_A", "lora_B", "lm_head"]),
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
    assert seen == [(nn.Linear, name) for name in TINY_LAYERS]


def test_a_mapping_gives_each_layer_the_config_of_its_first_match(model):
    first, rest = Int8TileConfig(threshold=None), Int8TileConfig.paper()
    configs = {"layers.1.value": None, "layers.0.*": first, "query": rest}
    report = int8tile.convert_(model, configs)
    assert report.converted == ["layers.0.query", "layers.0.value", "layers.1.query"]
    assert report.skipped["layers.1.value"] == "no config pattern matches, or it maps to None"
    assert model.layers[0].query.config is first
    assert model.layers[1].query.config is rest
    nothing = int8tile.convert_(TinyModel(), {"no such layer": first})
    assert nothing.converted == []


def test_small_layers_are_left_alone_and_named():
    model = nn.ModuleDict(
        {"wide": nn.Linear(64, 64), "narrow": nn.Linear(63, 64), "head": nn.Linear(64, 2)}
    )
    report = int8tile.convert_(model, min_features=64)
    assert report.converted == ["wide"]
    assert report.skipped == {
        "narrow": "its in_features (63) is below min_features (64)",
        "head": "its out_features (2) is below min_features (64)",
    }
    assert type(model["head"]) is nn.Linear
    assert "  skipped head: its out_features (2) is below min_features (64)" in str(report)
    assert int8tile.convert_(model).converted == ["wide", "narrow", "head"]


REPORT = """
import torch, int8tile
print(int8tile.convert_(torch.nn.Sequential(torch.nn.Linear(8, 8))))
print(int8tile.convert_(torch.nn.Sequential(torch.nn.ReLU())))
"""


def test_the_report_says_where_the_kernel_is_no_faster_than_float32(isa):
    environment = {**os.environ, "INT8TILE_ISA": isa}
    command = [sys.executable, "-c", REPORT]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    verdict = _core.kernel_verdict(isa)
    expected = ["1 linear layers converted, 0 skipped"]
    expected += [f"  note: {verdict}"] if verdict else []
    expected += ["0 linear layers converted, 0 skipped"]
    assert done.stdout.splitlines() == expected
    assert bool(verdict) == (isa != "avx512_vnni")


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


def test_a_layer_whose_forward_was_replaced_is_named():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[0].forward = model[0].forward
    report = int8tile.convert_(model)
    assert report.converted == ["1"]
    assert report.skipped["0"].startswith("its forward was replaced, as by accelerate")


def test_the_fast_path_of_torch_is_noted():
    """What the note says holds: float without gradients, int8 with the switch."""
    torch.manual_seed(0)
    plain = nn.TransformerEncoderLayer(64, 4, 128, batch_first=True).eval()
    x = torch.randn(2, 8, 64)
    with torch.no_grad():
        exact = plain(x)
        report = int8tile.convert_(plain)
        assert report.converted == ["linear1", "linear2"]
        assert "set_fastpath_enabled(False)" in "".join(report.notes)
        assert torch.equal(plain(x), exact)
        enabled = torch.backends.mha.get_fastpath_enabled()
        torch.backends.mha.set_fastpath_enabled(False)
        try:
            assert not torch.allclose(plain(x), exact, atol=1e-4)
        finally:
            torch.backends.mha.set_fastpath_enabled(enabled)
    assert not any("fastpath" in note for note in int8tile.convert_(nn.Linear(4, 4)).notes)


def test_parametrized_and_lazy_layers_are_named():
    model = nn.Sequential(parametrizations.weight_norm(nn.Linear(4, 4)))
    report = int8tile.convert_(model)
    assert report.skipped["0"] == "ParametrizedLinear is a subclass of nn.Linear"
    assert report.converted == []
