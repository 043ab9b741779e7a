"""Counts in bins that do not move: the histogram of magnitudes, and bins by rank."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from int8tile.analysis.divergence import (
    Moments,
    chi_square_divergence,
    hammersley_chapman_robbins,
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
    """What became of a distribution; the statistic T is |x|.

    Args:
        chi_square: chi-square divergence of the counts in bins; 0: none.
        hcr_bound: the least variance of T, averaged in each bin, that lets its mean move as far as
            the counts say; see `hammersley_chapman_robbins`.
        binned_variance: the variance that this bounds.
        leverage: how far the mean of T moved, of the values themselves, in the unit of x.
        sensitivity: leverage**2 / var T; both after Tukey, "Which part of the sample contains the
            information?", PNAS 53 (1965).
    """

    chi_square: float
    hcr_bound: float
    binned_variance: float
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
    """How quantisation changes the distribution of x, under several names.

    Counts are in bins that hold equal shares of x, and smaller ones towards both ends, so that
    outliers are not all in one. No bin is narrower than a given step: into one that is narrower
    than the quantiser's, values come by rounding alone. The bins come from the first call whose
    values differ, so that the original fills each of them and the divergence is finite; a call
    without two values is left out until then. What moves within a bin is not seen. Each call gives
    at most `SAMPLE` values to the bins, drawn with a generator of its own.
    """

    def __init__(self, names: tuple[str, ...]) -> None:
        self._edges: torch.Tensor | None = None  # [bins - 1], the lower edge of all but the first
        self._generator = torch.Generator().manual_seed(0)
        self._counts = {name: torch.zeros(0, dtype=torch.int64) for name in names}
        self._original = torch.zeros(0, dtype=torch.int64)
        self._magnitudes = torch.zeros(0, dtype=torch.float64)
        self._moments = Moments()
        self._quantised = {name: Moments() for name in names}

    def add(self, exact: torch.Tensor, quantised: dict[str, torch.Tensor], step: float) -> None:
        """Add a call.

        Args:
            exact: x.
            quantised: under each name what became of it.
            step: the distance of neighbouring integers of the finest one, in the unit of x.
        """
        self._moments.add(exact.abs())
        for name, values in quantised.items():
            self._quantised[name].add(values.abs())
        positions = torch.arange(exact.numel())
        if exact.numel() > SAMPLE:
            positions = torch.randint(exact.numel(), (SAMPLE,), generator=self._generator)
        positions = positions.to(exact.device)
        x = exact.flatten()[positions].float()
        if self._edges is None and not self._start(x, step):
            return
        where, bins = self._bin(x), len(self._original)
        self._original += torch.bincount(where, minlength=bins).cpu()
        self._magnitudes += torch.bincount(where, x.abs().double(), bins).cpu()
        for name, values in quantised.items():
            here = self._bin(values.flatten()[positions].float())
            self._counts[name] += torch.bincount(here, minlength=bins).cpu()

    def _start(self, x: torch.Tensor, step: float) -> bool:
        """Choose the bins; whether x gives any."""
        ordered = x.sort().values
        edges: list[float] = []
        last = float(ordered[0])
        for edge in ordered[_ranks(len(x)).to(x.device)].tolist():
            if edge > last and edge - last >= step:
                edges.append(edge)
                last = edge
        if not edges:
            return False
        self._edges = x.new_tensor(edges)
        bins = len(edges) + 1
        self._counts = {n: torch.zeros(bins, dtype=torch.int64) for n in self._counts}
        self._original = torch.zeros(bins, dtype=torch.int64)
        self._magnitudes = torch.zeros(bins, dtype=torch.float64)
        return True

    def _bin(self, values: torch.Tensor) -> torch.Tensor:
        assert self._edges is not None
        return torch.bucketize(values, self._edges, right=True)

    def measures(self, name: str) -> Change | None:
        """The change under a name; None before any call that fills two bins."""
        if self._edges is None:
            return None
        p, q = self._original.numpy(), self._counts[name].numpy()
        statistic = self._magnitudes.numpy() / np.maximum(p, 1)
        leverage = self._quantised[name].mean - self._moments.mean
        return Change(
            chi_square_divergence(p, q),
            hammersley_chapman_robbins(p, q, statistic),
            variance_of(p, statistic),
            leverage,
            leverage**2 / self._moments.variance if self._moments.variance else 0.0,
        )
