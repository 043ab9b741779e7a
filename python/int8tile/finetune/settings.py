"""What one fine-tuning run is asked to do, checked before any work."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

TASK_NAMES = (
    "docstrings",
    *("sst2", "mrpc", "rte", "cola", "qnli", "qqp", "mnli", "stsb", "wnli"),
)
ARM_NAMES = ("fp32", "bf16", "int8", "int8-split", "paper-int8", "paper-split")
DEFAULT_ARMS = ("fp32", "int8", "int8-split")
OUTLIER_BITS = range(8, 16)


class UsageError(ValueError):
    """A request that cannot be met: the message says what is required and what came."""


@dataclass(frozen=True)
class Settings:
    """The settings of `int8tile finetune`.

    Args:
        model: Hub id or directory of a transformers model; None takes the packaged MiniLM.
        task: One of `TASK_NAMES`.
        data: Folder of GLUE .tsv files; None reads GLUE from the Hugging Face hub.
        arms: What to compare, in order: some of `ARM_NAMES`.
        threshold: Activations above it are outliers, in real units (int8-split, paper-split).
        outlier_bits: Significant bits of an outlier, 8..15.
        stress: Factor K of the injected outliers (see `stress.Stress`); 1 injects none.
        max_steps: The most optimizer steps; None runs all epochs.
        max_train: The most training examples; None uses all.
        epochs: Passes over the training examples.
        batch_size: Examples per optimizer step.
        lr: Peak learning rate, reached after a tenth of the steps, then falling to 0.
        seed: Seed of the new classifier, the order of the data and dropout.
        max_length: Tokens of one example at most; the rest is cut off.
        threads: CPU threads; None keeps torch's choice.
        output: Folder for metrics.json, curves.png and the last arm's model.

    Raises:
        UsageError: A value is out of its range.
    """

    model: str | None = None
    task: str = "docstrings"
    data: Path | None = None
    arms: tuple[str, ...] = DEFAULT_ARMS
    threshold: float = 5.0
    outlier_bits: int = 12
    stress: float = 1.0
    max_steps: int | None = None
    max_train: int | None = None
    epochs: float = 2.0
    batch_size: int = 32
    lr: float = 5e-4
    seed: int = 0
    max_length: int = 128
    threads: int | None = None
    output: Path = Path("int8tile-output")

    def __post_init__(self) -> None:
        """Check every value."""
        _require(self.task in TASK_NAMES, "task", f"one of {', '.join(TASK_NAMES)}", self.task)
        known = set(self.arms) <= set(ARM_NAMES)
        distinct = len(set(self.arms)) == len(self.arms)
        arms = f"one or more different ones of {','.join(ARM_NAMES)}"
        _require(bool(self.arms) and known and distinct, "arms", arms, ",".join(self.arms))
        for name in ("threshold", "stress", "epochs", "lr"):
            value = getattr(self, name)
            _require(math.isfinite(value) and value > 0, name, "above 0 and finite", value)
        for name in ("max_steps", "max_train", "batch_size", "threads"):
            value = getattr(self, name)
            _require(value is None or value >= 1, name, "at least 1", value)
        _require(self.max_length >= 3, "max-length", "at least 3 tokens", self.max_length)
        _require(0 <= self.seed < 2**32, "seed", "0..4294967295", self.seed)
        _require(self.outlier_bits in OUTLIER_BITS, "outlier-bits", "8..15", self.outlier_bits)
        if self.task == "docstrings":
            _require(self.data is None, "data", "left out with the docstrings task", self.data)

    def arguments(self) -> dict[str, Any]:
        """Give all settings as JSON values.

        Returns:
            Name of each setting -> its value.
        """
        values = asdict(self)
        return {name: str(v) if isinstance(v, Path) else v for name, v in values.items()}


def _require(holds: bool, name: str, wanted: str, got: object) -> None:
    """Raise unless a condition on one setting holds."""
    if not holds:
        option = name.replace("_", "-")
        raise UsageError(f"int8tile finetune: --{option} must be {wanted}; got {got}")
