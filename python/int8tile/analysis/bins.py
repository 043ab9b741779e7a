"""Counts in bins that do not move: the histogram of magnitudes, and bins of equal mass."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from int8tile.analysis.divergence import (
    chi_square_divergence,
    hammersley_chapman_robbins,
    variance_of,
)

_DROPPED_BITS = 21  # of float32, which leaves the exponent and two bits: four bins an octave
_BINS = 2**31 >> _DROPPED_BITS
_FIRST_NONFINITE = 0x7F800000 >> _DROPPED_BITS
EQUAL_BINS = 64
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


class Distortion:
    """How quantisation changes the distribution of x, in bins that hold equal shares of x.

    The bins come from the first call, so that the original fills each of them and the divergence
    is finite. Each call gives at most `SAMPLE` values, drawn with a generator of its own.
    """

    def __init__(self, names: tuple[str, ...]) -> None:
        self._edges: torch.Tensor | None = None  # [bins - 1], the lower edge of all but the first
        self._generator = torch.Generator().manual_seed(0)
        self._counts = {name: torch.zeros(EQUAL_BINS, dtype=torch.int64) for name in names}
        self._original = torch.zeros(EQUAL_BINS, dtype=torch.int64)
        self._magnitudes = torch.zeros(EQUAL_BINS, dtype=torch.float64)

    def add(self, exact: torch.Tensor, quantised: dict[str, torch.Tensor]) -> None:
        """Add a call: x, and under each name what became of it."""
        positions = torch.arange(exact.numel())
        if exact.numel() > SAMPLE:
            positions = torch.randint(exact.numel(), (SAMPLE,), generator=self._generator)
        positions = positions.to(exact.device)
        x = exact.flatten()[positions].float()
        if self._edges is None:
            ranks = torch.arange(1, EQUAL_BINS, device=x.device) * len(x) // EQUAL_BINS
            ordered = x.sort().values
            edges = torch.unique(ordered[ranks])
            self._edges = edges[edges > ordered[0]]  # or nothing would lie below the first
        where = self._bin(x)
        self._original += torch.bincount(where, minlength=EQUAL_BINS).cpu()
        self._magnitudes += torch.bincount(where, x.abs().double(), EQUAL_BINS).cpu()
        for name, values in quantised.items():
            here = self._bin(values.flatten()[positions].float())
            self._counts[name] += torch.bincount(here, minlength=EQUAL_BINS).cpu()

    def _bin(self, values: torch.Tensor) -> torch.Tensor:
        assert self._edges is not None
        return torch.bucketize(values, self._edges, right=True)

    def measures(self, name: str) -> tuple[float, float, float] | None:
        """Chi-square divergence, HCR bound, and the variance it bounds; None before any call.

        The statistic of the bound is |x|, averaged over x in each bin.
        """
        if self._edges is None:
            return None
        p, q = self._original.numpy(), self._counts[name].numpy()
        statistic = self._magnitudes.numpy() / np.maximum(p, 1)
        return (
            chi_square_divergence(p, q),
            hammersley_chapman_robbins(p, q, statistic),
            variance_of(p, statistic),
        )
