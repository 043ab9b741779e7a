"""Fine-tunes and evaluates one arm with the Hugging Face Trainer."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch.utils.data import Dataset
from transformers import (
    DataCollatorWithPadding,
    EvalPrediction,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)
from transformers.trainer_callback import PrinterCallback

from int8tile.finetune import arms, checkpoint, metrics
from int8tile.finetune.examples import TaskData
from int8tile.finetune.memory import saved_bytes
from int8tile.finetune.results import ArmResult
from int8tile.finetune.settings import Settings
from int8tile.finetune.stress import Stress
from int8tile.finetune.timing import StepTimer
from int8tile.nn import convert_, revert_

EVALUATIONS = 5  # points of the evaluation curve
MIN_EVAL_STEPS = 5  # a shorter run is evaluated at its end only
LOSS_POINTS = 25  # points of the training curve
EVAL_BATCH_SIZE = 64

Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Inputs:
    """What all arms share.

    Args:
        settings: The run's settings.
        data: The task.
        source: Directory or hub id of the model.
        tokenizer: The model's tokenizer.
        train: Tokenized training examples.
        evaluation: Tokenized evaluation sets by name, the headline's first.
    """

    settings: Settings
    data: TaskData
    source: str
    tokenizer: PreTrainedTokenizerBase
    train: Rows
    evaluation: Mapping[str, Rows]


def train_arm(
    arm: str, inputs: Inputs, scratch: str, callbacks: Sequence[TrainerCallback] = ()
) -> tuple[ArmResult, PreTrainedModel]:
    """Fine-tune a fresh copy of the model in one arm and evaluate it.

    Args:
        arm: One of `settings.ARM_NAMES`.
        inputs: What all arms share.
        scratch: A folder that the Trainer may call its own; nothing is written to it.
        callbacks: More callbacks for the Trainer.

    Returns:
        What was measured, and the trained model with ordinary linear layers.
    """
    settings, data = inputs.settings, inputs.data
    model = checkpoint.load_model(inputs.source, data, inputs.tokenizer, settings.seed)
    config = arms.config(arm, settings)
    if config is not None:
        convert_(model, config, share_inputs=True)
    stress = Stress(model, settings.stress) if settings.stress != 1 else None
    collator = DataCollatorWithPadding(inputs.tokenizer)
    kept = _saved_bytes(model, collator(inputs.train[: settings.batch_size]), arm)
    timer = StepTimer()
    headline, *others = inputs.evaluation
    trainer = Trainer(
        model=model,
        args=_arguments(settings, len(inputs.train), arm, scratch),
        data_collator=collator,
        train_dataset=inputs.train,
        eval_dataset=inputs.evaluation[headline],
        compute_metrics=_metrics_function(data),
        callbacks=[timer, *callbacks],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    final = _final_evaluation(trainer)
    values = {name: float(final[f"eval_{name}"]) for name in data.metric_names}
    for other in others:
        rows = cast("Dataset[Any]", inputs.evaluation[other])  # a list is one
        more = trainer.evaluate(rows, metric_key_prefix=other)
        values |= {f"{name}_{other}": float(more[f"{other}_{name}"]) for name in data.metric_names}
    if stress is not None:
        stress.remove()
    if config is not None:
        revert_(model)
    result = ArmResult(
        metric=values[data.metric_names[0]],
        metrics=values,
        loss=float(final["eval_loss"]),
        train_seconds=sum(timer.seconds),
        examples_per_second=timer.examples_per_second(len(inputs.train), settings.batch_size),
        saved_bytes=kept,
        train_curve=_curve(trainer, "loss"),
        eval_curve=_curve(trainer, f"eval_{data.metric_names[0]}"),
    )
    return result, model


def total_steps(settings: Settings, examples: int) -> int:
    """Count the optimizer steps of an arm.

    Args:
        settings: The run's settings.
        examples: Training examples in one epoch.

    Returns:
        At least 1.
    """
    steps = math.ceil(settings.epochs * math.ceil(examples / settings.batch_size))
    return steps if settings.max_steps is None else min(steps, settings.max_steps)


def _arguments(settings: Settings, examples: int, arm: str, scratch: str) -> TrainingArguments:
    steps = total_steps(settings, examples)
    return TrainingArguments(
        output_dir=scratch,
        max_steps=steps,
        per_device_train_batch_size=settings.batch_size,
        per_device_eval_batch_size=EVAL_BATCH_SIZE,
        learning_rate=settings.lr,
        warmup_steps=0.1,  # a share of the steps
        weight_decay=0.01,
        seed=settings.seed,
        data_seed=settings.seed,
        eval_strategy="steps",
        eval_steps=max(MIN_EVAL_STEPS, math.ceil(steps / EVALUATIONS)),
        logging_steps=math.ceil(steps / LOSS_POINTS),
        logging_nan_inf_filter=False,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        bf16=arm == "bf16",
        dataloader_pin_memory=False,
    )


def _saved_bytes(model: PreTrainedModel, batch: Mapping[str, Any], arm: str) -> int:
    """Measure the first training examples, in the order of the data, as one step."""
    precision: AbstractContextManager[Any] = nullcontext()
    if arm == "bf16":
        precision = torch.autocast("cpu", torch.bfloat16)
    model.train()
    with precision:
        return saved_bytes(model, lambda: model(**batch).loss)


def _metrics_function(data: TaskData) -> Callable[[EvalPrediction], dict[str, float]]:
    def compute(output: EvalPrediction) -> dict[str, float]:
        logits = np.asarray(output.predictions)
        predictions = logits if data.regression else np.argmax(logits, axis=-1)
        return metrics.compute(data.metric_names, predictions, np.asarray(output.label_ids))

    return compute


def _final_evaluation(trainer: Trainer) -> Mapping[str, Any]:
    """Give the evaluation after the last step, which the schedule may have made already."""
    for entry in reversed(trainer.state.log_history):
        if "eval_loss" in entry and entry["step"] == trainer.state.global_step:
            return entry
    return trainer.evaluate()


def _curve(trainer: Trainer, key: str) -> list[tuple[int, float]]:
    return [(int(e["step"]), float(e[key])) for e in trainer.state.log_history if key in e]
