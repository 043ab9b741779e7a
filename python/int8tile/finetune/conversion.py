"""Which layers of a model an arm made int8, and which it did not and why, in a few lines."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from int8tile.nn import ConversionReport


@dataclass(frozen=True)
class Conversion:
    """A conversion, the layers of all blocks of the model under one name.

    Args:
        converted: Number of layers that are int8.
        skipped: Why not, by the name of each layer that is not, with * for the block's number.
    """

    converted: int
    skipped: Mapping[str, str]

    def __str__(self) -> str:
        kept = "".join(f"; {name} stays float: {why}" for name, why in self.skipped.items())
        return f"{self.converted or 'no'} layers in int8{kept}"

    def to_json(self) -> dict[str, Any]:
        """Give both as JSON values."""
        return asdict(self)


def summarize(report: ConversionReport) -> Conversion:
    """Put the layers of all blocks together.

    Args:
        report: What `convert_` returned.

    Returns:
        The same in short.
    """
    names = {name: re.sub(r"\b\d+\b", "*", name) for name in report.skipped}
    count = Counter(names.values())
    skipped = {}
    for name, short in names.items():
        times = f" ({count[short]} layers)" if count[short] > 1 else ""
        skipped[short] = f"{report.skipped[name]}{times}"
    return Conversion(len(report.converted), skipped)
