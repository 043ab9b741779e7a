"""Fine-tunes and evaluates one arm with the Hugging Face Trainer."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, cast

import torch
from torch.utils.data import Dataset
from transformers import (
    EvalPrediction,
    PreTrainedModel,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)
from transformers.trainer_callback import PrinterCallback

from int8tile.finetune import arms, outliers
from int8tile.finetune.conversion import summarize
from int8tile.finetune.memory import saved_bytes
from int8tile.finetune.results import ArmResult
from int8tile.finetune.settings import Settings
from int8tile.finetune.stress import Stress
from int8tile.finetune.tasks import Task
from int8tile.finetune.timing import StepTimer
from int8tile.nn import convert_, revert_

EVALUATIONS = 5  # points of the evaluation curve
MIN_EVAL_STEPS = 5  # a shorter run is evaluated at its end only
LOSS_POINTS = 25  # points of the training curve


def train_arm(
    arm: str, task: Task, scratch: str, callbacks: Sequence[TrainerCallback] = ()
) -> tuple[ArmResult, PreTrainedModel]:
    """Fine-tune a fresh copy of the model in one arm and evaluate it.

    Args:
        arm: One of `settings.ARM_NAMES`.
        task: The data, the model and the metrics, which all arms share.
        scratch: A folder that the Trainer may call its own; nothing is written to it.
        callbacks: More callbacks for the Trainer.

    Returns:
        What was measured, and the trained model with ordinary linear layers.
    """
    settings = task.settings
    model = task.load_model()
    config = arms.config(arm, settings)
    conversion = None
    if config is not None:
        conversion = summarize(convert_(model, config, share_inputs=True))
    stress = Stress(model, settings.stress) if settings.stress != 1 else None
    kept = _saved_bytes(model, task.collate(task.train[: settings.batch_size]), arm)
    timer = StepTimer()
    trainer = _trainer(model, task, arm, scratch, [timer, *callbacks])
    trainer.train()
    loss, values = _evaluate(trainer, task)
    rows = outliers.spread(task.train, settings.batch_size)
    found = outliers.count(model, list(map(task.collate, rows)))
    if stress is not None:
        stress.remove()
    if config is not None:
        revert_(model)
    headline = task.metric_names[0]
    result = ArmResult(
        metric=values[headline],
        metrics=values,
        loss=loss,
        train_seconds=sum(timer.seconds),
        examples_per_second=timer.examples_per_second(len(task.train), settings.batch_size),
        saved_bytes=kept,
        train_curve=_curve(trainer, "loss"),
        eval_curve=_curve(trainer, f"eval_{headline}"),
        conversion=conversion,
        outliers=found,
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


def _trainer(
    model: PreTrainedModel,
    task: Task,
    arm: str,
    scratch: str,
    callbacks: Sequence[TrainerCallback],
) -> Trainer:
    headline = next(iter(task.evaluation))
    trainer = Trainer(
        model=model,
        args=_arguments(task, arm, scratch),
        data_collator=task.collate,
        train_dataset=task.train,
        eval_dataset=task.evaluation[headline],
        compute_metrics=_metrics_function(task, headline),
        preprocess_logits_for_metrics=task.reduce_outputs,
        callbacks=[*callbacks],
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def _arguments(task: Task, arm: str, scratch: str) -> TrainingArguments:
    settings = task.settings
    steps = total_steps(settings, len(task.train))
    return TrainingArguments(
        output_dir=scratch,
        max_steps=steps,
        per_device_train_batch_size=settings.batch_size,
        per_device_eval_batch_size=task.eval_batch_size,
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


def _metrics_function(task: Task, evaluated: str) -> Callable[[EvalPrediction], dict[str, float]]:
    def compute(output: EvalPrediction) -> dict[str, float]:
        return task.score(evaluated, output.predictions, output.label_ids)

    return compute


def _evaluate(trainer: Trainer, task: Task) -> tuple[float, dict[str, float]]:
    """Give the loss of the first evaluation set, and the metrics of all."""
    final = _final_evaluation(trainer)
    values = {name: float(final[f"eval_{name}"]) for name in task.metric_names}
    for other in list(task.evaluation)[1:]:
        rows = cast("Dataset[Any]", task.evaluation[other])  # a list is one
        trainer.compute_metrics = _metrics_function(task, other)
        more = trainer.evaluate(rows, metric_key_prefix=other)
        values |= {f"{name}_{other}": float(more[f"{other}_{name}"]) for name in task.metric_names}
    return float(final["eval_loss"]), values


def _final_evaluation(trainer: Trainer) -> Mapping[str, Any]:
    """Give the evaluation after the last step, which the schedule may have made already."""
    for entry in reversed(trainer.state.log_history):
        if "eval_loss" in entry and entry["step"] == trainer.state.global_step:
            return entry
    return trainer.evaluate()


def _curve(trainer: Trainer, key: str) -> list[tuple[int, float]]:
    return [(int(e["step"]), float(e[key])) for e in trainer.state.log_history if key in e]
