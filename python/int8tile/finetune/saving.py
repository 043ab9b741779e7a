"""Saves checkpoints while a Trainer trains, and puts one back into a new Trainer."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import (
    PreTrainedModel,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
    set_seed,
)

from int8tile.finetune.checkpoints import Checkpoint, Record
from int8tile.finetune.lora import adapter_state, is_adapted, load_adapter_state
from int8tile.finetune.session import Session
from int8tile.finetune.settings import UsageError
from int8tile.finetune.timing import StepTimer
from int8tile.finetune.trainer import ArmTrainer


class Saving(TrainerCallback):
    """Asks the Trainer for a checkpoint every so often and after an interrupt, and completes it.

    Args:
        arm: Name of the arm.
        session: What all arms share.
        timer: Its times are saved too.
        start: The checkpoint that the arm goes on from.
    """

    def __init__(
        self,
        arm: str,
        session: Session,
        timer: StepTimer,
        start: Checkpoint | None,
    ) -> None:
        self.losses = list(start.record.losses) if start else []
        self.trainer: ArmTrainer | None = None
        self._arm = arm
        self._task = session.task
        self._processes = session.processes
        self._interruption = session.interruption
        self._checkpoints = session.checkpoints
        self._timer = timer
        self._start = start
        self._saved = start.record.step if start else 0

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: object,
    ) -> None:
        """Give each process random numbers of its own; a saved random state comes after this."""
        if self._processes.count > 1 or self._start:
            apart = 1_000_003 * self._processes.index + state.global_step
            set_seed((args.seed + apart) % 2**32)

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: object,
    ) -> None:
        """Note the loss of the step, and ask for a checkpoint."""
        assert self.trainer is not None
        loss, asked = self._processes.sum(
            [self.trainer.step_loss, float(self._interruption.asked_here)]
        )
        self.losses.append(loss / self._processes.count)
        every = self._task.settings.save_every
        if every and state.global_step % every == 0:
            control.should_save = True
        if asked:
            control.should_evaluate = False  # made up for when the run goes on
            _end(control)

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: object,
    ) -> None:
        """Ask for a checkpoint after an interrupted evaluation."""
        if self._interruption.asked:
            _end(control)

    def on_save(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: object,
    ) -> None:
        """Complete what the Trainer wrote, once every process has written its random state."""
        self._processes.wait()
        record = Record(
            step=state.global_step,
            processes=self._processes.count,
            losses=self.losses,
            seconds=self._timer.seconds,
            starts=self._timer.starts,
        )
        self._processes.from_first(lambda: self._complete(record))
        self._saved = record.step

    def save(self) -> None:
        """Save a checkpoint after training, unless there is one of the last step."""
        assert self.trainer is not None
        if self._saved != self.trainer.state.global_step:
            self.trainer.save_checkpoint()

    def _complete(self, record: Record) -> None:
        folder = self._checkpoints.partial / f"checkpoint-{record.step}"
        self._task.tokenizer.save_pretrained(folder)
        self._checkpoints.complete(self._arm, record)


def _end(control: TrainerControl) -> None:
    control.should_save = control.should_training_stop = True


def load_weights(model: PreTrainedModel, folder: Path) -> None:
    """Load a checkpoint's weights, and make sure that they are the model's.

    Args:
        model: The model, with a task's head; of an adapted one the checkpoint holds the adapter.
        folder: The checkpoint.

    Raises:
        UsageError: It is a checkpoint of another architecture.
    """
    saved: dict[str, torch.Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        saved |= load_file(file)
    adapted = is_adapted(model)
    own = adapter_state(model) if adapted else model.state_dict()
    loaded = {own[name].data_ptr() for name in saved if name in own}
    wrong = [name for name in saved if name not in own or own[name].shape != saved[name].shape]
    wrong += [name for name in own if name not in saved and own[name].data_ptr() not in loaded]
    if wrong:
        raise UsageError(
            f"int8tile finetune: --resume needs a checkpoint of {type(model).__name__} as "
            f"--model and --task make it; {folder} is one of another architecture: "
            f"{len(wrong)} weights differ, such as {wrong[0]}"
        )
    if adapted:
        load_adapter_state(model, saved)
    else:
        model.load_state_dict(saved, strict=False)  # of tied weights one is saved
