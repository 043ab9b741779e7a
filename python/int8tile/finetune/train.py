"""Fine-tunes and evaluates one arm with the Hugging Face Trainer."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, cast

import numpy as np
import torch
from torch.utils.data import Dataset
from transformers import (
    EvalPrediction,
    PreTrainedModel,
    TrainerCallback,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer import TRAINER_STATE_NAME

from int8tile.finetune import arms, fsdp, lora, outliers
from int8tile.finetune.checkpoints import Checkpoint
from int8tile.finetune.conversion import summarize
from int8tile.finetune.interruption import InterruptedRun
from int8tile.finetune.memory import saved_bytes, skips_parameters
from int8tile.finetune.processes import on_cuda
from int8tile.finetune.results import ArmResult
from int8tile.finetune.saving import Saving, load_weights
from int8tile.finetune.session import Session
from int8tile.finetune.settings import Settings
from int8tile.finetune.stress import Stress
from int8tile.finetune.tasks import Task
from int8tile.finetune.timing import StepTimer
from int8tile.finetune.trainer import ArmTrainer
from int8tile.nn import ConversionReport, revert_

EVALUATIONS = 5  # points of the evaluation curve
MIN_EVAL_STEPS = 5  # a shorter run is evaluated at its end only
LOSS_POINTS = 25  # points of the training curve

Convert = Callable[[PreTrainedModel], ConversionReport | None]


def train_arm(
    arm: str,
    session: Session,
    start: Checkpoint | None = None,
    callbacks: Sequence[TrainerCallback] = (),
    convert: Convert | None = None,
) -> tuple[ArmResult, PreTrainedModel]:
    """Fine-tune a fresh copy of the model in one arm and evaluate it.

    Args:
        arm: One of `settings.ARM_NAMES`, or any name with `convert`.
        session: What all arms share.
        start: The checkpoint to go on from.
        callbacks: More callbacks for the Trainer.
        convert: Turns the model into an arm of the caller's own, in place.

    Returns:
        What was measured, and the trained model without Int8Linear layers, its adapters beside
        the ordinary ones.

    Raises:
        InterruptedRun: The run was interrupted; a checkpoint was saved.
        UsageError: The checkpoint is of another architecture.
    """
    task = session.task
    settings = task.settings
    model, report, stress = _make(arm, task, convert)
    share = settings.batch_size // session.processes.count
    batch = task.collate(task.train[:share])
    kept = _saved_bytes(model, batch, arm)
    if start is not None:
        load_weights(model, start.folder)
    timer = StepTimer(*((start.record.seconds, start.record.starts) if start else ()))
    saving = Saving(arm, session, timer, start)
    args = _arguments(session, arm, start)
    if settings.fsdp:
        fsdp.shard(model, session.processes)
    elif session.processes.count > 1:
        args.ddp_find_unused_parameters = skips_parameters(model, lambda: model(**batch).loss)
    trainer = _trainer(model, session, args, [saving, timer, *callbacks])
    saving.trainer = trainer
    with session.interruption.waits():
        _train(trainer, start)
        evaluated = None if session.interruption.asked else _evaluate(trainer, task)
        if session.interruption.asked:
            saving.save()
            raise InterruptedRun
    assert evaluated is not None
    loss, values = evaluated
    if settings.fsdp:
        state = fsdp.full_state(model)
        model, report, stress = _make(arm, task, convert)
        model.load_state_dict(state)
    rows = outliers.spread(task.train, share)
    found = session.processes.from_first(
        lambda: outliers.count(model, [_moved(task.collate(each), model) for each in rows])
    )
    if stress is not None:
        stress.remove()
    revert_(model)
    headline = task.metric_names[0]
    result = ArmResult(
        metric=values[headline],
        metrics=values,
        loss=loss,
        train_seconds=sum(timer.seconds),
        examples_per_second=timer.examples_per_second(len(task.train), settings.batch_size),
        saved_bytes=kept,
        train_curve=_loss_curve(saving.losses, int(trainer.args.logging_steps)),
        eval_curve=_curve(trainer, f"eval_{headline}"),
        conversion=None if report is None else summarize(report),
        outliers=found,
    )
    return result, model


def _make(
    arm: str, task: Task, convert: Convert | None
) -> tuple[PreTrainedModel, ConversionReport | None, Stress | None]:
    """Load the model and make it that of an arm."""
    settings = task.settings
    model = task.load_model()
    report = convert(model) if convert else arms.convert(arm, settings, model)
    if settings.lora_rank is not None:
        model = lora.adapt(model, settings)
    # Last, since peft copies a head that it trains.
    stress = Stress(model, settings.stress) if settings.stress != 1 else None
    return model, report, stress


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
    session: Session,
    args: TrainingArguments,
    callbacks: Sequence[TrainerCallback],
) -> ArmTrainer:
    task = session.task
    headline = next(iter(task.evaluation))
    return ArmTrainer(
        model,
        task,
        session.processes,
        session.interruption,
        args=args,
        eval_dataset=task.evaluation[headline],
        compute_metrics=_metrics_function(task, headline),
        callbacks=[*callbacks],
    )


def _train(trainer: ArmTrainer, start: Checkpoint | None) -> None:
    """Train the steps that are left."""
    if start is None:
        trainer.train()
    elif start.record.step < trainer.args.max_steps:
        trainer.train(resume_from_checkpoint=str(start.folder))
    else:  # the Trainer would train one step more
        trainer.state = TrainerState.load_from_json(str(start.folder / TRAINER_STATE_NAME))


def _arguments(session: Session, arm: str, start: Checkpoint | None) -> TrainingArguments:
    task = session.task
    settings = task.settings
    steps = total_steps(settings, len(task.train))
    eval_steps = max(MIN_EVAL_STEPS, math.ceil(steps / EVALUATIONS))
    return TrainingArguments(
        output_dir=str(session.checkpoints.partial),
        max_steps=steps,
        per_device_train_batch_size=settings.batch_size,  # of all processes, see ArmTrainer
        per_device_eval_batch_size=task.eval_batch_size,
        learning_rate=settings.lr,
        warmup_steps=0.1,  # a share of the steps
        weight_decay=0.01,
        seed=settings.seed,
        data_seed=settings.seed,
        eval_strategy="steps",
        eval_steps=eval_steps,
        eval_on_start=start is not None and _owes_evaluation(start, eval_steps),
        logging_steps=math.ceil(steps / LOSS_POINTS),
        logging_nan_inf_filter=False,
        save_strategy="no",  # `Saving` asks for checkpoints
        report_to="none",
        disable_tqdm=True,
        use_cpu=not on_cuda(),
        ddp_backend="gloo" if session.processes.count > 1 and not on_cuda() else None,
        bf16=arm == "bf16",
        dataloader_pin_memory=False,
    )


def _owes_evaluation(start: Checkpoint, eval_steps: int) -> bool:
    """Tell whether the run was interrupted before it evaluated a checkpoint's model."""
    step = start.record.step
    state = TrainerState.load_from_json(str(start.folder / TRAINER_STATE_NAME))
    return step % eval_steps == 0 and not any(_is_evaluation(e, step) for e in state.log_history)


def _is_evaluation(entry: Mapping[str, Any], step: int) -> bool:
    return "eval_loss" in entry and entry["step"] == step


def _saved_bytes(model: PreTrainedModel, batch: Mapping[str, Any], arm: str) -> int:
    """Measure the first training examples, in the order of the data, as one step."""
    precision: AbstractContextManager[Any] = nullcontext()
    if arm == "bf16":
        precision = torch.autocast("cpu", torch.bfloat16)
    model.train()
    with precision:
        return saved_bytes(model, lambda: model(**batch).loss)


def _moved(batch: Mapping[str, Any], model: PreTrainedModel) -> dict[str, Any]:
    """Move a batch to the device that the Trainer has moved the model to."""
    return {name: value.to(model.device) for name, value in batch.items()}


def _metrics_function(task: Task, evaluated: str) -> Callable[[EvalPrediction], dict[str, float]]:
    def compute(output: EvalPrediction) -> dict[str, float]:
        return task.score(evaluated, output.predictions, output.label_ids)

    return compute


def _evaluate(trainer: ArmTrainer, task: Task) -> tuple[float, dict[str, float]] | None:
    """Give the loss of the first evaluation set, and the metrics of all; None if interrupted."""
    final = _final_evaluation(trainer)
    if "eval_loss" not in final:
        return None
    values = {name: float(final[f"eval_{name}"]) for name in task.metric_names}
    for other in list(task.evaluation)[1:]:
        rows = cast("Dataset[Any]", task.evaluation[other])  # a list is one
        trainer.compute_metrics = _metrics_function(task, other)
        more = trainer.evaluate(rows, metric_key_prefix=other)
        if f"{other}_loss" not in more:
            return None
        values |= {f"{name}_{other}": float(more[f"{other}_{name}"]) for name in task.metric_names}
    return float(final["eval_loss"]), values


def _final_evaluation(trainer: ArmTrainer) -> Mapping[str, Any]:
    """Give the evaluation after the last step, which the schedule may have made already."""
    for entry in reversed(trainer.state.log_history):
        if _is_evaluation(entry, trainer.state.global_step):
            return entry
    return trainer.evaluate()


def _loss_curve(losses: Sequence[float], every: int) -> list[tuple[int, float]]:
    """Average the losses of the steps over the same stretches however the run was cut."""
    stops = range(every, len(losses) + 1, every)
    return [(stop, float(np.mean(losses[stop - every : stop]))) for stop in stops]


def _curve(trainer: ArmTrainer, key: str) -> list[tuple[int, float]]:
    return [(int(e["step"]), float(e[key])) for e in trainer.state.log_history if key in e]
