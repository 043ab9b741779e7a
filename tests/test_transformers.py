"""Models of transformers, built from tiny configs: converted, trained, saved and generating."""

import pytest

pytest.importorskip("transformers", reason="needs the demo extra")

import torch
from torch import nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
)

import int8tile
from helpers import RecordOps, same
from int8tile import Int8TileConfig
from int8tile.nn import Int8Linear

TOKENS = {"vocab_size": 64, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
SIZES = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 32,
}
PROMPT = torch.arange(4, 10)[None]


def gpt2():
    return GPT2LMHeadModel(GPT2Config(n_positions=32, n_embd=32, n_layer=2, n_head=2, **TOKENS))


def llama():
    return LlamaForCausalLM(LlamaConfig(**SIZES, **TOKENS))


def mixtral():
    experts = {"num_key_value_heads": 2, "num_local_experts": 4}
    return MixtralForCausalLM(MixtralConfig(**experts, **SIZES, **TOKENS))


def bert():
    return BertForSequenceClassification(BertConfig(**SIZES, **TOKENS))


@pytest.fixture(autouse=True)
def _one_thread():
    """For matrices this small a second thread costs more than it gives."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


def test_conv1d_of_gpt2_is_named():
    report = int8tile.convert_(gpt2())
    assert report.converted == []
    assert report.skipped["transformer.h.0.attn.c_attn"] == "Conv1D is no nn.Linear (holds weight)"
    assert len(report.skipped) == 2 * 4 + 1


def test_fused_experts_and_their_router_are_named():
    report = int8tile.convert_(mixtral())
    experts = "model.layers.1.mlp.experts"
    assert (
        report.skipped[experts] == "MixtralExperts is no nn.Linear (holds gate_up_proj, down_proj)"
    )
    assert "model.layers.1.mlp.gate" in report.skipped
    assert "model.layers.1.self_attn.q_proj" in report.converted


def test_llama_is_converted_but_for_its_head():
    model = llama()
    report = int8tile.convert_(model)
    assert len(report.converted) == 2 * 7
    assert list(report.skipped) == ["lm_head"]
    assert type(model.lm_head) is nn.Linear


@pytest.mark.parametrize("build", [gpt2, llama, mixtral], ids=lambda build: build.__name__)
@pytest.mark.parametrize("sample", [False, True], ids=["greedy", "sampled"])
def test_converted_models_generate(sample, build):
    model = build()
    int8tile.convert_(model)
    out = model.generate(PROMPT, max_new_tokens=5, min_new_tokens=5, do_sample=sample)
    assert out.shape == (1, 11)
    same(out[:, :6], PROMPT)


def test_generate_packs_each_frozen_weight_once():
    model = llama().requires_grad_(False)
    converted = int8tile.convert_(model).converted
    with RecordOps() as record:
        model.generate(PROMPT, max_new_tokens=5, min_new_tokens=5, do_sample=False)
    assert record.names.count("pack_weight") == len(converted)
    assert record.names.count("linear_forward_only") == 5 * len(converted)


def batch():
    ids = torch.randint(3, 64, (16, 12), generator=torch.Generator().manual_seed(1))
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "labels": (ids[:, 0] > 33).long(),
    }


def train(model, steps=25):
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = model.train()(**batch()).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize(
    "config",
    [Int8TileConfig(), Int8TileConfig(threshold=None), Int8TileConfig.paper()],
    ids=["split", "no_split", "paper"],
)
def test_a_converted_bert_learns(config):
    model = bert()
    report = int8tile.convert_(model, config)
    assert report.skipped == {}
    losses = train(model)
    assert losses[-1] < 0.3 * losses[0]


def test_gradient_checkpointing_changes_no_gradient():
    model = bert()
    int8tile.convert_(model, Int8TileConfig.paper())
    gradients = []
    for checkpointed in (False, True):
        if checkpointed:
            model.activation_checkpointing_enable()
        model.zero_grad()
        torch.manual_seed(2)
        model.train()(**batch()).loss.backward()
        gradients.append([p.grad.clone() for p in model.parameters()])
    for plain, again in zip(*gradients, strict=True):
        same(again, plain)


def test_a_converted_model_is_saved_and_loaded_as_a_plain_one(tmp_path):
    model = bert().eval()
    int8tile.convert_(model)
    train(model, steps=2)
    model.save_pretrained(tmp_path)
    loaded = BertForSequenceClassification.from_pretrained(tmp_path).eval()
    assert not any(isinstance(module, Int8Linear) for module in loaded.modules())
    int8tile.convert_(loaded)
    with torch.no_grad():
        same(loaded(**batch()).logits, model.eval()(**batch()).logits)
