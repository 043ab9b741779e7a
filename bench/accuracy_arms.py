"""The arms of bench_accuracy: number formats, each a function that turns a model into it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

import int8tile
from int8tile import Int8TileConfig
from int8tile.nn import ConversionReport

BASELINE = "fp32"
PAPER = {"granularity": "tensor", "scale": "pow2", "grad_rounding": "stochastic"}
# What an arm of int8 is unless it names something else; no default of the library's, so that a
# change of one makes other runs and never gives kept ones another meaning.
UNNAMED: dict[str, Any] = {
    "threshold": 5.0,
    "outlier_bits": 12,
    "outlier_capacity": None,
    "granularity": "row",
    "scale": "absmax",
    "grad_rounding": "nearest",
    "forward": True,
    "grad_input": True,
    "grad_weight": True,
    "min_tokens": 0,
    "outlier_gain": False,
    "grad_split": False,
}


def _float(model: nn.Module) -> ConversionReport | None:
    """Leave the model in float32."""
    return None


def _int8(model: nn.Module, **options: Any) -> ConversionReport:  # noqa: ANN401 - a config's fields
    config = Int8TileConfig(**(UNNAMED | options))
    return int8tile.convert_(model, config, share_inputs=not config.outlier_gain)


def _fp8(model: nn.Module) -> ConversionReport:
    from fp8 import convert_fp8_

    report: ConversionReport = convert_fp8_(model)
    return report


FORMATS: dict[str, Callable[..., ConversionReport | None]] = {
    "fp32": _float,
    "int8": _int8,
    "fp8": _fp8,
}


@dataclass(frozen=True)
class Arm:
    """A number format with its options; equal ones share their runs, whatever a table calls them.

    Args:
        format: A key of `FORMATS`.
        options: Name and value of each argument of its function.
    """

    format: str
    options: tuple[tuple[str, Any], ...] = ()

    def convert(self, model: nn.Module) -> ConversionReport | None:
        """Turn a model into this arm, in place; None where no layer is one of int8tile's.

        Raises:
            TypeError: a linear layer became something else, which stress would leave out.
        """
        before = _count_linears(model)
        report = FORMATS[self.format](model, **dict(self.options))
        if (after := _count_linears(model)) != before:
            raise TypeError(f"{self.format}: {before} nn.Linear must stay such; got {after}")
        return report


def _count_linears(model: nn.Module) -> int:
    return sum(isinstance(module, nn.Linear) for module in model.modules())


def int8(**options: Any) -> Arm:  # noqa: ANN401 - a config's fields
    """Make an arm of `Int8TileConfig`; what is `UNNAMED`, or has no effect, is left out."""
    if options.get("threshold", UNNAMED["threshold"]) is None:
        options.pop("outlier_bits", None)
    named = {n: v for n, v in options.items() if n not in UNNAMED or v != UNNAMED[n]}
    return Arm("int8", tuple(sorted(named.items())))


ARMS = {
    "fp32": Arm("fp32"),
    "paper-int8": int8(threshold=None, **PAPER),
    "paper-split": int8(**PAPER),
    "int8": int8(threshold=None),
    "int8-split": int8(grad_split=True),  # the library's default
    "columns": int8(),
    "columns-gain": int8(outlier_gain=True),
    "fp8": Arm("fp8"),
}


def chosen(*names: str) -> dict[str, Arm]:
    """Give some of `ARMS` by name."""
    return {name: ARMS[name] for name in names}


def grid_name(gamma: float | None, bits: int) -> str:
    """Name an arm of the threshold table."""
    return "no split" if gamma is None else f"gamma {gamma:g} {bits} bits"


def threshold_grid(gammas: tuple[float | None, ...], bits: tuple[int, ...]) -> dict[str, Arm]:
    """Make an arm for each gamma and number of bits; None is a gamma of infinity."""
    grid = {
        grid_name(gamma, each): int8(threshold=gamma, outlier_bits=each)
        for gamma in gammas
        for each in bits
    }
    return chosen(BASELINE) | grid


def product_grid() -> dict[str, Arm]:
    """Make arms without `grad_split`: each product in float, stochastic gradients; and one with."""
    products = ("forward", "grad_input", "grad_weight")
    arms = {f"{product} in float": int8(**{product: False}) for product in products}
    arms["stochastic gradients"] = int8(grad_rounding="stochastic")
    return chosen(BASELINE, "columns") | arms | chosen("int8-split")


def scale_grid(bits: tuple[int, ...]) -> dict[str, Arm]:
    """Make an arm for each granularity, kind of scale and rounding, and for outlier bits."""
    arms = {
        f"{granularity} {scale} {rounding}": int8(
            granularity=granularity, scale=scale, grad_rounding=rounding
        )
        for granularity in ("row", "tensor")
        for scale in ("absmax", "pow2")
        for rounding in ("nearest", "stochastic")
    }
    arms |= {f"row {each} bits": int8(outlier_bits=each) for each in bits}
    arms |= {f"paper {each} bits": int8(outlier_bits=each, **PAPER) for each in bits}
    return chosen(BASELINE) | arms
