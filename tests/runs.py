"""Small runs of `int8tile finetune` that are interrupted, cut in two, or shared by processes."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, BertConfig, BertModel

from int8tile.finetune import Settings
from int8tile.finetune.checkpoint import find_model
from int8tile.finetune.quiet import quiet
from int8tile.finetune.trainer import ArmTrainer

SIGNALED = str(Path(__file__).with_name("signaled.py"))
NOISE = 2e-3  # of a loss of about 0.7: int8 rounds halves of a batch like the batch, sums do not
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
WORDS = ("good", "bad", "dull", "fine", "long", "short", "warm")


def save_bert(folder, dropout=0.1, hidden_size=64):
    """A random two-layer BERT with the packaged model's tokenizer."""
    AutoTokenizer.from_pretrained(find_model(None)).save_pretrained(folder)
    config = BertConfig(
        hidden_size=hidden_size, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=128, hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout,
    )  # fmt: skip
    torch.manual_seed(0)
    with quiet():
        BertModel(config).save_pretrained(folder)


def save_task(folder, train=17, evaluation=150):
    """Files of SST-2; 17 examples are batches of 8, 8 and 1."""
    folder.mkdir()
    for stem, count in (("train", train), ("dev", evaluation)):
        rows = [f"a {WORDS[i % 7]} film of {i % 13}\t{i * i % 3 % 2}\n" for i in range(count)]
        (folder / f"{stem}.tsv").write_text("sentence\tlabel\n" + "".join(rows))


def settings(folder, output, **changes):
    """The run that the tests cut: 6 epochs of 3 steps, evaluated every 5 steps."""
    return Settings(
        **{
            **{"model": str(folder / "bert"), "task": "sst2", "data": folder / "sst2"},
            **{
                "arms": ("int8-split",),
                "batch_size": 8,
                "epochs": 6.0,
                "threads": 1,
                "timeout": 60.0,
            },
            **changes,
            "output": folder / output,
        }
    )


def options(each):
    """Settings as a command's options."""
    texts = {"arms": ",".join(each.arms), "save_every": each.save_every}
    names = ("model", "task", "data", "batch_size", "epochs", "threads", "output", "timeout")
    values = {**texts, **{name: getattr(each, name) for name in names}}
    pairs = [(f"--{n.replace('_', '-')}", str(v)) for n, v in values.items() if v is not None]
    flags = ["--fsdp"] * each.fsdp
    return ["finetune", *(part for pair in pairs for part in pair), *flags]


def signal_at(monkeypatch, step, number=signal.SIGINT, method="training_step", arm=0):
    """Send this process a signal, once, in a step of the so many-th arm."""
    original = getattr(ArmTrainer, method)
    trainers, sent = [], []

    def signaled(self, *args, **kwargs):
        if self not in trainers:
            trainers.append(self)
        if not sent and trainers.index(self) == arm and self.state.global_step == step:
            sent.append(number)
            os.kill(os.getpid(), number)
        return original(self, *args, **kwargs)

    monkeypatch.setattr(ArmTrainer, method, signaled)


def environment(**more):
    """This process's environment, without the addresses of packages of other interpreters."""
    return {**os.environ, "COLUMNS": "200", **{name: str(value) for name, value in more.items()}}


def call(*arguments, script=("-m", "int8tile"), **more):
    """Run a command to its end, or to that of all its processes after a minute and a half."""
    with subprocess.Popen(
        [sys.executable, *script, *arguments],
        env=environment(**more), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    ) as process:  # fmt: skip
        try:
            out, errors = process.communicate(timeout=90)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # a launcher's workers hold the pipes too
            out, errors = process.communicate()
            raise AssertionError(f"no end after 90 s:\n{out}\n{errors}") from None
    return subprocess.CompletedProcess(process.args, process.returncode, out, errors)


def start_two(*arguments, **more):
    """Start two processes as a launcher would."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    world = {"WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1"}
    return [
        subprocess.Popen(
            [sys.executable, *arguments],
            env=environment(**world, MASTER_PORT=port, RANK=rank, LOCAL_RANK=rank, **more),
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip


def ours(text):
    """What int8tile wrote to standard error, without what packages say when they are imported."""
    lines = text.splitlines()
    return [line for line in lines if re.match("error|interrupted|ending", line)]


def curves(result):
    """What two runs must agree on."""
    return {
        arm: (each.train_curve, each.eval_curve, each.loss, each.metrics)
        for arm, each in result.arms.items()
    }


def names(folder):
    """All names in a folder, sorted."""
    return sorted(each.name for each in folder.iterdir())


# Two processes against one.


def check_agreement(output, one, processes):
    """Compare a finished run with that of one process."""
    content = json.loads((output / "metrics.json").read_text())
    assert content["environment"]["processes"] == processes
    arm = content["arms"]["int8-split"]
    assert arm["loss"] == pytest.approx(one.loss, abs=NOISE)
    # One of 150 examples may fall to the other side.
    assert arm["metric"] == pytest.approx(one.metric, abs=1.5 / 150)
    return arm


def check_losses(result, one):
    arm = result.arms["int8-split"]
    assert [step for step, _ in arm.train_curve] == [step for step, _ in one.train_curve]
    losses, exact = (np.array(each.train_curve)[:, 1] for each in (arm, one))
    np.testing.assert_allclose(losses, exact, atol=NOISE)
    assert arm.loss == pytest.approx(one.loss, abs=NOISE)
