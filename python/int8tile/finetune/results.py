"""What a run measures, per arm and as a whole."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from int8tile.analysis.results import finite

if TYPE_CHECKING:
    from int8tile.finetune.conversion import Conversion
    from int8tile.finetune.outliers import Outliers

Curve = Sequence[tuple[int, float]]  # (optimizer step, value)


@dataclass(frozen=True)
class ArmResult:
    """One arm's evaluation after training, its speed and its memory.

    Args:
        metric: The task's headline metric.
        metrics: All metrics by name, the headline first.
        loss: Mean evaluation loss.
        train_seconds: Wall time of all training steps, without evaluation.
        examples_per_second: Training examples (windows of SQuAD, blocks of text) per second,
            without evaluation and without the first steps (`timing.WARMUP_STEPS`).
        saved_bytes: Bytes saved for backward in one step (`memory.saved_bytes`).
        train_curve: Training loss, each the mean since the point before.
        eval_curve: The headline metric during training.
        conversion: Which layers are int8; None for an arm in floating point.
        outliers: The outlier columns found after training; None without a split.
    """

    metric: float
    metrics: Mapping[str, float]
    loss: float
    train_seconds: float
    examples_per_second: float
    saved_bytes: int
    train_curve: Curve
    eval_curve: Curve
    conversion: Conversion | None = None
    outliers: Outliers | None = None

    def to_json(self) -> dict[str, Any]:
        """Give all but the curves as JSON values."""
        names = ("metric", "metrics", "loss", "train_seconds", "examples_per_second", "saved_bytes")
        values = {name: getattr(self, name) for name in names}
        for name, part in (("conversion", self.conversion), ("outliers", self.outliers)):
            values[name] = part.to_json() if part else None
        return values


@dataclass(frozen=True)
class RunResult:
    """All arms of one run.

    Args:
        arms: Result of each arm, in the order run.
        metric_name: Name of the headline metric.
        unit: What a training example is.
        environment: Versions, processor, and the data's sizes.
        arguments: The settings.
    """

    arms: Mapping[str, ArmResult]
    metric_name: str
    unit: str
    environment: Mapping[str, Any]
    arguments: Mapping[str, Any]

    def to_json(self) -> dict[str, Any]:
        """Give the content of metrics.json.

        Returns:
            JSON values only; a number that is not finite is None.
        """
        arms = {arm: result.to_json() for arm, result in self.arms.items()}
        content = {"arms": arms, "environment": self.environment, "arguments": self.arguments}
        return {name: finite(part) for name, part in content.items()}
