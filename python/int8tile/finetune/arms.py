"""What sets the arms of a comparison apart: the number format of the linear layers."""

from __future__ import annotations

from typing import Any

from torch import nn

from int8tile.config import Int8TileConfig
from int8tile.finetune.settings import Settings
from int8tile.nn import ConversionReport, convert_


def config(arm: str, settings: Settings) -> Int8TileConfig | None:
    """Give the int8 configuration of an arm.

    Args:
        arm: One of `settings.ARM_NAMES`.
        settings: Give the threshold and the bits of the arms that split.

    Returns:
        The configuration, or None for an arm in floating point.
    """
    split: dict[str, Any] = {
        "threshold": settings.threshold,
        "outlier_bits": settings.outlier_bits,
    }
    match arm:
        case "int8":
            return Int8TileConfig(threshold=None, grad_split=False)
        case "int8-split":
            return Int8TileConfig(**split)
        case "int8-gain":
            return Int8TileConfig(**split, outlier_gain=True)
        case "paper-int8":
            return Int8TileConfig.paper(threshold=None)
        case "paper-split":
            return Int8TileConfig.paper(**split)
    return None


def convert(arm: str, settings: Settings, model: nn.Module) -> ConversionReport | None:
    """Turn a model into an arm, in place.

    Args:
        arm: One of `settings.ARM_NAMES`.
        settings: Give the threshold and the bits of the arms that split.
        model: A float model.

    Returns:
        What was converted, or None for an arm in floating point.
    """
    chosen = config(arm, settings)
    if chosen is None:
        return None
    # Gains depend on the weight, so layers with them cannot share an input.
    return convert_(model, chosen, share_inputs=not chosen.outlier_gain)
