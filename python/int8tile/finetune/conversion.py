"""Which layers of a model an arm made int8, and which it did not and why, in a few lines."""

from __future__ import annotations

import re
from collections import defaultdict
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
        names = defaultdict(list)
        for name, why in self.skipped.items():
            names[why].append(name)
        count = f"{self.converted or 'no'} layer{'s' * (self.converted != 1)} in int8"
        return "; ".join([count, *(f"{', '.join(n)} in float: {why}" for why, n in names.items())])

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
    skipped = {re.sub(r"\b\d+\b", "*", name): why for name, why in report.skipped.items()}
    return Conversion(len(report.converted), skipped)
