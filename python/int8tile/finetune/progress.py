"""Shows a Trainer's progress: a bar on a terminal, a line per evaluation elsewhere."""

from __future__ import annotations

from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments


class ProgressBars:
    """The bars of all arms, a context manager.

    Args:
        console: Where to show them.
        metric_name: The evaluation metric to show.
    """

    def __init__(self, console: Console, metric_name: str) -> None:
        self.console = console
        self.metric_name = metric_name
        self.bars = Progress(
            SpinnerColumn(finished_text="[green]✓"),
            TextColumn("[bold]{task.description:<11}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[status]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            refresh_per_second=4,
            disable=not console.is_terminal,
        )

    def __enter__(self) -> ProgressBars:
        self.bars.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.bars.stop()

    def callback(self, arm: str) -> TrainerCallback:
        """Give the callback that drives one arm's bar.

        Args:
            arm: Name of the arm.

        Returns:
            A callback for that arm's Trainer.
        """
        return _ArmProgress(self, arm)


class _ArmProgress(TrainerCallback):
    def __init__(self, shown: ProgressBars, arm: str) -> None:
        self._shown = shown
        self._arm = arm
        self._bar = shown.bars.add_task(arm, total=None, status="loading")
        self._loss = self._metric = ""

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: object,
    ) -> None:
        self._shown.bars.update(self._bar, total=state.max_steps, status="")

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: object,
    ) -> None:
        self._shown.bars.update(self._bar, completed=state.global_step)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: object,
    ) -> None:
        if logs and "loss" in logs:
            self._loss = f"loss {float(logs['loss']):.3f} "
            self._shown.bars.update(self._bar, status=self._loss + self._metric)

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float] | None = None,
        **kwargs: object,
    ) -> None:
        name = self._shown.metric_name
        value = (metrics or {}).get(f"eval_{name}")
        if value is None:  # another set, or interrupted
            return
        self._metric = f"{name} {value:.3f}"
        self._shown.bars.update(self._bar, status=self._loss + self._metric)
        if not self._shown.console.is_terminal:
            step = f"step {state.global_step}/{state.max_steps}"
            self._shown.console.print(f"{self._arm}: {step} {self._loss}{self._metric}")
