"""What a recording measures: the thresholds and bits it tries, and how often."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Integral, Real

from int8tile.config import MAX_OUTLIER_BITS, MIN_OUTLIER_BITS, Int8TileConfig

THRESHOLDS = (3.0, 4.0, 5.0, 6.0, 8.0, 12.0, 20.0, 40.0)
BITS = (8, 10, 12, 14, 15)


@dataclass(frozen=True)
class Options:
    """How `record` measures.

    Args:
        config: how every layer is quantised; None: a converted layer's own config, else the
            defaults. Its threshold (5.0 if it has none) is the gamma of the report.
        thresholds: further thresholds to compare the outputs at.
        bits: bits of an outlier value to compare the outputs at.
        every: quantise at every so many-th call of a layer; columns are counted in all calls.

    Raises:
        TypeError: a value is of another type.
        ValueError: a value is outside its range.
    """

    config: Int8TileConfig | None = None
    thresholds: tuple[float, ...] = THRESHOLDS
    bits: tuple[int, ...] = BITS
    every: int = 1

    def __post_init__(self) -> None:
        who = "int8tile.analysis.record"
        if not isinstance(self.config, (Int8TileConfig, type(None))):
            raise TypeError(
                f"{who}: config must be an Int8TileConfig; got {type(self.config).__name__}"
            )
        for value in self.thresholds:
            if not isinstance(value, Real) or not 0 < value < math.inf:
                raise ValueError(f"{who}: thresholds must be above 0 and finite; got {value!r}")
        for bits in self.bits:
            if not isinstance(bits, Integral) or not MIN_OUTLIER_BITS <= bits <= MAX_OUTLIER_BITS:
                raise ValueError(
                    f"{who}: bits must be {MIN_OUTLIER_BITS}..{MAX_OUTLIER_BITS}; got {bits!r}"
                )
        if not isinstance(self.every, Integral) or self.every < 1:
            raise ValueError(f"{who}: every must be an int of at least 1; got {self.every!r}")
