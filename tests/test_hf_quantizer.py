"""`from_pretrained(quantization_config=...)` gives a converted model, which stays a float model."""

import json
import subprocess
import sys

import pytest

pytest.importorskip("transformers", reason="needs the demo extra")

import torch
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    BitsAndBytesConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
)
from transformers.quantizers import AutoQuantizationConfig

import int8tile
from helpers import same
from int8tile import Int8TileConfig
from int8tile.hf import Int8TileHfConfig, Int8TileHfQuantizer
from int8tile.nn import Int8Linear

SIZES = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 32,
}
IDS = torch.arange(4, 20)[None]


@pytest.fixture
def folder(tmp_path):
    torch.manual_seed(0)
    BertForSequenceClassification(BertConfig(**SIZES)).save_pretrained(tmp_path / "plain")
    return tmp_path / "plain"


def load(folder, config=None):
    return AutoModelForSequenceClassification.from_pretrained(folder, quantization_config=config)


def configs(model):
    return {name: m.config for name, m in model.named_modules() if isinstance(m, Int8Linear)}


def test_the_model_is_what_convert_makes_of_it(folder):
    model, plain = load(folder, Int8TileHfConfig()), load(folder)
    assert configs(plain) == {}
    report = int8tile.convert_(plain)
    assert list(configs(model)) == report.converted
    with torch.no_grad():
        same(model(IDS).logits, plain(IDS).logits)


def test_every_option_of_convert_arrives(folder):
    special = Int8TileConfig(threshold=3.0)
    options = Int8TileHfConfig(
        {"attention.*": special, "classifier": None, "*": Int8TileConfig.paper()},
        skip="pooler.dense",
        share_inputs=True,
        min_features=40,
    )
    assert configs(load(folder, Int8TileHfConfig({"query": special}))).keys() == {
        f"bert.encoder.layer.{i}.attention.self.query" for i in (0, 1)
    }
    with pytest.raises(ValueError, match="no layer of BertForSequenceClassification"):
        load(folder, options)  # min_features is above the 32 features of every layer
    options.min_features = 0
    model = load(folder, options)
    found = configs(model)
    assert found["bert.encoder.layer.0.attention.self.query"] == special
    assert found["bert.encoder.layer.0.output.dense"] == Int8TileConfig.paper()
    assert "bert.pooler.dense" not in found
    assert "classifier" not in found
    assert "_shared" in model.bert.encoder.layer[0].attention.self.query.__dict__


def test_transformers_sees_a_float_model(folder):
    model = load(folder, Int8TileHfConfig())
    assert not model.is_quantized
    assert not hasattr(model, "hf_quantizer")
    assert not hasattr(model, "quantization_method")
    assert not hasattr(model.config, "quantization_config")
    assert model.bfloat16()(IDS).logits.dtype == torch.bfloat16
    assert all(p.requires_grad for p in model.parameters())


def test_the_checkpoint_is_an_ordinary_one(folder, tmp_path):
    model = load(folder, Int8TileHfConfig())
    model.save_pretrained(tmp_path / "saved")
    written = [
        json.loads((each / "config.json").read_text()) for each in (folder, tmp_path / "saved")
    ]
    assert written[0] == written[1]
    plain = load(tmp_path / "saved")
    assert configs(plain) == {}
    for name, tensor in load(folder).state_dict().items():
        same(plain.state_dict()[name], tensor)


def test_the_head_of_a_causal_model_stays_float(tmp_path):
    LlamaForCausalLM(LlamaConfig(tie_word_embeddings=True, **SIZES)).save_pretrained(tmp_path)
    model = LlamaForCausalLM.from_pretrained(tmp_path, quantization_config=Int8TileHfConfig())
    assert type(model.lm_head) is torch.nn.Linear
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert len(configs(model)) == 2 * 7


@pytest.mark.parametrize(
    "config",
    [
        None,
        Int8TileConfig.paper(min_tokens=3),
        {"query": Int8TileConfig(threshold=None), "classifier": None},
    ],
    ids=["default", "one", "mapping"],
)
def test_options_pass_through_json(folder, config):
    options = Int8TileHfConfig(config, skip=("classifier",), share_inputs=True, min_features=2)
    text = json.dumps(options.to_dict())
    again = AutoQuantizationConfig.from_dict(json.loads(text))
    assert type(again) is Int8TileHfConfig
    assert again.to_dict() == options.to_dict()
    assert json.loads(options.to_json_string()) == json.loads(text)
    assert configs(load(folder, json.loads(text))) == configs(load(folder, options))


def test_wrong_options_are_refused():
    who = "int8tile.hf.Int8TileHfConfig: "
    with pytest.raises(TypeError, match=f"{who}config must be an Int8TileConfig or a mapping"):
        Int8TileHfConfig("paper")
    with pytest.raises(TypeError, match=f"{who}min_features must be an int"):
        Int8TileHfConfig(min_features=None)
    with pytest.raises(ValueError, match=f"{who}share_inputs must be False with outlier_gain"):
        Int8TileHfConfig(Int8TileConfig(outlier_gain=True), share_inputs=True)
    with pytest.raises(TypeError, match="unexpected keyword argument 'bits'"):
        AutoQuantizationConfig.from_dict({"quant_method": "int8tile", "bits": 4})


def test_a_model_without_linear_layers_is_refused(tmp_path):
    sizes = {"n_embd": 32, "n_layer": 1, "n_head": 2, "vocab_size": 64, "n_positions": 32}
    GPT2LMHeadModel(GPT2Config(**sizes)).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="no layer of GPT2LMHeadModel could be converted; 0 lin"):
        GPT2LMHeadModel.from_pretrained(tmp_path, quantization_config=Int8TileHfConfig())


def test_a_checkpoint_quantized_otherwise_is_refused(folder):
    config = BertConfig.from_pretrained(folder)
    config.quantization_config = BitsAndBytesConfig(load_in_8bit=True).to_dict()
    config.save_pretrained(folder)
    with pytest.raises(ValueError, match="BitsAndBytesConfig but you are passing a Int8TileHfConf"):
        load(folder, Int8TileHfConfig())


def test_int8tile_alone_imports_none_of_this():
    code = """
import sys, int8tile
found = {"transformers", "torchao", "peft", "torch.distributed.tensor"} & sys.modules.keys()
assert not found, found
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_placed_and_cast_while_loading(folder):
    model = AutoModelForSequenceClassification.from_pretrained(
        folder, quantization_config=Int8TileHfConfig(), device_map="cpu", dtype=torch.bfloat16
    )
    assert model(IDS).logits.dtype == torch.bfloat16
    assert configs(model)


def test_layers_that_another_process_has_are_left_out(folder):
    """As where a pipeline leaves only the layers of its stage on the model."""
    quantizer = Int8TileHfQuantizer(Int8TileHfConfig())
    model = load(folder)
    quantizer.preprocess_model(model)
    model.bert.encoder.layer[1] = torch.nn.Identity()
    quantizer.postprocess_model(model)
    assert quantizer._report.converted == list(configs(model))


def test_spread_over_devices_it_stays_int8(folder, tmp_path):
    places = {"bert.embeddings": "cpu", "bert.encoder": "disk", "bert.pooler": "cpu"}
    model = AutoModelForSequenceClassification.from_pretrained(
        folder,
        quantization_config=Int8TileHfConfig(),
        device_map=places | {"classifier": "cpu"},
        offload_folder=tmp_path / "offloaded",
    )
    assert "forward" in vars(model.bert.encoder.layer[0].output.dense)  # accelerate's
    whole = load(folder, Int8TileHfConfig())
    assert list(configs(model)) == list(configs(whole))
    with torch.no_grad():
        same(model(IDS).logits, whole(IDS).logits)
        assert not torch.equal(model(IDS).logits, load(folder)(IDS).logits)
