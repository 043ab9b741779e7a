"""What a run measures, per arm and as a whole."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Curve = Sequence[tuple[int, float]]  # (optimizer step, value)


@dataclass(frozen=True)
class ArmResult:
    """One arm's evaluation after training, its speed and its memory.

    Args:
        metric: The task's headline metric.
        metrics: All metrics by name, the headline first.
        loss: Mean evaluation loss.
        train_seconds: Wall time of all training steps, without evaluation.
        examples_per_second: Training examples per second, without evaluation and without the
            first steps (`timing.WARMUP_STEPS`).
        saved_bytes: Bytes saved for backward in one step (`memory.saved_bytes`).
        train_curve: Training loss, each the mean since the point before.
        eval_curve: The headline metric during training.
    """

    metric: float
    metrics: Mapping[str, float]
    loss: float
    train_seconds: float
    examples_per_second: float
    saved_bytes: int
    train_curve: Curve
    eval_curve: Curve


@dataclass(frozen=True)
class RunResult:
    """All arms of one run.

    Args:
        arms: Result of each arm, in the order run.
        metric_name: Name of the headline metric.
        environment: Versions, processor, and the data's sizes.
        arguments: The settings.
    """

    arms: Mapping[str, ArmResult]
    metric_name: str
    environment: Mapping[str, Any]
    arguments: Mapping[str, Any]

    def to_json(self) -> dict[str, Any]:
        """Give the content of metrics.json.

        Returns:
            JSON values only; a number that is not finite is None.
        """
        names = ("metric", "metrics", "loss", "train_seconds", "examples_per_second", "saved_bytes")
        arms = {arm: {n: getattr(result, n) for n in names} for arm, result in self.arms.items()}
        content = {"arms": arms, "environment": self.environment, "arguments": self.arguments}
        return {name: _finite(part) for name, part in content.items()}


def _finite(value: object) -> object:
    """Replace every number that JSON cannot hold by None."""
    if isinstance(value, Mapping):
        return {name: _finite(each) for name, each in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
