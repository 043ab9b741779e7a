"""Labelled text: what every task hands to training."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Example:
    """One labelled text, or pair of texts.

    Args:
        text: The text, or the first one of a pair.
        text_pair: The second text of a pair, else None.
        label: Class index, or a float for a regression.
    """

    text: str
    text_pair: str | None
    label: int | float


@dataclass(frozen=True)
class TaskData:
    """The examples of one task.

    Args:
        train: Training examples.
        evaluation: Named evaluation sets; the first one gives the headline metric.
        labels: Class names in index order; empty for a regression.
        metric_names: Names of the task's metrics, the headline first.
        skipped_rows: Rows that were left out because a field was missing.
    """

    train: Sequence[Example]
    evaluation: Mapping[str, Sequence[Example]]
    labels: Sequence[str]
    metric_names: Sequence[str]
    skipped_rows: int = 0

    @property
    def regression(self) -> bool:
        """Whether the label is a number to predict instead of a class."""
        return not self.labels

    def limited(self, max_train: int | None) -> TaskData:
        """Keep at most `max_train` training examples.

        The choice is random but fixed, so that it does not depend on the run's seed.

        Args:
            max_train: The most examples to keep; None keeps all.

        Returns:
            The same data with fewer training examples.
        """
        if max_train is None or max_train >= len(self.train):
            return self
        kept = sorted(random.Random(0).sample(range(len(self.train)), max_train))
        return replace(self, train=[self.train[i] for i in kept])
