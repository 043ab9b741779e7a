"""`int8tile finetune --fsdp`: two processes that share the weights do what one does."""

import json
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("transformers", reason="needs the demo extra")

from safetensors.torch import load_file

from int8tile.finetune import Settings, UsageError, fsdp, run, trainer
from int8tile.finetune.interruption import InterruptedRun
from int8tile.finetune.processes import Processes, together
from runs import (
    NOISE,
    SIGNALED,
    TORCHRUN,
    call,
    check_agreement,
    check_losses,
    names,
    options,
    ours,
    settings,
    signal_at,
    start_two,
)

SHARDED = """
import json, sys
from pathlib import Path
import torch
from int8tile.finetune import Settings, fsdp, run
from int8tile.finetune.trainer import ArmTrainer
folder, output = Path(sys.argv[1]), Path(sys.argv[2])
fsdp_too = "fsdp" in sys.argv
common = {"model": str(folder / "bert"), "task": "sst2", "data": folder / "sst2", "threads": 1}
common |= {"batch_size": 8, "epochs": 3.0, "fsdp": fsdp_too}
held = []
step = ArmTrainer.training_step
def counted(self, *arguments):
    loss = step(self, *arguments)
    if fsdp_too:
        own = [p.to_local() for p in self.model.parameters()]
        states = [v for s in self.optimizer.state.values() for v in s.values() if v.dim()]
        held.append([sum(p.numel() for p in own), sum(v.to_local().numel() for v in states)])
    return loss
ArmTrainer.training_step = counted
runs = {
    "plain": {"arms": ("fp32", "int8-split", "paper-split")},
    "stress": {"arms": ("int8-split",), "stress": 3.0},
    "bf16": {"arms": ("bf16",)},
    "lora": {"arms": ("int8-split",), "lora_rank": 4, "lr": 5e-3},
}
found = {}
for name, more in runs.items():
    result = run(Settings(output=output / name, **common, **more))
    for arm, each in result.arms.items():
        losses = [loss for _, loss in each.train_curve]
        found[f"{name} {arm}"] = [losses, each.loss, each.metrics, each.saved_bytes]
print(json.dumps([found, held[1] if held else None]))
"""


@pytest.fixture
def two(undropped, tmp_path):
    return settings(undropped, tmp_path / "two", epochs=3.0, fsdp=True)


def by_two(folder, output, *more):
    pair = start_two("-c", SHARDED, str(folder), str(output), *more)
    texts = [process.communicate(timeout=200) for process in pair]
    assert [process.returncode for process in pair] == [0, 0], texts[0][1]
    one, other = (json.loads(text) for text, _ in texts)
    assert one[0] == other[0]
    return one


def test_sharded_runs_are_those_of_whole_models(undropped, tmp_path):
    whole, _ = by_two(undropped, tmp_path / "ddp")
    sharded, held = by_two(undropped, tmp_path / "fsdp", "fsdp")
    assert set(sharded) == set(whole)
    assert len(whole) == 6
    for name, (losses, loss, metrics, saved) in sharded.items():
        # Clipping sums the squares of a gradient in another order.
        assert losses == pytest.approx(whole[name][0], rel=1e-3), name
        assert loss == pytest.approx(whole[name][1], rel=1e-3)
        assert metrics == pytest.approx(whole[name][2], abs=1.5 / 150)
        assert saved == whole[name][3]
    for name in ("plain", "stress", "bf16", "lora"):
        one, other = (
            load_file(tmp_path / kind / name / "model" / "model.safetensors")
            for kind in ("ddp", "fsdp")
        )
        assert set(one) == set(other)
        for key, tensor in one.items():
            torch.testing.assert_close(other[key], tensor, rtol=0.02, atol=2e-3)
    config = json.loads((tmp_path / "fsdp" / "plain" / "model" / "config.json").read_text())
    assert config["architectures"] == ["BertForSequenceClassification"]
    count = sum(
        t.numel()
        for t in load_file(tmp_path / "ddp" / "plain" / "model" / "model.safetensors").values()
    )
    parameters, states = held
    assert 0.45 * count < parameters < 0.55 * count
    assert 0.9 * count < states < 1.1 * count  # two moments of half of the weights


def test_a_sharded_run_goes_on_with_one(two, one):
    stopped = call(SIGNALED, *options(two), script=TORCHRUN, SIGNAL="SIGINT:1:6")
    assert stopped.returncode != 0
    assert ours(stopped.stderr)[0].startswith("interrupted; go on with: torchrun")
    assert ours(stopped.stderr)[0].endswith("--fsdp --resume")
    saved = two.output / "checkpoints" / "int8-split" / "checkpoint-7"
    assert {"model.safetensors", "optimizer.pt", "rng_state_1.pth"} <= set(names(saved))
    result = run(settings(two.data.parent, two.output, epochs=3.0, resume=True))
    check_losses(result, one)
    check_agreement(two.output, one, processes=1)


def test_a_run_of_one_goes_on_sharded(two, one, monkeypatch):
    signal_at(monkeypatch, 3)
    alone = settings(two.data.parent, two.output, epochs=3.0)
    with pytest.raises(InterruptedRun):
        run(alone)
    done = call("-m", "int8tile", *options(two), "--resume", script=TORCHRUN)
    assert done.returncode == 0, done.stderr
    assert names(two.output) == ["curves.png", "metrics.json", "model"]
    arm = check_agreement(two.output, one, processes=2)
    assert arm["loss"] == pytest.approx(one.loss, abs=NOISE)


def test_one_process_cannot_share(two):
    words = "--fsdp needs several processes, as of torchrun --nproc-per-node 2 .*; got one"
    with pytest.raises(UsageError, match=words), together(two):
        pass


def test_a_trainer_that_would_wrap_the_model_is_refused(monkeypatch):
    monkeypatch.setattr(fsdp, "is_sharded", lambda model: True)
    monkeypatch.setattr(trainer.Trainer, "__init__", lambda self, **options: None)
    task = SimpleNamespace(settings=Settings(), train=[1], collate=None, reduce_outputs=None)
    with pytest.raises(ImportError, match="--fsdp needs a transformers whose Trainer has is_distr"):
        trainer.ArmTrainer(None, task, Processes(), None)
