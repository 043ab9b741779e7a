"""How a linear layer is quantised: one frozen dataclass, and per-layer mappings of it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from fnmatch import fnmatchcase
from functools import lru_cache
from numbers import Integral, Real
from typing import Any

Split = tuple[float | None, int, int | None]  # threshold, outlier bits, outlier capacity

GRANULARITIES = ("row", "tensor")
SCALES = ("absmax", "pow2")
ROUNDINGS = ("nearest", "stochastic")
MIN_OUTLIER_BITS, MAX_OUTLIER_BITS = 8, 15


# Typed, since 12.0 must not pass for 12. On the path of every call, with what torch parsed.
@lru_cache(maxsize=1024, typed=True)
def check_options(
    who: str,
    threshold: float | None = None,
    outlier_bits: int = 12,
    granularity: str = "row",
    scale: str = "absmax",
    rounding: str = "nearest",
) -> None:
    """Raise ValueError, in the name of `who`, for an option outside its range."""
    if threshold is not None and not isinstance(threshold, Real):
        raise TypeError(f"{who}: threshold must be None or a number; got {threshold!r}")
    if not isinstance(outlier_bits, Integral):
        raise TypeError(f"{who}: outlier_bits must be an int; got {outlier_bits!r}")
    if threshold is not None and not (threshold >= 0 and math.isfinite(threshold)):
        raise ValueError(f"{who}: threshold must be None or finite and >= 0; got {threshold}")
    if not MIN_OUTLIER_BITS <= outlier_bits <= MAX_OUTLIER_BITS:
        raise ValueError(
            f"{who}: outlier_bits must be {MIN_OUTLIER_BITS}..{MAX_OUTLIER_BITS}; "
            f"got {outlier_bits}"
        )
    for name, value, allowed in (
        ("granularity", granularity, GRANULARITIES),
        ("scale", scale, SCALES),
        ("rounding of gradients", rounding, ROUNDINGS),
    ):
        if value not in allowed:
            raise ValueError(f"{who}: {name} must be one of {allowed}; got {value!r}")


@dataclass(frozen=True)
class Int8TileConfig:
    """Options of one linear layer.

    Args:
        threshold: gamma, in the units of the activations: an input feature whose absmax over the
            call's tokens exceeds it is an outlier column, held in two int8 limbs. None or 0 turns
            the split off.
        outlier_bits: significant bits of an outlier value, 8..15.
        outlier_capacity: the most outlier columns of a call. None: a sixteenth of the input
            features, rounded up to 32, lowered where int32 sums could overflow. More columns
            than that stay INT8 (largest first into the limbs) and are counted as overflow.
        granularity: "row" (a scale per token and per output channel) or "tensor".
        scale: "absmax", or "pow2" (dynamic fixed point: rounded up to a power of two).
        grad_rounding: rounding of the output gradient, "nearest" or "stochastic".
        forward: int8 for y = x @ w.T; False computes it in the input's dtype.
        grad_input: the same for grad_x = g @ w.
        grad_weight: the same for grad_w = g.T @ x.
        outlier_gain: multiply each outlier column of the weight by the largest power of two that
            keeps it within the absmax of its rows, and divide the input's column by it, as far as
            that stays above the threshold. The product is the same; where a large input feature
            meets small weights, these keep more of their bits.
        grad_split: hold the largest tokens of the output gradient, 4 in each 96, in two int8
            limbs of 15 bits for grad_weight, whose scales otherwise span all tokens of a call. For
            losses that few tokens decide, such as question answering. Twice as many tokens share
            4 and so on where int32 sums could overflow, from about 20,000 tokens of a call; above
            131,072 there are none.
        min_tokens: a call with fewer rows than this (the product of the input's leading
            dimensions) runs `torch.nn.functional.linear`, forward and backward, with nothing in
            int8. 0: never. For generation and single-row evaluation while the weight is trained,
            where quantising it in each call costs more than int8 saves; `plan(...).verdict` says
            from how many tokens on int8 pays.

    Raises:
        TypeError: an option is of another type.
        ValueError: an option is outside its range.

    Source: the split is that of arXiv 2312.09211; row scales, the shared least significant bit
    and the choice under a capacity are this library's own.
    """

    threshold: float | None = 5.0
    outlier_bits: int = 12
    outlier_capacity: int | None = None
    granularity: str = "row"
    scale: str = "absmax"
    grad_rounding: str = "nearest"
    forward: bool = True
    grad_input: bool = True
    grad_weight: bool = True
    min_tokens: int = 0
    outlier_gain: bool = False
    grad_split: bool = True

    def __post_init__(self) -> None:
        who = "int8tile.Int8TileConfig"
        check_options.__wrapped__(  # any value at all may come here, unhashable ones too
            who,
            self.threshold,
            self.outlier_bits,
            self.granularity,
            self.scale,
            self.grad_rounding,
        )
        if not isinstance(self.outlier_capacity, (Integral, type(None))):
            raise TypeError(
                f"{who}: outlier_capacity must be None or an int; got {self.outlier_capacity!r}"
            )
        if self.outlier_capacity is not None and self.outlier_capacity < 0:
            raise ValueError(
                f"{who}: outlier_capacity must be None or >= 0; got {self.outlier_capacity}"
            )
        for name in ("forward", "grad_input", "grad_weight", "outlier_gain", "grad_split"):
            if not isinstance(getattr(self, name), bool):
                raise TypeError(f"{who}: {name} must be a bool; got {getattr(self, name)!r}")
        if not isinstance(self.min_tokens, Integral):
            raise TypeError(f"{who}: min_tokens must be an int; got {self.min_tokens!r}")
        if self.min_tokens < 0:
            raise ValueError(f"{who}: min_tokens must be >= 0; got {self.min_tokens}")

    @classmethod
    def paper(cls, **overrides: Any) -> Int8TileConfig:  # noqa: ANN401 - any field of the class
        """The preset closest to arXiv 2312.09211: one power-of-two scale per tensor, INT12
        outliers above 5, stochastically rounded gradients without outlier treatment.

        Args:
            **overrides: fields to set differently.
        """
        preset: dict[str, Any] = {
            "granularity": "tensor",
            "scale": "pow2",
            "grad_rounding": "stochastic",
            "grad_split": False,
        }
        return cls(**{**preset, **overrides})

    def code(self) -> str:
        """The Python that makes this config, such as "Int8TileConfig(threshold=6.0)"."""
        given = [f for f in fields(self) if getattr(self, f.name) != f.default]
        options = [f"{f.name}={getattr(self, f.name)!r}" for f in given]
        return f"Int8TileConfig({', '.join(options)})"

    @property
    def any_int8(self) -> bool:
        """Whether any of the three GEMMs runs in int8."""
        return self.forward or self.grad_input or self.grad_weight

    @property
    def split(self) -> Split:
        """How outliers are split, as the ops take it."""
        return self.threshold, self.outlier_bits, self.outlier_capacity

    @property
    def scales(self) -> tuple[str, str, str]:
        """Granularity, scale kind and rounding of gradients, as the ops take them."""
        return self.granularity, self.scale, self.grad_rounding

    @property
    def switches(self) -> tuple[bool, bool, bool]:
        """Int8 for forward, grad_input and grad_weight."""
        return self.forward, self.grad_input, self.grad_weight

    @property
    def extras(self) -> tuple[bool, bool]:
        """outlier_gain and grad_split, as the ops take them."""
        return self.outlier_gain, self.grad_split


ConfigMapping = Mapping[str, "Int8TileConfig | None"]


def matches(name: str, pattern: str) -> bool:
    """Whether a module name, or its part after any dot, matches a shell-style pattern."""
    return fnmatchcase(name, pattern) or fnmatchcase(name, f"*.{pattern}")


def config_for(name: str, config: Int8TileConfig | ConfigMapping) -> Int8TileConfig | None:
    """The config of the module `name`: the first pattern that matches, None for none."""
    if isinstance(config, Int8TileConfig):
        return config
    return next((c for pattern, c in config.items() if matches(name, pattern)), None)
