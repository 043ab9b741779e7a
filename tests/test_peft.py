"""LoRA of PEFT on a converted model: the base layers run in int8, the adapters in float."""

import pytest

pytest.importorskip("peft", reason="needs the demo extra")
pytest.importorskip("transformers", reason="needs the demo extra")
pytest.importorskip("accelerate", reason="needs the demo extra")

import peft
import torch
from torch import nn
from transformers import AutoModelForSequenceClassification, Trainer, TrainingArguments

import int8tile
from helpers import RecordOps, same
from int8tile import Int8TileConfig
from int8tile.hf import Int8TileHfConfig
from int8tile.nn import Int8Linear
from tasks import bert, examples, logits, logits_without_int8tile, sentences

# PEFT reads an attribute that transformers has renamed.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")

TARGETS = ("query", "value")
BASES = [f"bert.encoder.layer.{i}.attention.self.{name}" for i in (0, 1) for name in TARGETS]
CONFIGS = pytest.mark.parametrize(
    "config", [Int8TileConfig(), Int8TileConfig.paper()], ids=["default", "paper"]
)


def lora(model, **options):
    torch.manual_seed(2)
    settings = {"task_type": "SEQ_CLS", "r": 4, "target_modules": list(TARGETS), **options}
    return peft.get_peft_model(model, peft.LoraConfig(**settings))


def adapted(config=None, **options):
    model = bert()
    int8tile.convert_(model, config)
    return lora(model, **options)


def train(model, steps=12):
    rows = examples()
    batch = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=2e-2)
    torch.manual_seed(4)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = model.train()(**batch).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def converted(model):
    return [name for name, module in model.named_modules() if isinstance(module, Int8Linear)]


def base_layer(model):
    return model.get_submodule(f"base_model.model.{BASES[0]}").base_layer


@CONFIGS
def test_before_or_after_makes_the_same_model(config):
    before, after = adapted(config), lora(bert())
    report = int8tile.convert_(after, config)
    assert converted(before) == converted(after) == report.converted
    assert not any("lora_" in name for name in report.converted)
    assert {name: why for name, why in report.skipped.items() if "lora_" not in name} == {}
    assert len(report.skipped) == 2 * len(BASES)
    assert type(base_layer(before)) is Int8Linear
    assert train(before) == train(after)


def test_only_adapters_and_head_are_trained():
    model = adapted()
    with RecordOps() as record:
        losses = train(model)
    assert losses[-1] < losses[0]
    trained = [name for name, p in model.named_parameters() if p.grad is not None]
    assert all("lora_" in name or "classifier" in name for name in trained)
    # The gradient of a weight is asked for in the head, which is trained, and in no frozen base.
    assert record.names.count("linear_backward") + record.names.count("linear_grad_weight") == 12


def test_frozen_bases_stay_packed_through_training():
    model = adapted().train()
    batch = {**sentences(), "labels": torch.zeros(16, dtype=torch.long)}
    for step in range(3):
        with RecordOps() as record:
            model(**batch).loss.backward()
        assert ("pack_weight" in record.names) == (step == 0)


@pytest.mark.parametrize("safe", [False, True], ids=["in_place", "safe"])
def test_merging_drops_the_packed_weight(safe):
    model = adapted()
    train(model)
    before = logits(model)
    base = base_layer(model)
    assert base.__dict__["_cache"]
    weight = base.weight.detach().clone()
    layer = model.get_submodule(f"base_model.model.{BASES[0]}")
    layer.merge(safe_merge=safe)
    assert not torch.equal(base.weight, weight)
    fresh = nn.Linear(32, 32)
    fresh.load_state_dict(base.state_dict())
    Int8Linear.from_linear(fresh, base.config)
    x = torch.randn(6, 32)
    with torch.no_grad():
        same(base(x), fresh(x))
    layer.unmerge()
    torch.testing.assert_close(base.weight, weight)
    torch.testing.assert_close(logits(model), before, rtol=0.02, atol=0.02)


def test_a_merged_model_is_an_ordinary_checkpoint(tmp_path):
    model = adapted(modules_to_save=["classifier"])
    train(model)
    merged = model.merge_and_unload()
    assert len(converted(merged)) == 14
    merged.save_pretrained(tmp_path / "merged")
    int8tile.revert_(merged)
    same(logits_without_int8tile(tmp_path / "merged", tmp_path), logits(merged))


@CONFIGS
def test_adapters_are_saved_and_loaded(tmp_path, config):
    model = adapted(config)
    train(model)
    model.save_pretrained(tmp_path)
    assert "int8tile" not in (tmp_path / "adapter_config.json").read_text()
    base = bert()
    int8tile.convert_(base, config)
    loaded = peft.PeftModel.from_pretrained(base, tmp_path)
    same(logits(loaded), logits(model))
    plain = peft.PeftModel.from_pretrained(bert(), tmp_path)
    assert converted(plain) == []
    int8tile.revert_(model)
    same(logits(plain), logits(model))


def trainer(model, folder, steps):
    arguments = TrainingArguments(
        str(folder),
        max_steps=steps,
        per_device_train_batch_size=8,
        learning_rate=1e-2,
        lr_scheduler_type="constant",
        logging_steps=1,
        save_steps=4,
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    return Trainer(model, arguments, train_dataset=examples())


def losses(run):
    return [entry["loss"] for entry in run.state.log_history if "loss" in entry]


@CONFIGS
def test_a_resumed_run_of_the_trainer_is_the_same_run(tmp_path, config):
    once = trainer(adapted(config, lora_dropout=0.1), tmp_path / "once", 8)
    once.train()
    trainer(adapted(config, lora_dropout=0.1), tmp_path / "cut", 4).train()
    cut = trainer(adapted(config, lora_dropout=0.1), tmp_path / "cut", 8)
    cut.train(resume_from_checkpoint=True)
    assert losses(cut) == losses(once)


def test_adapters_on_a_model_of_the_quantizer(tmp_path):
    bert().save_pretrained(tmp_path)
    model = AutoModelForSequenceClassification.from_pretrained(
        tmp_path, quantization_config=Int8TileHfConfig()
    )
    assert train(lora(model)) == train(adapted())


def test_adapters_of_a_converted_model_may_be_dora():
    """DoRA reads the base weight itself, which is still there and float."""
    assert train(adapted(use_dora=True))[-1] < 0.7
