"""What the split does to a distribution: mixture variance, chi-square divergence, HCR bound."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

Array = npt.NDArray[np.float64]


@dataclass
class Moments:
    """Count, mean and variance of all values added.

    Source: the pairwise update of Chan, Golub and LeVeque (1983), which does not cancel.
    """

    count: int = 0
    mean: float = 0.0
    deviations: float = 0.0  # sum of squared deviations from the mean

    def add(self, values: torch.Tensor) -> None:
        """Add all values of a tensor."""
        if values.numel():
            v = values.double()
            mean = v.mean()
            self.merge(Moments(v.numel(), float(mean), float((v - mean).square().sum())))

    def merge(self, other: Moments) -> None:
        """Add what another one has seen."""
        count = self.count + other.count
        if other.count == 0:
            return
        apart = other.mean - self.mean
        self.deviations += other.deviations + apart**2 * self.count * other.count / count
        self.mean += apart * other.count / count
        self.count = count

    @property
    def variance(self) -> float:
        """The mean squared deviation from the mean; 0 without values."""
        return self.deviations / self.count if self.count else 0.0


@dataclass(frozen=True)
class MixtureVariance:
    """Both sides of the mixture-variance inequality.

    Args:
        within: the weighted average of the parts' variances, sum_i p_i var_i.
        total: the variance of all values together.
        outlier_share: p of the outlier part, a share of the values.
    """

    within: float
    total: float
    outlier_share: float


def mixture_variance(regular: Moments, outlier: Moments) -> MixtureVariance:
    """The variances of regular and outlier values apart, and together.

        sum_i p_i var_i  <=  var = sum_i p_i var_i + sum_i p_i (mean_i - mean)**2

    with p_i the share of the values in part i: what the split takes out of one common range.

    Args:
        regular: moments of the values in regular columns.
        outlier: moments of the values in outlier columns.

    Source: arXiv 2312.09211, inequality 11; the law of total variance.
    """
    together = Moments()
    together.merge(regular)
    together.merge(outlier)
    count = max(together.count, 1)
    within = (regular.deviations + outlier.deviations) / count
    return MixtureVariance(within, together.variance, outlier.count / count)


def _distribution(counts: npt.ArrayLike) -> Array:
    p = np.asarray(counts, np.float64)
    if p.ndim != 1 or not (p >= 0).all() or not 0 < p.sum() < np.inf:
        raise ValueError(
            "int8tile.analysis: a distribution must be a vector of weights >= 0 with a positive "
            f"sum; got {counts!r}"
        )
    shares: Array = p / p.sum()
    return shares


def chi_square_divergence(p: npt.ArrayLike, q: npt.ArrayLike) -> float:
    """The chi-square divergence of q from p over the same bins.

        chi2(q || p) = sum_b (q_b - p_b)**2 / p_b     (inf where q_b > 0 = p_b)

    0 for equal distributions; the relative squared change of each bin's share, averaged over p.

    Args:
        p: [bins] weights of the original distribution; any positive sum.
        q: [bins] weights of the quantised distribution.

    Raises:
        ValueError: weights are negative, have no positive sum, or differ in number.

    Source: Pearson's divergence, as in Polyanskiy and Wu, "Information Theory", section 7.1.
    """
    p, q = _distribution(p), _distribution(q)
    if p.shape != q.shape:
        raise ValueError(
            f"int8tile.analysis.chi_square_divergence: q must have the {len(p)} bins of p; "
            f"got {len(q)}"
        )
    if np.any(q[p == 0] > 0):
        return float("inf")
    used = p > 0
    return float(np.sum((q[used] - p[used]) ** 2 / p[used]))


def hammersley_chapman_robbins(
    p: npt.ArrayLike, q: npt.ArrayLike, statistic: npt.ArrayLike
) -> float:
    """The Hammersley-Chapman-Robbins lower bound of a statistic's variance under p.

        var_p(T)  >=  (E_q T - E_p T)**2 / chi2(q || p)

    Read the other way round: the change from p to q moves the mean of T by at most
    sqrt(chi2 * var_p T). A bound near the variance says that the change moves T as much as any
    change of that size can.

    Args:
        p: [bins] weights of the original distribution.
        q: [bins] weights of the other distribution.
        statistic: [bins] value of T in each bin.

    Returns:
        The bound, in the unit of T squared; 0 where p and q are equal or infinitely apart.

    Source: Hammersley (1950); Chapman and Robbins, Annals of Mathematical Statistics 22 (1951).
    """
    divergence = chi_square_divergence(p, q)
    if divergence == 0 or divergence == np.inf:
        return 0.0
    shift = (_distribution(q) - _distribution(p)) @ np.asarray(statistic, np.float64)
    return float(shift**2 / divergence)


def variance_of(p: npt.ArrayLike, statistic: npt.ArrayLike) -> float:
    """var_p(T) = E_p (T - E_p T)**2.

    Args:
        p: [bins] weights of the distribution.
        statistic: [bins] value of T in each bin.
    """
    p, t = _distribution(p), np.asarray(statistic, np.float64)
    return float(p @ (t - p @ t) ** 2)
