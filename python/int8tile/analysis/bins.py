"""Counts in bins that do not move: the histogram of magnitudes, and bins by rank."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from int8tile.analysis.divergence import (
    chi_square_divergence,
    hammersley_chapman_robbins,
    tukey_sensitivity,
    variance_of,
)

_DROPPED_BITS = 21  # of float32, which leaves the exponent and two bits: four bins an octave
_BINS = 2**31 >> _DROPPED_BITS
_FIRST_NONFINITE = 0x7F800000 >> _DROPPED_BITS
EQUAL_BINS = 64
TAIL_STEP = 4  # the outermost bins are cut again and again so that a fourth lies further out,
TAIL_LEAST = 4  # while so many values do
SAMPLE = 1 << 16  # values of a call that are compared, at most

Counts = npt.NDArray[np.int64]


class MagnitudeHistogram:
    """Counts of |x| in four bins an octave, over all of float32's range, exact for any number."""

    def __init__(self) -> None:
        self.counts = torch.zeros(_FIRST_NONFINITE, dtype=torch.int64)

    def add(self, values: torch.Tensor) -> None:
        """Add all finite values of a tensor."""
        bits = values.float().abs().contiguous().view(torch.int32).flatten() >> _DROPPED_BITS
        self.counts += torch.bincount(bits, minlength=_BINS)[:_FIRST_NONFINITE].cpu()

    def bars(self) -> tuple[npt.NDArray[np.float32], Counts]:
        """Edges [bars + 1] and counts [bars] of the bins from the first used one to the last.

        Zeros and subnormal values are left out.
        """
        counts = self.counts.numpy().copy()
        counts[:4] = 0
        used = np.flatnonzero(counts)
        first, last = (int(used[0]), int(used[-1])) if len(used) else (4, 3)
        edges = np.arange(first, last + 2, dtype=np.uint32) << np.uint32(_DROPPED_BITS)
        return edges.view(np.float32), counts[first : last + 1]


@dataclass(frozen=True)
class Change:
    """What became of a distribution, seen in bins; the statistic T is |x|.

    Args:
        chi_square: chi-square divergence from the original; 0: none.
        hcr_bound: the least variance of T that lets its mean move as far as it did.
        variance: of T.
        leverage: how far the mean of T moved, in the unit of x.
        sensitivity: the square of the leverage over the variance; at most chi_square.
    """

    chi_square: float
    hcr_bound: float
    variance: float
    leverage: float
    sensitivity: float


def _ranks(count: int) -> torch.Tensor:
    """Ranks of the lower edges of all bins but the first."""
    ranks = {i * count // EQUAL_BINS for i in range(1, EQUAL_BINS)}
    share = count // EQUAL_BINS // TAIL_STEP
    while share >= TAIL_LEAST:
        ranks |= {share, count - share}
        share //= TAIL_STEP
    return torch.tensor(sorted(ranks))


class Distortion:
    """How quantisation changes the distribution of x, in bins that hold equal shares of x.

    Towards both ends the shares get smaller, so that outliers are not all in one bin. The bins
    come from the first call, so that the original fills each of them and the divergence is finite.
    What moves within a bin is not seen. Each call gives at most `SAMPLE` values, drawn with a
    generator of its own.
    """

    def __init__(self, names: tuple[str, ...]) -> None:
        self._edges: torch.Tensor | None = None  # [bins - 1], the lower edge of all but the first
        self._generator = torch.Generator().manual_seed(0)
        self._counts = {name: torch.zeros(0, dtype=torch.int64) for name in names}
        self._original = torch.zeros(0, dtype=torch.int64)
        self._magnitudes = torch.zeros(0, dtype=torch.float64)

    def add(self, exact: torch.Tensor, quantised: dict[str, torch.Tensor]) -> None:
        """Add a call: x, and under each name what became of it."""
        positions = torch.arange(exact.numel())
        if exact.numel() > SAMPLE:
            positions = torch.randint(exact.numel(), (SAMPLE,), generator=self._generator)
        positions = positions.to(exact.device)
        x = exact.flatten()[positions].float()
        if self._edges is None:
            ordered = x.sort().values
            edges = torch.unique(ordered[_ranks(len(x)).to(x.device)])
            self._edges = edges[edges > ordered[0]]  # or nothing would lie below the first
            bins = len(self._edges) + 1
            self._counts = {n: torch.zeros(bins, dtype=torch.int64) for n in self._counts}
            self._original = torch.zeros(bins, dtype=torch.int64)
            self._magnitudes = torch.zeros(bins, dtype=torch.float64)
        where, bins = self._bin(x), len(self._original)
        self._original += torch.bincount(where, minlength=bins).cpu()
        self._magnitudes += torch.bincount(where, x.abs().double(), bins).cpu()
        for name, values in quantised.items():
            here = self._bin(values.flatten()[positions].float())
            self._counts[name] += torch.bincount(here, minlength=bins).cpu()

    def _bin(self, values: torch.Tensor) -> torch.Tensor:
        assert self._edges is not None
        return torch.bucketize(values, self._edges, right=True)

    def measures(self, name: str) -> Change | None:
        """The change under a name, by |x| averaged over x in each bin; None before any call."""
        if self._edges is None:
            return None
        p, q = self._original.numpy(), self._counts[name].numpy()
        statistic = self._magnitudes.numpy() / np.maximum(p, 1)
        return Change(
            chi_square_divergence(p, q),
            hammersley_chapman_robbins(p, q, statistic),
            variance_of(p, statistic),
            *tukey_sensitivity(p, q, statistic),
        )
