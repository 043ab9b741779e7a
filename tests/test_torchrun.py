"""Several processes: they do what one would, share its checkpoints, and notice a lost one."""

import json
import os
import signal
import time

import numpy as np
import pytest
import torch

pytest.importorskip("transformers", reason="needs the demo extra")

from int8tile.finetune import Settings, UsageError, run
from int8tile.finetune.interruption import InterruptedRun
from int8tile.finetune.processes import Processes, launched, together
from int8tile.finetune.sharding import EvalBatches, TrainBatches
from runs import (
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


@pytest.fixture
def two(undropped, tmp_path):
    return settings(undropped, tmp_path / "two", epochs=3.0)


# Two processes and one.


def test_a_run_of_two_processes_goes_on_with_one(two, one):
    options_two = options(two)
    stopped = call(SIGNALED, *options_two, script=TORCHRUN, SIGNAL="SIGINT:1:6")
    assert stopped.returncode != 0
    words = ours(stopped.stderr)
    assert words == [  # of one process only
        f"interrupted; go on with: torchrun --nproc-per-node 2 -m int8tile "
        f"{' '.join(options_two)} --resume"
    ]
    assert stopped.stdout.count("17 examples to train") == 1
    assert "2 processes, 1 threads each" in stopped.stdout
    saved = two.output / "checkpoints" / "int8-split" / "checkpoint-7"
    assert {"rng_state_0.pth", "rng_state_1.pth", "optimizer.pt"} <= set(names(saved))
    result = run(settings(two.data.parent, two.output, epochs=3.0, resume=True))
    check_losses(result, one)
    check_agreement(two.output, one, processes=1)


def test_a_run_of_one_process_goes_on_with_two(two, one, monkeypatch):
    signal_at(monkeypatch, 3)
    with pytest.raises(InterruptedRun):
        run(two)
    done = call("-m", "int8tile", *options(two), "--resume", script=TORCHRUN)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("written to") == 1
    words = "checkpoint-4; random numbers are drawn anew: 1 processes saved it"
    assert words in done.stdout
    assert "fine-tuned in 1 arms by 2 processes" in done.stdout
    assert names(two.output) == ["curves.png", "metrics.json", "model"]
    check_agreement(two.output, one, processes=2)


SEVERAL = """
import json, sys
from pathlib import Path
from int8tile.finetune import Settings, run
folder = Path(sys.argv[1])
common = {"model": str(folder / "bert"), "batch_size": 8, "threads": 1}
runs = {
    "sst2": {"data": folder / "sst2", "epochs": 3.0, "arms": ("int8-split", "paper-split")},
    "stsb": {"data": folder / "stsb", "max_steps": 4, "arms": ("fp32",)},
    "squad": {"data": folder / "squad", "max_steps": 4, "max_length": 40, "arms": ("int8",)},
}
found = {}
for task, more in runs.items():
    result = run(Settings(task=task, output=Path(sys.argv[2], task), **common, **more))
    found[task] = {
        arm: [[loss for _, loss in each.train_curve], each.loss, each.metrics]
        for arm, each in result.arms.items()
    }
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def tasks(undropped):
    """STS-B, whose loss the Trainer would scale, and SQuAD with contexts of several windows."""
    folder = undropped
    (folder / "stsb").mkdir()
    rows = "".join(f"a film of {i}\tthe film {i % 7}\t{i % 6}\n" for i in range(69))
    for stem in ("train", "dev"):
        (folder / "stsb" / f"{stem}.tsv").write_text("sentence1\tsentence2\tscore\n" + rows)
    (folder / "squad").mkdir()
    context = " ".join(f"The engine of year {year} was slow ." for year in range(1843, 1853))
    questions = [
        {"id": str(i), "question": f"When was number {i} ?",
         "answers": [{"text": str(1843 + i), "answer_start": context.index(str(1843 + i))}]}
        for i in range(10)
    ]  # fmt: skip
    data = {"data": [{"title": "t", "paragraphs": [{"context": context, "qas": questions}]}]}
    for stem in ("train", "dev"):
        (folder / "squad" / f"{stem}.json").write_text(json.dumps(data))
    return folder


def test_every_task_is_trained_and_evaluated_as_by_one(tasks, tmp_path):
    alone = call("-c", SEVERAL, str(tasks), str(tmp_path / "alone"), script=[])
    pair = start_two("-c", SEVERAL, str(tasks), str(tmp_path / "pair"))
    texts = [process.communicate(timeout=100)[0] for process in pair]
    assert [process.returncode for process in pair] == [0, 0]
    exact, *both = (json.loads(text) for text in (alone.stdout, *texts))
    assert both[0] == both[1]
    for task, arms in exact.items():
        for arm, (losses, loss, metrics) in arms.items():
            got_losses, got_loss, got_metrics = both[0][task][arm]
            # Of stochastic rounding each process draws its own.
            noise = {"rel": 2e-2 if arm.startswith("paper") else 3e-3}
            assert got_losses == pytest.approx(losses, **noise)
            assert got_loss == pytest.approx(loss, **noise)
            if task == "sst2":
                assert got_metrics == pytest.approx(metrics, abs=1.5 / 150)
            else:
                assert got_metrics == pytest.approx(metrics, abs=0.02)
    assert (tmp_path / "pair" / "squad" / "metrics.json").is_file()


# A lost process.


def test_a_killed_process_ends_the_other(two):
    command = [SIGNALED, *options(two), "--save-every", "3"]
    first, second = start_two(*command, SIGNAL="SIGKILL:1:4")
    begin = time.monotonic()
    _, errors = first.communicate(timeout=100)
    assert second.wait() == -signal.SIGKILL
    second.communicate()
    assert first.returncode == 1
    assert time.monotonic() - begin < 60
    (line,) = ours(errors)
    assert line.startswith("error: int8tile finetune: another of the 2 processes ended, or did not")
    assert "the same command with --resume goes on" in line
    assert "Traceback" not in errors
    saved = two.output / "checkpoints" / "int8-split"
    assert names(saved) == ["checkpoint-3"]
    assert names(two.output) == ["checkpoints"]
    assert json.loads((saved / "checkpoint-3" / "int8tile.json").read_text())["record"]["step"] == 3


@pytest.mark.slow
def test_a_silent_process_ends_the_other_in_time(two):
    command = [SIGNALED, *options(two)]
    at = command.index("--timeout")
    command[at + 1] = "5"
    first, second = start_two(*command, SIGNAL="SIGSTOP:1:4")
    try:
        _, errors = first.communicate(timeout=100)
    finally:
        second.kill()
        second.communicate()
    assert first.returncode == 1
    (line,) = ours(errors)
    assert "did not answer within 5 s" in line


@pytest.mark.slow
def test_accelerate_launches_it_too(two, one):
    launch = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    launch += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    done = call("-m", "int8tile", *options(two), script=launch)
    assert done.returncode == 0, done.stderr
    check_agreement(two.output, one, processes=2)


# Refusals.


def test_the_batch_must_be_shared_evenly(two, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    words = "--batch-size must be a multiple of the 3 processes, which share it; got 8"
    with pytest.raises(UsageError, match=words), together(two):
        pass


def test_only_the_first_process_complains(two):
    command = ["-m", "int8tile", *options(two), "--save-every", "0"]
    for rank, lines in ((0, 1), (1, 0)):
        done = call(*command[2:], RANK=rank)
        assert done.returncode == 2
        assert len(ours(done.stderr)) == lines


@pytest.mark.parametrize("name", ["ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED"])
def test_a_launch_that_shards_the_model_is_refused(two, monkeypatch, name):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv(name, "true")
    with pytest.raises(UsageError, match=f"got {name}=true"), together(two):
        pass


# Shares.


def lengths_of(examples, seed=0):
    return np.random.default_rng(seed).integers(5, 100, examples).tolist()


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("count", [1, 2, 3, 5])
@pytest.mark.parametrize("examples", [1, 7, 8, 17, 24])
def test_shares_make_up_the_batches_of_one(examples, count, grouped):
    lengths = lengths_of(examples) if grouped else None
    alone = TrainBatches(examples, 8, 5, Processes(), lengths)
    shares = [TrainBatches(examples, 8, 5, Processes(count, i), lengths) for i in range(count)]
    for epoch in (0, 1):
        for each in (alone, *shares):
            each.set_epoch(epoch)
        for step, (batch, *parts) in enumerate(zip(alone, *shares, strict=True)):
            weights = [each.weight(step) for each in shares]
            assert sum(weights) == pytest.approx(count)
            seen = [i for part, weight in zip(parts, weights, strict=True) if weight for i in part]
            assert seen == batch
            # The mean of the weighted means is the mean of the batch.
            means = [weight * np.mean(part) for part, weight in zip(parts, weights, strict=True)]
            assert np.mean(means) == pytest.approx(np.mean(batch))
    if not grouped and examples > 1:
        assert list(alone) != list(TrainBatches(examples, 8, 5, Processes()))
        assert list(alone) != list(TrainBatches(examples, 8, 6, Processes()))


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("examples", [1, 4, 5, 13])
def test_evaluation_batches_come_back_in_order(examples, count, grouped):
    lengths = lengths_of(examples) if grouped else None
    shares = [EvalBatches(examples, 4, Processes(count, i), lengths) for i in range(count)]
    parts = [list(each) for each in shares]
    assert len({len(part) for part in parts}) == 1
    joined = np.array([i for batch in shares[0].in_order(parts) for i in batch])
    assert joined[shares[0].places].tolist() == list(range(examples))


def test_grouped_batches_hold_every_example_once_and_little_padding():
    lengths = lengths_of(1000)
    train = TrainBatches(1000, 8, 5, Processes(), lengths)
    plain = TrainBatches(1000, 8, 5, Processes())
    evaluation = EvalBatches(1000, 8, Processes(), lengths)

    def padded(batches):
        batches = list(batches)
        assert sorted(i for batch in batches for i in batch) == list(range(1000))
        return sum(len(batch) * max(lengths[i] for i in batch) for batch in batches)

    assert padded(evaluation) < 1.03 * sum(lengths)
    assert padded(train) < 1.1 * sum(lengths)
    assert padded(plain) > 1.5 * sum(lengths)
    first, *others = list(train)
    longest = [max(lengths[i] for i in batch) for batch in others]
    assert max(lengths[i] for i in first) == max(lengths)  # memory runs out at once or never
    assert sorted(longest, reverse=True) != longest
    train.set_epoch(1)
    assert list(train) != [first, *others]


@pytest.mark.parametrize("task", ["sst2", "squad"])
def test_grouped_batches_evaluate_the_same(tasks, tmp_path, task):
    common = {"model": str(tasks / "bert"), "task": task, "data": tasks / task}
    common |= {"arms": ("fp32",), "max_steps": 1, "lr": 1e-30, "max_length": 40, "threads": 1}
    plain, grouped = (
        run(Settings(**common, group_by_length=each, output=tmp_path / str(each))).arms["fp32"]
        for each in (False, True)
    )
    assert grouped.loss == pytest.approx(plain.loss, rel=1e-5)
    assert grouped.metrics == pytest.approx(plain.metrics)


def test_processes_share_the_cores():
    cores = len(os.sched_getaffinity(0))
    assert Processes(2, 0, 2).threads(None) == max(1, cores // 2)
    assert Processes(64, 0, 64).threads(None) == 1
    assert Processes(2, 0, 2).threads(3) == 3
    assert Processes().threads(None) == torch.get_num_threads()


def test_launchers_that_name_no_share_have_one_machine(monkeypatch):
    for name, value in (("WORLD_SIZE", "4"), ("RANK", "3")):
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    assert launched() == Processes(4, 3, 4)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert launched() == Processes(4, 3, 2)


LEAVING = """
import atexit
import sys
from torch import distributed
from int8tile.finetune.processes import leave

leave(1)  # not connected: goes on
distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
atexit.register(print, "registered")
leave(int(sys.argv[1]) if len(sys.argv) > 1 else None)
print("not reached")
"""


def test_a_connected_process_leaves_with_its_code_after_what_was_registered():
    for code in (0, 3):
        done = call(str(code), script=("-c", LEAVING))
        assert (done.returncode, done.stdout) == (code, "registered\n"), done.stderr
    assert call(script=("-c", LEAVING)).returncode == 0
