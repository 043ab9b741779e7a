"""`int8tile finetune --lora-rank`: adapters train, resume, merge and load like those of peft."""

import json
import shutil

import pytest
import torch

pytest.importorskip("transformers", reason="needs the demo extra")
pytest.importorskip("peft", reason="needs the demo extra")

import peft
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    BertConfig,
    BertForMaskedLM,
    RobertaConfig,
    RobertaForMaskedLM,
)

from checkpoints import SENTENCES
from int8tile.finetune import Settings, UsageError, check_demo_extra, lora, run
from int8tile.finetune.interruption import InterruptedRun
from int8tile.finetune.quiet import quiet
from int8tile.finetune.tasks import prepare
from int8tile.finetune.train import _make
from runs import curves, names, save_bert, save_task, settings, signal_at

# PEFT reads an attribute that transformers has renamed.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")

ARMS = ("fp32", "int8-split", "paper-split")
LORA = {"lora_rank": 4, "lr": 5e-3}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lora")
    save_bert(folder / "bert")
    save_task(folder / "sst2", evaluation=20)
    return folder


@pytest.fixture(scope="module")
def whole(folder):
    return run(settings(folder, "whole", arms=ARMS, **LORA))


def weights(folder):
    return load_file(folder / "model.safetensors")


def logits(model):
    ids = torch.arange(5, 29).reshape(2, 12)
    with torch.no_grad():
        return model.eval()(input_ids=ids).logits


@pytest.fixture(scope="module")
def story(tmp_path_factory):
    file = tmp_path_factory.mktemp("story") / "story.txt"
    file.write_text("\n".join(SENTENCES) + "\n")
    return file


# Runs.


def test_every_arm_trains(folder, whole):
    for arm in whole.arms.values():
        first, *_, last = (loss for _, loss in arm.train_curve)
        assert last < first
    assert len({result.train_curve[-1] for result in whole.arms.values()}) == len(ARMS)
    assert whole.arms["int8-split"].conversion.converted == 14
    looked_at = whole.arms["int8-split"].outliers.layers
    assert "bert.encoder.layer.0.attention.self.query" in looked_at
    assert len(looked_at) == 14
    assert names(folder / "whole") == ["adapter", "curves.png", "metrics.json", "model"]
    made = json.loads((folder / "whole" / "metrics.json").read_text())
    assert made["arguments"]["lora_rank"] == 4


def test_base_weights_stay_as_they_were(folder, whole):
    base, merged = weights(folder / "bert"), weights(folder / "whole" / "model")
    targets = {f"{name}.weight" for name in ("query", "value")}
    for name, tensor in base.items():
        changed = not torch.equal(tensor, merged[f"bert.{name}"])
        assert changed == (name.split("self.")[-1] in targets), name


def test_the_merged_model_predicts_what_the_adapter_does(folder, whole):
    output = folder / "whole"
    merged = AutoModelForSequenceClassification.from_pretrained(output / "model")
    assert not any("int8tile" in type(module).__module__ for module in merged.modules())
    with quiet():
        base = AutoModelForSequenceClassification.from_pretrained(folder / "bert")
    adapted = peft.PeftModel.from_pretrained(base, output / "adapter")
    torch.testing.assert_close(logits(merged), logits(adapted))


@pytest.mark.parametrize("arms", [("int8-split",), ("paper-split",)])
def test_a_run_cut_in_two_is_the_same_run(folder, whole, tmp_path, monkeypatch, arms):
    signal_at(monkeypatch, 7)
    with pytest.raises(InterruptedRun):
        run(settings(folder, tmp_path / "cut", arms=arms, **LORA))
    saved = tmp_path / "cut" / "checkpoints" / arms[0] / "checkpoint-8"
    assert {"adapter_config.json", "adapter_model.safetensors"} <= set(names(saved))
    assert "model.safetensors" not in names(saved)
    result = run(settings(folder, tmp_path / "cut", arms=arms, resume=True, **LORA))
    assert curves(result) == {arm: curves(whole)[arm] for arm in arms}


def test_a_run_cut_in_its_last_evaluation_is_the_same_run(folder, whole, tmp_path, monkeypatch):
    signal_at(monkeypatch, 18, method="prediction_step")
    arms = ("int8-split",)
    with pytest.raises(InterruptedRun):
        run(settings(folder, tmp_path / "cut", arms=arms, **LORA))
    result = run(settings(folder, tmp_path / "cut", arms=arms, resume=True, **LORA))
    assert curves(result)["int8-split"] == curves(whole)["int8-split"]


def test_an_adapter_of_another_model_is_refused(folder, tmp_path, monkeypatch):
    signal_at(monkeypatch, 2)
    cut = settings(folder, tmp_path / "cut", arms=("fp32",), **LORA)
    with pytest.raises(InterruptedRun):
        run(cut)
    (folder / "bert").rename(tmp_path / "bert")
    save_bert(folder / "bert", hidden_size=32)
    try:
        with pytest.raises(UsageError, match=r"is one of another architecture: \d+ weights differ"):
            run(settings(folder, tmp_path / "cut", arms=("fp32",), resume=True, **LORA))
    finally:
        shutil.rmtree(folder / "bert")
        (tmp_path / "bert").rename(folder / "bert")


@pytest.mark.parametrize("factor", [4.0])
def test_injected_outliers_are_taken_out_before_merging(folder, tmp_path, factor):
    arms = {"arms": ("fp32",), "epochs": 1.0, **LORA}
    run(settings(folder, tmp_path / "out", stress=factor, **arms))
    merged, base = weights(tmp_path / "out" / "model"), weights(folder / "bert")
    name = "encoder.layer.0.output.dense.weight"
    torch.testing.assert_close(merged[f"bert.{name}"], base[name])


def test_injected_outliers_are_taken_out_of_a_trained_head(folder):
    task = prepare(settings(folder, "out", stress=8.0, **LORA))
    model, _, stress = _make("fp32", task, None)
    ids = {"input_ids": torch.arange(5, 29).reshape(2, 12)}
    with torch.no_grad():
        stressed = model.eval()(**ids).logits
        stress.remove()
        plain = model.merge_and_unload().eval()
        torch.testing.assert_close(plain(**ids).logits, stressed, rtol=1e-4, atol=1e-5)
    assert not any(module._forward_pre_hooks for module in plain.modules())


# Tasks and models.


@pytest.mark.parametrize("target", [None, ("all-linear",)])
def test_a_decoder_run(tmp_path, tiny_decoder, story, target):
    model, output = tiny_decoder("llama"), tmp_path / "out"
    result = run(
        Settings(
            model=model, task="clm", data=story, max_length=32, threads=1, batch_size=4,
            max_steps=10, lr=2e-2, arms=("fp32", "int8-split"), lora_rank=4, lora_target=target,
            output=output,
        )
    )  # fmt: skip
    exact, split = (result.arms[arm] for arm in ("fp32", "int8-split"))
    assert split.train_curve[-1][1] < 0.9 * split.train_curve[0][1]
    assert split.loss == pytest.approx(exact.loss, rel=0.05)
    assert split.loss != exact.loss
    assert split.conversion.converted == 14
    merged = AutoModelForCausalLM.from_pretrained(output / "model")
    base = AutoModelForCausalLM.from_pretrained(model)
    changed = {
        name.split(".")[-2]
        for name, tensor in base.state_dict().items()
        if not torch.equal(tensor, merged.state_dict()[name])
    }
    every = {f"{name}_proj" for name in ("q", "k", "v", "o", "gate", "up", "down")}
    assert changed == (every if target else {"q_proj", "v_proj"})
    adapted = peft.PeftModel.from_pretrained(base, output / "adapter")
    torch.testing.assert_close(logits(merged), logits(adapted), rtol=1e-4, atol=1e-5)


def test_a_new_head_is_trained_and_saved(tmp_path, folder):
    """A body without its pooler: that is new too, and random if it were frozen."""
    save_bert(tmp_path / "bert")
    config = BertConfig.from_pretrained(tmp_path / "bert")
    with quiet():
        BertForMaskedLM(config).save_pretrained(tmp_path / "bert")
    task = prepare(settings(folder, "out", model=str(tmp_path / "bert"), **LORA))
    model = lora.adapt(task.load_model(), task.settings)
    trained = {n for n, p in model.named_parameters() if p.requires_grad and "lora_" not in n}
    prefix, saved = "base_model.model", "modules_to_save.default"
    assert trained == {
        f"{prefix}.{name}.{saved}.{kind}"
        for name in ("bert.pooler.dense", "classifier")
        for kind in ("weight", "bias")
    }


def test_a_new_head_of_several_layers_is_trained(tmp_path, folder):
    """RoBERTa's: peft copies the whole head, so nothing inside of it may be named once more."""
    save_bert(tmp_path / "roberta")
    shape = BertConfig.from_pretrained(tmp_path / "roberta").to_dict()
    kept = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    config = RobertaConfig(
        vocab_size=shape["vocab_size"], max_position_embeddings=shape["max_position_embeddings"],
        **{name: shape[name] for name in kept},
    )  # fmt: skip
    with quiet():
        RobertaForMaskedLM(config).save_pretrained(tmp_path / "roberta")
    task = prepare(settings(folder, "out", model=str(tmp_path / "roberta"), **LORA))
    model = lora.adapt(task.load_model(), task.settings)
    model(**task.collate(task.train[:4])).loss.backward()
    trained = {n for n, p in model.named_parameters() if p.requires_grad and "lora_" not in n}
    head = "base_model.model.classifier.modules_to_save.default"
    assert trained == {
        f"{head}.{name}.{kind}" for name in ("dense", "out_proj") for kind in ("weight", "bias")
    }
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


def test_arms_begin_with_the_same_adapters(folder):
    task = prepare(settings(folder, "out", **LORA))
    states = [lora.adapter_state(lora.adapt(task.load_model(), task.settings)) for _ in range(2)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_a_question_answering_run(tmp_path, folder):
    (tmp_path / "squad").mkdir()
    questions = [
        {"id": f"{i}", "question": f"who is {i} ?", "answers": [{"text": "Ada", "answer_start": 0}]}
        for i in range(8)
    ]
    article = {"title": "t", "paragraphs": [{"context": "Ada is here .", "qas": questions}]}
    for stem in ("train", "dev"):
        (tmp_path / "squad" / f"{stem}.json").write_text(json.dumps({"data": [article]}))
    changes = {"task": "squad", "data": tmp_path / "squad", "max_length": 40, "epochs": 2.0}
    run(settings(folder, tmp_path / "out", **changes, **LORA))
    model, loaded = AutoModelForQuestionAnswering.from_pretrained(
        tmp_path / "out" / "model", output_loading_info=True
    )
    assert not loaded["missing_keys"]
    assert model.qa_outputs.out_features == 2


# Refusals.


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lora_rank": 0}, "--lora-rank must be at least 1; got 0"),
        ({"lora_rank": 4, "lora_alpha": 0}, "--lora-alpha must be at least 1; got 0"),
        ({"lora_alpha": 8}, "--lora-alpha must be left out without --lora-rank; got 8"),
        ({"lora_target": ("query",)}, "--lora-target must be left out without --lora-rank"),
        ({"lora_rank": 4, "lora_target": ("query", "")}, "--lora-target must be names of layers"),
    ],
)
def test_bad_settings_are_refused(changes, message):
    with pytest.raises(UsageError, match=message):
        Settings(**changes)


def test_alpha_is_twice_the_rank():
    assert Settings(lora_rank=4).alpha == 8
    assert Settings(lora_rank=4, lora_alpha=4).alpha == 4


def test_unknown_targets_are_refused(folder, tmp_path):
    words = (
        r"--lora-target must name linear layers of BertForSequenceClassification, or be all-linear"
    )
    for target, lost in (
        (("q_proj",), "q_proj"),
        (("query", "valeu"), "valeu"),
        (("query", "all-linear"), "all-linear"),
    ):
        with pytest.raises(UsageError, match=f"{words} alone; got {lost}$"):
            run(settings(folder, tmp_path / "out", lora_target=target, **LORA))
    assert not (tmp_path / "out").exists()


def test_peft_is_asked_for(monkeypatch):
    import importlib.util

    original = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "peft" else original(name)
    )
    check_demo_extra(Settings())
    with pytest.raises(
        ImportError, match=r"--lora-rank needs peft: pip install 'int8tile\[demo\]'$"
    ):
        check_demo_extra(Settings(lora_rank=4))
