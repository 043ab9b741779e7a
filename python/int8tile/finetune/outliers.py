"""Counts the outlier columns that a model's int8 layers find, and those beyond their capacity."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from int8tile.finetune.lora import plain_name
from int8tile.nn import Int8Linear
from int8tile.ops.checks import resolve_capacity

BATCHES = 4  # looked at, spread over the training data


@dataclass
class LayerOutliers:
    """The outlier columns of one layer, summed over its calls.

    Args:
        capacity: Columns that it can split in a call.
        calls: Calls counted.
        found: Columns above the threshold.
        overflow: Those beyond the capacity, which stayed int8 at the price of a larger step.
    """

    capacity: int
    calls: int = 0
    found: int = 0
    overflow: int = 0


@dataclass(frozen=True)
class Outliers:
    """The outlier columns of a model.

    Args:
        layers: Those of each layer.
    """

    layers: Mapping[str, LayerOutliers]

    @property
    def found(self) -> float:
        """Outlier columns that a call of a layer finds, on average."""
        return self._mean("found")

    @property
    def overflow(self) -> float:
        """Outlier columns beyond the capacity that a call of a layer finds, on average."""
        return self._mean("overflow")

    def to_json(self) -> dict[str, Any]:
        """Give the means, and the sums of each layer, as JSON values."""
        layers = {name: asdict(layer) for name, layer in self.layers.items()}
        return {"found": self.found, "overflow": self.overflow, "layers": layers}

    def _mean(self, name: str) -> float:
        calls = sum(layer.calls for layer in self.layers.values())
        total = sum(int(getattr(layer, name)) for layer in self.layers.values())
        return total / max(calls, 1)


def count(model: PreTrainedModel, batches: Sequence[Mapping[str, Any]]) -> Outliers | None:
    """Run batches through a model and count, in a pass of its own that costs training nothing.

    Args:
        model: Converted; put in evaluation mode.
        batches: Model inputs.

    Returns:
        The counts of the layers that were called; None where no layer splits outliers.
    """
    layers: dict[str, LayerOutliers] = {}
    hooks = []
    for name, module in model.named_modules():
        if isinstance(module, Int8Linear) and module.config.threshold and module.config.forward:
            layer = layers[name] = LayerOutliers(_capacity(module))
            hooks.append(module.register_forward_pre_hook(_counter(layer)))
    if not layers:
        return None
    model.eval()
    try:
        with torch.no_grad():
            for batch in batches:
                model(**batch)
    finally:
        for hook in hooks:
            hook.remove()
    return Outliers({plain_name(name): layer for name, layer in layers.items() if layer.calls})


def spread(rows: Sequence[Any], batch_size: int) -> list[Sequence[Any]]:
    """Choose the batches to count in, as large as those of training.

    Args:
        rows: Model inputs.
        batch_size: Rows of a batch.

    Returns:
        `BATCHES` batches or fewer, evenly spread.
    """
    starts = range(0, len(rows), batch_size)
    step = max(1, len(starts) // BATCHES)
    return [rows[start : start + batch_size] for start in starts[::step][:BATCHES]]


def _counter(layer: LayerOutliers) -> Callable[[nn.Module, tuple[torch.Tensor, ...]], None]:
    def hook(module: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        assert isinstance(module, Int8Linear)
        found, overflow = _look(module, args[0])
        layer.calls += 1
        layer.found += found
        layer.overflow += overflow

    return hook


def _capacity(module: Int8Linear) -> int:
    return resolve_capacity("int8tile::linear", module.in_features, *module.config.split)


def _look(module: Int8Linear, x: torch.Tensor) -> tuple[int, int]:
    """Give the columns above the threshold, and those beyond the capacity."""
    config = module.config
    granularity, scale, _ = config.scales
    rows = x.reshape(-1, module.in_features)
    nothing = module.weight[:0]  # the input is quantised, and nothing multiplied
    *_, counts = torch.ops.int8tile.linear_forward(
        rows, nothing, None, *config.split, granularity, scale
    )
    kept, overflow = counts.tolist()
    return kept + overflow, overflow
