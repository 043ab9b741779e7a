"""What training needs to know of a task: its rows, its model, and its metrics."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import DataCollatorWithPadding, PreTrainedModel, PreTrainedTokenizerBase

from int8tile.finetune.settings import Settings

Row = dict[str, Any]
Rows = Sequence[Row]
Array = NDArray[np.generic]


class Task(ABC):
    """A task, read and tokenized for one model.

    Args:
        settings: The run's settings.
        source: Directory or hub id of the model.
        tokenizer: The model's tokenizer.
        metric_names: Names of the metrics, the headline first.
        train: Model inputs, not yet padded.
        evaluation: The same by the name of each evaluation set, the headline's first.
        facts: What metrics.json says of the data.
    """

    unit: ClassVar[str] = "examples"  # what a row is
    eval_batch_size = 64

    def __init__(
        self,
        settings: Settings,
        source: str,
        tokenizer: PreTrainedTokenizerBase,
        *,
        metric_names: Sequence[str],
        train: Rows,
        evaluation: Mapping[str, Rows],
        facts: Mapping[str, Any],
    ) -> None:
        self.settings = settings
        self.source = source
        self.tokenizer = tokenizer
        self.metric_names = metric_names
        self.train = train
        self.evaluation = evaluation
        self.facts = facts
        self._pad = DataCollatorWithPadding(tokenizer)

    @abstractmethod
    def load_model(self) -> PreTrainedModel:
        """Load the model with the task's head.

        Returns:
            A float32 model; what is new in it is the same for every arm.

        Raises:
            UsageError: It cannot be loaded, or does not fit the task.
        """

    @abstractmethod
    def score(self, evaluated: str, outputs: Any, labels: Any) -> dict[str, float]:  # noqa: ANN401
        """Compute the metrics of one evaluation set.

        Args:
            evaluated: Name of the set.
            outputs: What `reduce_outputs` gave, for all rows.
            labels: The labels of all rows.

        Returns:
            Each of `metric_names`.
        """

    def collate(self, rows: Rows) -> dict[str, Any]:
        """Pad rows to one batch.

        Args:
            rows: Some of `train` or of an evaluation set.

        Returns:
            The model's inputs.
        """
        return dict(self._pad(list(rows)))

    def reduce_outputs(self, outputs: Any, labels: torch.Tensor) -> Any:  # noqa: ANN401
        """Keep of a batch's outputs what the metrics need.

        Args:
            outputs: The model's outputs besides the loss.
            labels: The batch's labels.

        Returns:
            Tensors whose first dimension is that of the batch.
        """
        return outputs

    def notes(self) -> Sequence[str]:
        """Say what the user should know of the data before training."""
        return ()


def by_length(rows: Sequence[Row]) -> list[Row]:
    """Sort rows for evaluation, where their order does not matter.

    Args:
        rows: Model inputs.

    Returns:
        The same ones, by length: those that share a batch then need less padding.
    """
    return sorted(rows, key=lambda row: len(row["input_ids"]))
