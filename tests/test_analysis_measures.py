"""Measures of the analysis against numpy, scipy and values worked out by hand."""

import math

import numpy as np
import pytest
import torch

from int8tile.analysis import (
    Cosine,
    Moments,
    SignalToNoise,
    chi_square_divergence,
    hammersley_chapman_robbins,
    measures,
    mixture_variance,
)
from int8tile.analysis.bins import EQUAL_BINS, SAMPLE, Distortion, MagnitudeHistogram
from int8tile.analysis.columns import OutlierColumns
from int8tile.analysis.divergence import variance_of
from int8tile.analysis.measures import cosine_in_db


def batches(rng, count=3, shape=(20, 7)):
    return [rng.normal(size=shape).astype(np.float32) for _ in range(count)]


def moments(values):
    found = Moments()
    found.add(torch.as_tensor(values))
    return found


# Signal-to-noise ratio and cosine.


@pytest.mark.parametrize("chunk", [7, 2**18])
def test_snr_is_that_of_all_batches_together(rng, monkeypatch, chunk):
    monkeypatch.setattr(measures, "CHUNK", chunk)
    exact, noise = batches(rng), batches(rng)
    snr = SignalToNoise()
    for x, e in zip(exact, noise, strict=True):
        snr.add(torch.from_numpy(x), torch.from_numpy(x + e / 100))
    x = np.concatenate(exact).astype(np.float64)
    approximate = np.concatenate([a + e / 100 for a, e in zip(exact, noise, strict=True)])
    expected = 10 * np.log10((x**2).sum() / ((approximate - x) ** 2).sum())
    assert snr.db == pytest.approx(expected, rel=1e-12)


def test_snr_by_hand():
    snr = SignalToNoise()
    snr.add(torch.tensor([10.0, 0.0]), torch.tensor([9.0, 0.0]))
    assert snr.db == pytest.approx(20)


def test_snr_without_noise_or_signal():
    snr = SignalToNoise()
    assert snr.db is None
    snr.add(torch.zeros(3), torch.zeros(3))
    assert snr.db is None
    snr.add(torch.ones(3), torch.ones(3))
    assert snr.db == math.inf


def test_squares_of_tiny_gradients_do_not_vanish():
    snr, cosine = SignalToNoise(), Cosine()
    tiny = torch.tensor([1e-30, 2e-30])
    snr.add(tiny, tiny * 0.9)
    cosine.add(tiny, tiny * 2)
    assert snr.db == pytest.approx(20, abs=1e-4)
    assert cosine.value == pytest.approx(1)


@pytest.mark.parametrize("chunk", [7, 2**18])
def test_cosine_is_that_of_all_batches_together(rng, monkeypatch, chunk):
    monkeypatch.setattr(measures, "CHUNK", chunk)
    a, b = batches(rng), batches(rng)
    cosine = Cosine()
    for x, y in zip(a, b, strict=True):
        cosine.add(torch.from_numpy(x), torch.from_numpy(np.asfortranarray(y)))
    x, y = (np.concatenate(each).astype(np.float64).ravel() for each in (a, b))
    expected = x @ y / np.linalg.norm(x) / np.linalg.norm(y)
    assert cosine.value == pytest.approx(expected, rel=1e-12)
    assert Cosine().value is None


def test_cosine_in_db_is_the_snr_of_noise_at_right_angles():
    signal, noise = torch.tensor([10.0, 0.0]), torch.tensor([0.0, 1.0])
    cosine = Cosine()
    cosine.add(signal, signal + noise)
    assert cosine_in_db(cosine.value) == pytest.approx(20)
    assert cosine_in_db(1.0) == math.inf
    assert cosine_in_db(0.0) == cosine_in_db(-0.5) == -math.inf


# Variance.


def test_moments_are_those_of_numpy_even_far_from_zero(rng):
    values = [1e6 + each.astype(np.float64) for each in batches(rng)]
    found = Moments()
    for each in values:
        found.add(torch.from_numpy(each))
    together = np.concatenate(values)
    assert found.count == together.size
    assert found.mean == pytest.approx(together.mean(), rel=1e-14)
    assert found.variance == pytest.approx(together.var(), rel=1e-8)


def test_mixture_variance_by_hand():
    # Parts: {-1, 1} with variance 1; {9, 11} with variance 1. All: mean 5, variance 26.
    found = mixture_variance(moments([-1.0, 1.0]), moments([9.0, 11.0]))
    assert (found.within, found.total, found.outlier_share) == (1, 26, 0.5)


def test_mixture_variance_weighs_by_number(rng):
    regular, outlier = rng.normal(size=90), 4 + 30 * rng.normal(size=10)
    found = mixture_variance(moments(regular), moments(outlier))
    together = np.concatenate([regular, outlier])
    assert found.within == pytest.approx(0.9 * regular.var() + 0.1 * outlier.var())
    assert found.total == pytest.approx(together.var())
    assert found.outlier_share == pytest.approx(0.1)
    assert found.within <= found.total


def test_mixture_variance_without_outliers_is_the_variance(rng):
    found = mixture_variance(moments(rng.normal(size=50)), Moments())
    assert found.within == found.total
    assert found.outlier_share == 0
    assert mixture_variance(Moments(), Moments()).total == 0


# Chi-square divergence and the Hammersley-Chapman-Robbins bound.


def test_chi_square_by_hand():
    # (1/2 - 1/4)^2 / (1/4) + (1/2 - 3/4)^2 / (3/4) = 1/4 + 1/12
    assert chi_square_divergence([1, 3], [5, 5]) == pytest.approx(1 / 3)
    assert chi_square_divergence([2, 6], [1, 3]) == 0
    assert chi_square_divergence([1, 0, 3], [1, 0, 3]) == 0
    assert chi_square_divergence([1, 0], [1, 1]) == math.inf


def test_chi_square_is_pearsons_statistic_by_its_number(rng):
    stats = pytest.importorskip("scipy.stats")
    p = rng.uniform(0.5, 1, 12)
    q = rng.integers(1, 50, 12)
    statistic = stats.chisquare(q, p / p.sum() * q.sum()).statistic
    assert chi_square_divergence(p, q) == pytest.approx(statistic / q.sum())


def test_chi_square_of_two_normal_distributions():
    x = np.linspace(-12, 12, 48001)
    p, q = np.exp(-(x**2) / 2), np.exp(-((x - 0.7) ** 2) / 2)
    assert chi_square_divergence(p, q) == pytest.approx(np.expm1(0.7**2), rel=1e-6)
    # The textbook bound for the mean of a normal: h^2 / (exp(h^2) - 1), at most the variance 1.
    bound = hammersley_chapman_robbins(p, q, x)
    assert bound == pytest.approx(0.7**2 / np.expm1(0.7**2), rel=1e-6)
    assert bound < variance_of(p, x) == pytest.approx(1, rel=1e-6)


def test_hcr_is_tight_for_a_coin():
    # Any statistic of one coin is linear in the coin: the bound is its variance, p (1 - p).
    assert hammersley_chapman_robbins([0.7, 0.3], [0.4, 0.6], [0, 1]) == pytest.approx(0.21)
    assert variance_of([0.7, 0.3], [0, 1]) == pytest.approx(0.21)


def test_hcr_never_exceeds_the_variance(rng):
    for _ in range(50):
        p, q, t = rng.uniform(0.01, 1, 9), rng.uniform(0, 1, 9), rng.normal(size=9)
        assert hammersley_chapman_robbins(p, q, t) <= variance_of(p, t) * (1 + 1e-12)


def test_hcr_says_nothing_of_equal_or_disjoint_distributions():
    assert hammersley_chapman_robbins([1, 1], [1, 1], [0, 1]) == 0
    assert hammersley_chapman_robbins([1, 0], [0, 1], [0, 1]) == 0


@pytest.mark.parametrize(
    ("p", "q", "message"),
    [
        ([1, 1], [1, 1, 1], "q must have the 2 bins of p; got 3"),
        ([0, 0], [1, 1], "positive sum"),
        ([1, -1], [1, 1], "weights >= 0"),
        ([1, 1], [math.nan, 1], "weights >= 0"),
        ([[1, 1]], [1, 1], "must be a vector"),
    ],
)
def test_what_is_no_distribution_is_refused(p, q, message):
    with pytest.raises(ValueError, match=message):
        chi_square_divergence(p, q)


# Bins.


def test_histogram_counts_every_normal_value(rng):
    values = np.exp(rng.normal(0, 5, 1000)).astype(np.float32) * rng.choice([-1, 1], 1000)
    histogram = MagnitudeHistogram()
    for part in np.split(values, 4):
        histogram.add(torch.from_numpy(part.astype(np.float32)))
    edges, counts = histogram.bars()
    assert (counts == np.histogram(np.abs(values.astype(np.float32)), edges)[0]).all()
    assert counts.sum() == 1000
    assert counts[0] > 0 < counts[-1]
    assert 5.0 in edges  # the default gamma is an edge: 1.25 * 4


def test_histogram_leaves_out_zeros_and_what_is_not_finite():
    histogram = MagnitudeHistogram()
    histogram.add(torch.tensor([0.0, math.nan, math.inf, -math.inf]))
    edges, counts = histogram.bars()
    assert len(counts) == 0
    assert len(edges) == 1
    histogram.add(torch.tensor([0.0, 3.4e38, 3.4e38]))
    assert histogram.bars()[1].tolist() == [2]


def test_distortion_of_nothing_changed_is_zero(rng):
    x = torch.from_numpy(rng.normal(size=(100, 30)).astype(np.float32))
    distortion = Distortion(("same",))
    assert distortion.measures("same") is None
    distortion.add(x, {"same": x}, 0.0)
    distortion.add(x * 1.5, {"same": x * 1.5}, 0.0)
    same = distortion.measures("same")
    assert (same.chi_square, same.hcr_bound, same.leverage, same.sensitivity) == (0, 0, 0, 0)


def test_distortion_by_a_grid_too_coarse(rng):
    x = torch.from_numpy(rng.normal(size=(300, 40)).astype(np.float32))
    distortion = Distortion(("zero", "coarse", "fine"))
    arms = {"zero": x * 0, "coarse": x.round(), "fine": (x * 64).round() / 64}
    distortion.add(x, arms, 0.0)
    zero, coarse, fine = (distortion.measures(name) for name in arms)
    assert zero.chi_square == pytest.approx(EQUAL_BINS - 1, rel=0.01)  # all in one of equal bins
    assert zero.chi_square > coarse.chi_square > 10 * fine.chi_square > 0
    for change in (zero, coarse, fine):
        assert 0 <= change.hcr_bound <= change.binned_variance


def test_leverage_and_sensitivity_are_those_of_the_values(rng):
    batches = [torch.from_numpy(rng.normal(size=(50, 40)).astype(np.float32)) for _ in range(3)]
    distortion = Distortion(("coarse",))
    for x in batches:
        distortion.add(x, {"coarse": x.round()}, 1.0)
    x = np.abs(torch.cat(batches).double().numpy())
    leverage = np.abs(torch.cat(batches).round().double().numpy()).mean() - x.mean()
    change = distortion.measures("coarse")
    assert change.leverage == pytest.approx(leverage, rel=1e-9)
    assert change.sensitivity == pytest.approx(leverage**2 / x.var(), rel=1e-9)


def test_no_bin_is_narrower_than_a_step():
    """GELU's outputs end at -0.17: a bin cut there by rank fills by rounding alone."""
    x = torch.nn.functional.gelu(torch.randn(2000, 40, generator=torch.Generator().manual_seed(1)))
    step = float(x.abs().max()) / 127
    rounded = (x / step).round() * step
    fair, narrow = Distortion(("int8",)), Distortion(("int8",))
    fair.add(x, {"int8": rounded}, step)
    narrow.add(x, {"int8": rounded}, 0.0)
    assert fair._edges.diff().min() >= step
    assert fair.measures("int8").chi_square < 1 < narrow.measures("int8").chi_square


def test_outliers_that_are_clipped_are_seen():
    x = torch.randn(4096, 64, generator=torch.Generator().manual_seed(0))
    x[:, :2] *= 30
    distortion = Distortion(("clipped", "same"))
    distortion.add(x, {"clipped": x.clamp(-3, 3), "same": x}, 0.1)
    assert distortion.measures("same").chi_square == 0
    clipped = distortion.measures("clipped")
    assert clipped.chi_square > 0.01
    assert clipped.hcr_bound > 0
    assert clipped.leverage < 0


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_not_perfect(bad):
    ones, worse = torch.ones(3), torch.tensor([1.0, 1.0, bad])
    cosine, ratio = Cosine(), SignalToNoise()
    cosine.add(ones, worse)
    ratio.add(ones, worse)
    assert cosine.value is None
    assert ratio.db == -math.inf
    other = SignalToNoise()
    other.add(worse, ones)
    assert other.db is None


def test_distortion_takes_ties_and_values_below_the_first_call():
    x = torch.tensor([0.0] * 50 + [1.0] * 50)
    distortion = Distortion(("half",))
    distortion.add(x, {"half": x / 2}, 0.1)
    half = distortion.measures("half")
    assert half.chi_square == pytest.approx(1)  # p = (1/2, 1/2), q = (1, 0)
    assert half.hcr_bound == pytest.approx(half.binned_variance) == pytest.approx(0.25)
    assert half.leverage == pytest.approx(-0.25)
    assert half.sensitivity == pytest.approx(0.25)
    distortion.add(x - 5, {"half": x - 9}, 0.1)
    assert math.isfinite(distortion.measures("half").chi_square)


def test_a_first_call_of_one_value_decides_no_bins():
    x, zeros = torch.tensor([0.0, 1.0, 2.0, 4.0] * 50), torch.zeros(100)
    distortion = Distortion(("zero",))
    distortion.add(zeros, {"zero": zeros}, 0.0)
    assert distortion.measures("zero") is None
    distortion.add(x, {"zero": x * 0}, 0.5)
    assert distortion.measures("zero").chi_square == pytest.approx(3)
    assert distortion.measures("zero").leverage == pytest.approx(-1.75 * 2 / 3)  # of all 300 values


def test_distortion_samples_with_a_generator_of_its_own():
    state = torch.get_rng_state()
    distortion, x = Distortion(("a",)), torch.arange(SAMPLE + 1.0)
    distortion.add(x, {"a": x}, 1.0)
    assert torch.equal(torch.get_rng_state(), state)
    assert int(distortion._original.sum()) == SAMPLE


# Columns.


def test_columns_by_hand():
    columns = OutlierColumns(4, 5.0, capacity=1)
    for absmax in ([1.0, 6.0, 2.0, 5.0], [1.0, 8.0, 10.0, 4.0], [1.0, 1.0, 1.0, 1.0]):
        columns.add(torch.tensor(absmax))
    assert (columns.calls, columns.mean, columns.most) == (3, 1.0, 2)
    assert (columns.overflow_calls, columns.overflow_columns) == (1, 1)
    assert columns.mean_ratio == pytest.approx((6 / 5 + 10 / 4) / 2)
    assert columns.largest_ratio == 2.5
    assert columns.stability == pytest.approx((2 / 3 + 1 / 3) / 2)
    found = columns.columns(torch.tensor([1.0, 8.0, 10.0, 5.0]))
    assert [(c.index, c.absmax, c.share) for c in found] == [(1, 8.0, 2 / 3), (2, 10.0, 1 / 3)]


def test_columns_without_outliers():
    columns = OutlierColumns(2, 5.0, capacity=1)
    columns.add(torch.tensor([5.0, 0.0]))
    assert columns.stability is columns.mean_ratio is columns.largest_ratio is None
    assert columns.columns(torch.tensor([5.0, 0.0])) == []
