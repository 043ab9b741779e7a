"""`torchao.quantize_(model, Int8TileConfig())` converts what its filter lets through."""

import importlib

import pytest
import torch
from torch import nn

import int8tile
from helpers import TINY_LAYERS, TinyModel, same
from int8tile import Int8TileConfig
from int8tile.nn import Int8Linear

torchao = pytest.importorskip("torchao", reason="needs torchao")
importlib.import_module("int8tile.torchao")
IDS = torch.arange(12)[None]


def converted(model):
    return [name for name, each in model.named_modules() if isinstance(each, Int8Linear)]


def models():
    torch.manual_seed(0)
    quantized, plain = TinyModel(), TinyModel()
    plain.load_state_dict(quantized.state_dict())
    return quantized, plain


def test_it_is_convert_where_the_filter_is_the_same():
    quantized, plain = models()
    torchao.quantize_(
        quantized,
        Int8TileConfig.paper(),
        filter_fn=lambda module, name: type(module) is nn.Linear and name in TINY_LAYERS,
    )
    int8tile.convert_(plain, Int8TileConfig.paper())
    assert converted(quantized) == converted(plain) == TINY_LAYERS
    for model in (quantized, plain):
        torch.manual_seed(1)
        model(IDS).square().mean().backward()
    for mine, theirs in zip(quantized.parameters(), plain.parameters(), strict=True):
        same(mine.grad, theirs.grad)


def test_the_filter_of_torchao_takes_every_linear_layer():
    model, _ = models()
    torchao.quantize_(model, Int8TileConfig())
    assert converted(model) == [*TINY_LAYERS, "lora_A", "lora_B", "lm_head"]
    assert model.lm_head.weight is model.embed.weight


def test_one_config_a_layer():
    model, _ = models()
    special = Int8TileConfig(threshold=None)
    choice = {"layers.0.query": special, r"re:layers\.1\.\w+": Int8TileConfig()}
    torchao.quantize_(model, torchao.quantization.FqnToConfig(choice), filter_fn=None)
    assert model.layers[0].query.config == special
    assert converted(model) == ["layers.0.query", "layers.1.query", "layers.1.value"]


def test_revert_undoes_it():
    model, _ = models()
    torchao.quantize_(model, Int8TileConfig())
    int8tile.revert_(model)
    assert converted(model) == []


def test_what_is_no_linear_layer_is_refused():
    with pytest.raises(TypeError, match=r"module must be an nn.Linear; got Embedding"):
        torchao.quantize_(nn.Embedding(8, 8), Int8TileConfig(), filter_fn=lambda module, name: True)
