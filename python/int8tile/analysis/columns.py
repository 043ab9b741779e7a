"""Which columns exceed a threshold: how many, how steadily, and by how much."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class OutlierColumn:
    """A column that was an outlier in at least one call.

    Args:
        index: input feature.
        absmax: its largest |x| over all calls.
        share: the share of the calls in which it was an outlier.
    """

    index: int
    absmax: float
    share: float


class OutlierColumns:
    """Columns above one threshold, counted over calls.

    Args:
        features: k.
        threshold: gamma; a column is an outlier of a call where its absmax exceeds it.
        capacity: the most columns that the split holds.
    """

    def __init__(self, features: int, threshold: float, capacity: int) -> None:
        self.threshold = threshold
        self.capacity = capacity
        self.calls = 0
        self.hits = torch.zeros(features, dtype=torch.int64)
        self.most = 0
        self.overflow_calls = 0
        self.overflow_columns = 0
        self.largest_ratio: float | None = None
        self._ratios = 0.0
        self._ratio_calls = 0

    def add(self, absmax: torch.Tensor) -> int:
        """Add a call's absmax of each column, [k] float32 on the CPU; give the number above."""
        above = absmax > self.threshold
        count = int(above.sum())
        self.calls += 1
        self.hits += above
        self.most = max(self.most, count)
        self.overflow_calls += count > self.capacity
        self.overflow_columns += max(0, count - self.capacity)
        if 0 < count < len(absmax):
            regular = float(absmax[~above].max())
            if regular > 0:
                ratio = float(absmax.max()) / regular
                self._ratios += ratio
                self._ratio_calls += 1
                self.largest_ratio = max(ratio, self.largest_ratio or 0.0)
        return count

    @property
    def mean(self) -> float:
        """Outlier columns of a call, on average."""
        return int(self.hits.sum()) / max(self.calls, 1)

    @property
    def mean_ratio(self) -> float | None:
        """Largest outlier over largest regular value, averaged over the calls that had both."""
        return self._ratios / self._ratio_calls if self._ratio_calls else None

    @property
    def stability(self) -> float | None:
        """Mean share of the calls in which a column that ever was an outlier is one.

        1: the same columns in each call. None: there was no outlier.
        """
        ever = int((self.hits > 0).sum())
        return self.mean / ever if ever else None

    def columns(self, absmax: torch.Tensor) -> list[OutlierColumn]:
        """The columns that ever were outliers, the most frequent and largest first.

        Args:
            absmax: [k] over all calls.
        """
        found = [
            OutlierColumn(j, float(absmax[j]), int(self.hits[j]) / self.calls)
            for j in self.hits.nonzero().flatten().tolist()
        ]
        return sorted(found, key=lambda each: (-each.share, -each.absmax, each.index))
