"""Metrics of classification and regression, among them all of GLUE's, in numpy."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from int8tile.finetune.settings import UsageError

Array = NDArray[Any]


def compute(names: Sequence[str], predictions: ArrayLike, labels: ArrayLike) -> dict[str, float]:
    """Compute metrics of predicted against true labels.

    A metric whose formula divides by zero (one class only, constant predictions) is 0.

    Args:
        names: Names of the metrics: keys of `METRICS`.
        predictions: [n] class indices, or predicted numbers for a regression.
        labels: [n] the same, true.

    Returns:
        Each metric's value, in the order of `names`.
    """
    got = np.asarray(predictions, dtype=np.float64).reshape(-1)
    true = np.asarray(labels, dtype=np.float64).reshape(-1)
    return {name: METRICS[name](got, true) for name in names}


def check(names: Sequence[str], classes: int) -> None:
    """Raise unless metrics fit the labels.

    Args:
        names: Names of the metrics: keys of `METRICS`.
        classes: Number of classes; 0 for a regression.

    Raises:
        UsageError: One needs a regression, classes, or two classes.
    """
    if classes == 0:
        kind, fit = "a regression", set(REGRESSION_METRICS)
    else:
        kind, fit = f"{classes} classes", METRICS.keys() - set(REGRESSION_METRICS)
        if classes != 2:
            fit -= set(BINARY_METRICS)
    if not set(names) <= fit:
        raise UsageError(
            f"int8tile finetune: --metrics must be of {','.join(n for n in METRICS if n in fit)} "
            f"for {kind}; got {','.join(names)}"
        )


def accuracy(predictions: Array, labels: Array) -> float:
    """Give the share of right predictions."""
    return float(np.mean(predictions == labels))


def f1(predictions: Array, labels: Array) -> float:
    """Give the harmonic mean of precision and recall of class 1."""
    hits = np.sum((predictions == 1) & (labels == 1))
    return _ratio(2 * hits, np.sum(predictions == 1) + np.sum(labels == 1))


def macro_f1(predictions: Array, labels: Array) -> float:
    """Give the mean over all classes, predicted or true, of each one's F1."""
    classes = np.union1d(predictions, labels)
    return float(np.mean([f1(predictions == c, labels == c) for c in classes]))


def matthews(predictions: Array, labels: Array) -> float:
    """Give the correlation coefficient of two binary labels (Matthews)."""
    return pearson(predictions, labels)


def pearson(predictions: Array, labels: Array) -> float:
    """Give the linear correlation."""
    x, y = predictions - predictions.mean(), labels - labels.mean()
    return _ratio(float(x @ y), float(np.sqrt(x @ x) * np.sqrt(y @ y)))


def spearman(predictions: Array, labels: Array) -> float:
    """Give the linear correlation of the ranks, equal values sharing their mean rank."""
    return pearson(_ranks(predictions), _ranks(labels))


REGRESSION_METRICS = ("pearson", "spearman")
BINARY_METRICS = ("f1", "matthews")  # class 1 against class 0
METRICS: Mapping[str, Callable[[Array, Array], float]] = {
    "accuracy": accuracy,
    "f1": f1,
    "macro_f1": macro_f1,
    "matthews": matthews,
    "pearson": pearson,
    "spearman": spearman,
}


def _ranks(values: Array) -> Array:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    mean_rank = np.cumsum(counts) - (counts - 1) / 2
    return np.asarray(mean_rank[inverse], dtype=np.float64)


def _ratio(numerator: float, denominator: float) -> float:
    return float(numerator / denominator) if denominator else 0.0
