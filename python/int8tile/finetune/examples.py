"""Labelled text: what every task hands to training."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")


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


def limited(items: Sequence[T], most: int | None) -> Sequence[T]:
    """Keep at most `most` items, in their order.

    The choice is random but fixed, so that it does not depend on the run's seed.

    Args:
        items: Anything.
        most: The most to keep; None keeps all.

    Returns:
        The items kept.
    """
    if most is None or most >= len(items):
        return items
    return [items[i] for i in sorted(random.Random(0).sample(range(len(items)), most))]
