"""Fine-tuning causal language models: text files, blocks, perplexity, outliers, whole runs."""

import json
import math
import shutil
from pathlib import Path

import pytest
import torch

pytest.importorskip("transformers", reason="needs the demo extra")

from checkpoints import SENTENCES
from int8tile import Int8TileConfig, convert_, reference
from int8tile.finetune import Settings, UsageError, outliers, run, text
from int8tile.finetune.conversion import summarize
from int8tile.finetune.tasks import prepare
from int8tile.finetune.tasks.causal_lm import blocks, is_causal
from int8tile.nn import ConversionReport


def settings(model, data, **changes):
    return Settings(
        **{
            **{"model": model, "task": "clm", "data": data, "max_length": 32, "threads": 1},
            **changes,
        }
    )


@pytest.fixture
def story(tmp_path):
    file = tmp_path / "story.txt"
    file.write_text("\n".join(SENTENCES) + "\n")
    return file


# Text and blocks.


def test_a_folder_may_name_its_evaluation_file(tmp_path):
    for name in ("b", "a", "test"):
        (tmp_path / f"{name}.txt").write_text(f"text of {name}")
    (tmp_path / "notes.md").write_text("no text")
    assert text.load(tmp_path) == text.TextData(["text of a", "text of b"], "text of test")
    (tmp_path / "dev.txt").write_text("text of dev")
    assert text.load(tmp_path) == text.TextData(["text of a", "text of b"], "text of dev")
    assert text.load(tmp_path / "a.txt") == text.TextData(["text of a"], None)


def test_bad_texts_are_refused(tmp_path):
    with pytest.raises(UsageError, match=r"must be a text file or a folder with \.txt files"):
        text.load(tmp_path)
    with pytest.raises(UsageError, match=r"must be a text file .*got .*nothing"):
        text.load(tmp_path / "nothing")
    (tmp_path / "a.txt").write_text(" \n")
    with pytest.raises(UsageError, match=r"a\.txt must hold text; it has none"):
        text.load(tmp_path)
    (tmp_path / "a.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match=r"cannot read .*a\.txt"):
        text.load(tmp_path)


def test_blocks_hold_the_whole_text_but_a_rest(tiny_tokenizer):
    texts = SENTENCES[:3]
    ids = [i for t in texts for i in (*tiny_tokenizer(t)["input_ids"], 1)]
    cut = blocks(texts, tiny_tokenizer, 8)
    assert [i for row in cut for i in row["input_ids"]] == ids[: len(ids) // 8 * 8]
    assert all(row["labels"] == row["input_ids"] and len(row["labels"]) == 8 for row in cut)
    assert blocks(["ada"], tiny_tokenizer, 99) == []


def test_the_end_of_a_text_is_held_out(tiny_decoder, tiny_tokenizer, story):
    task = prepare(settings(tiny_decoder("llama"), story))
    cut = blocks([story.read_text()], tiny_tokenizer, 32)
    held_out = len(cut) // 10
    assert held_out >= 1
    assert [*task.train, *task.evaluation["eval"]] == cut
    assert len(task.evaluation["eval"]) == held_out
    assert task.facts["held_out"]
    assert task.notes() == ("no evaluation file: the last tenth of the text is held out for it",)
    (story.parent / "eval.txt").write_text(" ".join(SENTENCES[:8]))
    task = prepare(settings(tiny_decoder("llama"), story.parent))
    assert list(task.train) == cut
    assert not task.facts["held_out"]
    assert task.notes() == ()


def test_a_text_too_short_is_refused(tiny_decoder, tmp_path):
    (tmp_path / "a.txt").write_text("ada walks")
    with pytest.raises(UsageError, match=r"must fill a block of 32 tokens \(--max-length\)"):
        prepare(settings(tiny_decoder("llama"), tmp_path / "a.txt"))


# The model.


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gpt2"])
def test_decoders_are_causal(tiny_decoder, story, kind):
    assert is_causal(prepare(settings(tiny_decoder(kind), story)).load_model().eval())


def test_an_encoder_without_a_language_model_is_refused(tiny_bert, story):
    with pytest.raises(UsageError, match=r"trained as a model for CausalLM; .* lacks cls\.pred"):
        prepare(settings(tiny_bert, story)).load_model()


def test_an_encoder_is_refused(tiny_bert, story, tmp_path):
    from transformers import AutoTokenizer, BertConfig, BertForMaskedLM

    config = BertConfig(
        hidden_size=64, num_hidden_layers=1, num_attention_heads=2, intermediate_size=128
    )
    BertForMaskedLM(config).save_pretrained(tmp_path / "bert")
    AutoTokenizer.from_pretrained(tiny_bert).save_pretrained(tmp_path / "bert")
    with pytest.raises(UsageError, match=r"BertLMHeadModel\) reads the tokens that it is to pred"):
        prepare(settings(str(tmp_path / "bert"), story)).load_model()


def test_an_encoder_decoder_is_refused(tiny_tokenizer, story, tmp_path):
    from transformers import T5Config

    T5Config(d_model=32, num_layers=1).save_pretrained(tmp_path / "t5")
    tiny_tokenizer.save_pretrained(tmp_path / "t5")
    with pytest.raises(UsageError, match="its architecture has no model for CausalLM"):
        prepare(settings(str(tmp_path / "t5"), story)).load_model()


@pytest.fixture
def broken(tiny_decoder, tmp_path):
    """A copy of the small Llama, to break."""
    shutil.copytree(tiny_decoder("llama"), tmp_path / "broken")
    return tmp_path / "broken"


def test_weights_of_another_architecture_are_refused(broken, tiny_bert, story):
    shutil.copy(Path(tiny_bert, "model.safetensors"), broken)
    with pytest.raises(UsageError, match=r"hold the weights of its architecture; .* lacks \d+ of"):
        prepare(settings(str(broken), story)).load_model()


def test_weights_of_other_sizes_are_refused(broken, story):
    config = json.loads((broken / "config.json").read_text())
    (broken / "config.json").write_text(json.dumps({**config, "intermediate_size": 96}))
    message = r"model\.layers.*_proj\.weight of .* must be \[.*96.*\] for its .*; got \[.*160.*\]"
    with pytest.raises(UsageError, match=message):
        prepare(settings(str(broken), story)).load_model()


def test_truncated_weights_are_refused(broken, story):
    file = broken / "model.safetensors"
    file.write_bytes(file.read_bytes()[:999])
    with pytest.raises(UsageError, match=r"cannot load --model .*broken: \w+"):
        prepare(settings(str(broken), story)).load_model()


def test_blocks_longer_than_the_model_takes_are_refused(tiny_decoder, story):
    with pytest.raises(UsageError, match=r"--max-length must be at most 64 for .*; got 128"):
        prepare(settings(tiny_decoder("llama"), story, max_length=128))


def test_perplexity_is_that_of_the_models_loss(tiny_decoder, story):
    task = prepare(settings(tiny_decoder("llama"), story))
    model = task.load_model().eval()
    batch = task.collate(task.evaluation["eval"])
    with torch.no_grad():
        output = model(**batch)
    sums = task.reduce_outputs((output.logits,), batch["labels"])
    assert sums.shape == (len(task.evaluation["eval"]),)
    got = task.score("eval", sums.numpy(), batch["labels"].numpy())["perplexity"]
    assert got == pytest.approx(math.exp(output.loss), rel=1e-4)


# Conversion and outliers.


def test_conversions_are_summed_up():
    convs = {f"h.{i}.attn.{n}": "Conv1D is no nn.Linear" for i in range(12) for n in ("q", "v")}
    short = summarize(ConversionReport(["a", "b"], {**convs, "lm_head": "skip"}))
    assert short.to_json() == {
        "converted": 2,
        "skipped": {
            "h.*.attn.q": "Conv1D is no nn.Linear",
            "h.*.attn.v": "Conv1D is no nn.Linear",
            "lm_head": "skip",
        },
    }
    assert str(short) == (
        "2 layers in int8; h.*.attn.q, h.*.attn.v in float: Conv1D is no nn.Linear; "
        "lm_head in float: skip"
    )
    assert str(summarize(ConversionReport())) == "no layers in int8"
    assert str(summarize(ConversionReport(["a"]))) == "1 layer in int8"


def test_outlier_columns_are_counted():
    model = torch.nn.Sequential(torch.nn.Linear(96, 96), torch.nn.ReLU(), torch.nn.Linear(96, 4))
    convert_(model, Int8TileConfig(outlier_capacity=2))
    x = torch.randn(2, 8, 96).clamp(-4, 4)
    x[0, 3, [5, 7, 30]] = 9.0
    x[1, 3, [5, 6, 7, 8]] = -9.0
    x = torch.stack([x, x.flip(0)])
    index, _ = reference.find_outliers(x[0].reshape(-1, 96).numpy(), 5.0, 96)
    batches = [{"input": x[0]}, {"input": x[1, :1]}]
    found = outliers.count(model, batches)
    first = found.layers["0"]
    assert (first.capacity, first.calls) == (2, 2)
    assert first.found == len(index) + 4 == 5 + 4
    assert first.overflow == 3 + 2
    assert found.layers["2"].found == 0
    assert (found.found, found.overflow) == (9 / 4, 5 / 4)
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert found.to_json()["layers"]["0"]["found"] == 9


def test_counting_needs_no_model_on_cpu():
    model = torch.nn.Sequential(torch.nn.Linear(96, 4), torch.nn.Linear(4, 96)).to("meta")
    convert_(model)
    assert outliers.count(model, []).layers == {}


@pytest.mark.parametrize("config", [None, Int8TileConfig(threshold=None)])
def test_models_that_split_nothing_have_no_count(config):
    model = torch.nn.Sequential(torch.nn.Linear(8, 8))
    if config:
        convert_(model, config)
    assert outliers.count(model, []) is None


def test_counting_looks_at_batches_all_over_the_data():
    chosen = outliers.spread(list(range(100)), 8)
    assert [batch[0] for batch in chosen] == [0, 24, 48, 72]
    assert all(len(batch) == 8 for batch in chosen)
    assert outliers.spread([1, 2], 8) == [[1, 2]]


# Whole runs.


@pytest.mark.parametrize("kind", ["llama", "qwen3"])
def test_decoder_run(tmp_path, tiny_decoder, story, kind):
    from transformers import AutoModelForCausalLM

    common = {"arms": ("fp32", "int8-split"), "batch_size": 4, "max_steps": 10, "lr": 2e-3}
    result = run(settings(tiny_decoder(kind), story, **common, output=tmp_path / "out"))
    made = json.loads((tmp_path / "out" / "metrics.json").read_text())
    exact, split = (made["arms"][arm] for arm in common["arms"])
    for arm in (exact, split):
        assert arm["metric"] == arm["metrics"]["perplexity"]
        assert arm["metric"] == pytest.approx(math.exp(arm["loss"]), rel=1e-3)
        assert arm["metric"] < 8  # a guess among all tokens has 320
        assert arm["examples_per_second"] > 0
    assert split["loss"] == pytest.approx(exact["loss"], rel=0.05)
    assert split["loss"] != exact["loss"]
    assert exact["outliers"] is exact["conversion"] is None
    assert split["conversion"]["converted"] == 14
    assert split["conversion"]["skipped"] == {"lm_head": "its name matches skip pattern 'lm_head'"}
    assert len(split["outliers"]["layers"]) == 14
    data = made["environment"]["data"]
    assert (data["unit"], data["held_out"], data["block_tokens"]) == ("blocks", True, 32)
    assert result.unit == "blocks"
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out" / "model")
    assert not any("int8tile" in type(module).__module__ for module in model.modules())


def test_outliers_over_capacity_are_reported(tmp_path, tiny_decoder, story, capsys):
    from rich.console import Console

    common = {"arms": ("int8-split",), "batch_size": 4, "max_steps": 3, "threshold": 0.05}
    console = Console(width=200)
    run(settings(tiny_decoder("llama"), story, **common, output=tmp_path / "out"), console)
    shown = capsys.readouterr().out
    made = json.loads((tmp_path / "out" / "metrics.json").read_text())
    found = made["arms"]["int8-split"]["outliers"]
    down = found["layers"]["model.layers.0.mlp.down_proj"]  # the gated layer, of 160 columns
    assert down["capacity"] == 32
    assert down["overflow"] == down["found"] - 32 * down["calls"] > 0
    assert math.isfinite(made["arms"]["int8-split"]["loss"])
    assert f"{found['found']:.1f}/{found['overflow']:.1f}" in shown
    assert "layers found more outlier columns than they can split, most of all model.l" in shown
    assert "no evaluation file: the last tenth of the text is held out" in shown


def test_gpt2_says_that_its_layers_stay_float(tmp_path, tiny_decoder, story, capsys):
    from rich.console import Console

    common = {"arms": ("int8-split",), "batch_size": 4, "max_steps": 2}
    console = Console(width=200)
    run(settings(tiny_decoder("gpt2"), story, **common, output=tmp_path / "out"), console)
    shown = capsys.readouterr().out
    assert "int8-split: no layers in int8; transformer.h.*.attn.c_attn, transformer" in shown
    assert "in float: Conv1D is no nn.Linear" in shown
    made = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert made["arms"]["int8-split"]["conversion"]["converted"] == 0
    assert made["arms"]["int8-split"]["outliers"] is None
