"""MiniLM, fine-tuned for some steps in float32, and batches of real text to look at it with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import typer
from torch import nn

from int8tile.finetune.settings import Settings, UsageError
from int8tile.finetune.stress import Stress

BATCH = 32
LEARNING_RATE = 2e-4
Batch = dict[str, Any]


class TextModel:
    """A model with the head of a task, and the task's tokenized rows.

    Args:
        task: "docstrings", or a task of GLUE.
        data: Folder of its files; None for docstrings.
        steps: Training steps in float32.
        batch: Examples of a step.
    """

    def __init__(self, task: str, data: Path | None, steps: int, batch: int = BATCH) -> None:
        from int8tile.finetune.tasks import prepare

        try:
            self._task = prepare(Settings(task=task, data=data, max_train=(steps + 1) * batch))
            self.model: nn.Module = self._task.load_model()
        except UsageError as error:
            raise typer.BadParameter(str(error), param_hint="--data") from None
        self.evaluation = next(iter(self._task.evaluation.values()))
        self._train(steps, batch)
        self.batch = self.collate(self._task.train[-batch:])

    def collate(self, rows: Any, length: int | None = None) -> Batch:  # noqa: ANN401
        """Pad rows of the task to one batch, `length` tokens long or as long as the longest."""
        if length is None:
            return self._task.collate(rows)
        pad = self._task.tokenizer.pad
        return dict(pad(rows, padding="max_length", max_length=length, return_tensors="pt"))

    def _train(self, steps: int, batch: int) -> None:
        torch.manual_seed(0)
        optimizer = torch.optim.AdamW(self.model.parameters(), lr=LEARNING_RATE)
        self.model.train()
        for step in range(steps):
            rows = self._task.train[step * batch : (step + 1) * batch]
            self.model(**self.collate(rows)).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        self.model.eval()

    def stress(self, factor: float) -> Stress:
        """Inject outlier features (see `int8tile.finetune.stress`); undone by its `remove`."""
        return Stress(self.model, factor)


def gradients(model: nn.Module, batch: Batch) -> torch.Tensor:
    """Give all gradients of a batch in one vector."""
    model.zero_grad(set_to_none=True)
    model(**batch).loss.backward()
    grads = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
    model.zero_grad(set_to_none=True)
    return torch.cat(grads)
