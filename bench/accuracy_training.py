"""Makes one run of bench_accuracy with the training of int8tile.finetune. Start at `perform`."""

from __future__ import annotations

import copy
import math
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

import accuracy_gradients
from accuracy_runs import GRADIENT, TRAIN, Recipe, Run, Source, read, write
from int8tile.finetune import environment
from int8tile.finetune.checkpoints import Checkpoints
from int8tile.finetune.interruption import Interruption
from int8tile.finetune.memory import release_memory
from int8tile.finetune.processes import Processes
from int8tile.finetune.session import Session
from int8tile.finetune.tasks import Task, prepare
from int8tile.finetune.train import train_arm
from report import system

DECIMALS = 5  # of a curve's values


class StepHistory(TrainerCallback):
    """Keeps loss and gradient norm (before clipping) of every step; evaluates at the end only."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.gradient_norms: list[float] = []

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: object,
    ) -> None:
        control.should_log = True
        control.should_evaluate = False

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,  # noqa: ANN401 - as in transformers
    ) -> None:
        logs = kwargs["logs"]
        if "grad_norm" in logs:
            self.losses.append(round(logs["loss"], DECIMALS))
            self.gradient_norms.append(round(float(logs["grad_norm"]), DECIMALS))


def perform(run: Run, source: Source, work: Path) -> dict[str, Any]:
    """Make a run and write its file.

    Returns:
        The file's content.
    """
    made = read(run.file(source, work))
    if made is not None:  # by another command with the same --work
        return made
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        task = task_of(run, source, Path(folder))
        results = MEASURES[run.kind](run, task)
    release_memory()
    content = {
        "identity": run.identity(source),
        "results": results,
        "constant_loss": constant_loss(task),
        "train_examples": len(task.train),
        "eval_examples": {name: len(rows) for name, rows in task.evaluation.items()},
        "metric": task.metric_names[0],
        "total_seconds": time.perf_counter() - started,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "environment": environment.describe() | {"system": system()},
    }
    write(run.file(source, work), content)
    return content


def task_of(run: Run, source: Source, output: Path) -> Task:
    """Give the task with the run's settings; read and tokenized once in a process."""
    task = copy.copy(_prepared(run.task, run.recipe, source))
    task.settings = run.settings(source, output)
    return task


@cache
def _prepared(task: str, recipe: Recipe, source: Source) -> Task:
    from accuracy_arms import ARMS, BASELINE

    any_run = Run(TRAIN, ARMS[BASELINE], task, 1, 0, recipe)
    return prepare(any_run.settings(source, Path()))


def _train(run: Run, task: Task) -> dict[str, Any]:
    settings = replace(task.settings, arms=("fp32",))  # not looked at
    processes = Processes()
    checkpoints = Checkpoints(settings, len(task.train))
    session = Session(task, processes, Interruption(processes), checkpoints)
    history = StepHistory()
    result, _ = train_arm(run.arm.format, session, callbacks=[history], convert=run.arm.convert)
    assert len(history.losses) == len(history.gradient_norms) == run.recipe.steps
    values = result.to_json()
    found = values.pop("outliers")
    return values | {
        "losses": history.losses,
        "gradient_norms": history.gradient_norms,
        "outliers": found and {name: found[name] for name in ("found", "overflow")},
    }


MEASURES: dict[str, Callable[[Run, Task], dict[str, Any]]] = {
    TRAIN: _train,
    GRADIENT: accuracy_gradients.measure,
}


def constant_loss(task: Task) -> float:
    """Give the training loss of the best prediction that does not look at the input.

    Classification: the entropy of the labels. SQuAD: any token of the window is as likely.
    """
    rows = task.train
    if "labels" in rows[0]:
        counts = Counter(int(row["labels"]) for row in rows)
        return -sum(n / len(rows) * math.log(n / len(rows)) for n in counts.values())
    return sum(math.log(len(row["input_ids"])) for row in rows) / len(rows)


def start_worker(threads: int) -> None:
    """Set up a process that makes runs; it ends with the one that started it."""
    import multiprocessing
    import os
    import signal
    import threading

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the first process ends this one
    torch.set_num_threads(threads)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
