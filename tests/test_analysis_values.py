"""What a recording measures: numbers are those of the reference, whatever the dtype and config."""

import numpy as np
import pytest
import torch
from torch import nn

import int8tile
from helpers import RecordOps, array, capacity_for, matrix, randn
from int8tile import Int8TileConfig, analysis, reference
from int8tile.analysis.measures import cosine_in_db
from recordings import K, M, N, layer, only, planted

PAPER = Int8TileConfig.paper()


def db(exact, approximate):
    exact = exact.astype(np.float64)
    return 10 * np.log10((exact**2).sum() / ((approximate - exact) ** 2).sum())


def cosine(a, b):
    a, b = (each.astype(np.float64).ravel() for each in (a, b))
    return a @ b / np.linalg.norm(a) / np.linalg.norm(b)


def dequantized(split):
    x = split.q.astype(np.float32)
    x[:, split.index] = 128 * split.high.astype(np.float32) + split.low
    return x * split.scale[:, None]


# Numbers are those of the reference.


@pytest.mark.parametrize(
    "config",
    [Int8TileConfig(), PAPER, Int8TileConfig(outlier_gain=True)],
    ids=["default", "paper", "gain"],
)
def test_ratios_and_cosines_are_those_of_the_reference(config):
    model = layer()
    if config.outlier_gain:  # there are gains where outliers meet small weights
        with torch.no_grad():
            model.weight[:, [3, 17, 40]] /= 40
    x, g = planted().requires_grad_(), randn(M, N, seed=5)
    with analysis.record(model, config) as recording:
        model(x).backward(g)
    found = only(recording)
    x, w, g = matrix(x), array(model.weight), array(g)
    scales = {"granularity": config.granularity, "scale": config.scale}
    how = {**scales, "rounding": config.grad_rounding, "seed": 1}
    exact = x.astype(np.float64) @ w.T.astype(np.float64)
    for arm, threshold in (("plain", None), ("split", 5.0)):
        cut = {"threshold": threshold, "capacity": capacity_for(K), **scales}
        y, _ = reference.linear_forward(x, w, **cut)
        _, split = reference.linear_forward(x, w, outlier_gain=config.outlier_gain, **cut)
        assert config.outlier_gain == (split.gain > 1).any() or arm == "plain"
        undivided = reference.quantize_split(x, split.index, **scales)
        assert found.snr_db[f"x_{arm}"] == pytest.approx(db(x, dequantized(undivided)), abs=1e-4)
        assert found.snr_db[f"y_{arm}"] == pytest.approx(db(exact, y), abs=1e-3)
        for grad_split in (False, True):
            grad = reference.grad_weight(g, split, **how, grad_split=grad_split)
            measured = found.grad_weight(arm == "split", grad_split)
            assert measured == pytest.approx(cosine(g.T @ x, grad), abs=1e-6)
    grad = reference.grad_input(g, w, **how)
    assert found.cosine["grad_input"] == pytest.approx(cosine(g @ w, grad), abs=1e-6)
    q, scale = reference.quantize(w, **scales)
    assert found.snr_db["weight"] == pytest.approx(db(w, q * scale[:, None]), abs=1e-4)
    q, scale = reference.quantize(g, **how)
    assert found.snr_db["gradient"] == pytest.approx(db(g, q * scale[:, None]), abs=1e-4)
    assert found.snr_db["y_split"] > found.snr_db["y_plain"] + 5


@pytest.mark.parametrize("configured", [False, True])
def test_what_few_tokens_decide_is_worst_without_grad_split(configured):
    model, x, g = layer(), planted(m=512).abs(), randn(512, N, seed=5)
    g[2:] = g[2] / 300  # less than half a step of the first two, but more than these in sum
    with analysis.record(model, Int8TileConfig(grad_split=configured)) as recording:
        model(x).backward(g)
    found = only(recording)
    assert found.grad_weight() == found.grad_weight(True, configured)
    assert found.grad_weight(True, True) > 0.99 > 0.97 > found.grad_weight(True, False)
    assert found.worst[0] == (found.y_db if configured else cosine_in_db(found.grad_weight()))


def test_every_threshold_and_every_number_of_bits_is_measured():
    model, x = layer(), planted(factor=7.0)
    with analysis.record(model, thresholds=(3.0, 9.0), bits=(8, 15)) as recording:
        model(x)
    found = only(recording)
    w, exact = array(model.weight), array(x).astype(np.float64) @ array(model.weight).T
    assert [t.threshold for t in found.thresholds] == [None, 3.0, 5.0, 9.0]
    for each in found.thresholds:
        y, split = reference.linear_forward(
            array(x), w, threshold=each.threshold, capacity=capacity_for(K)
        )
        assert each.y_db == pytest.approx(db(exact, y), abs=1e-3)
        over = 0 if each.threshold is None else (np.abs(array(x)).max(0) > each.threshold).sum()
        assert (each.mean, each.most) == (over, over)
        assert each.overflow_calls == (over > len(split.index))
    assert list(found.bits_db) == [8, 12, 15]
    for bits, measured in found.bits_db.items():
        y, _ = reference.linear_forward(array(x), w, outlier_bits=bits, capacity=capacity_for(K))
        assert measured == pytest.approx(db(exact, y), abs=1e-3)


def test_the_output_with_gains_is_measured():
    model, x = layer(), planted(factor=40.0)
    with torch.no_grad():
        model.weight[:, [3, 17, 40]] /= 40
    with analysis.record(model) as recording:
        model(x)
    found = only(recording)
    w, exact = array(model.weight), array(x).astype(np.float64) @ array(model.weight).T
    y, _ = reference.linear_forward(array(x), w, outlier_gain=True, capacity=capacity_for(K))
    assert found.snr_db["y_gain"] == pytest.approx(db(exact, y), abs=1e-3)
    assert found.snr_db["y_gain"] > found.snr_db["y_split"] + 3
    assert recording.report().recommendation.config["*"].outlier_gain


@pytest.mark.parametrize("gain", [False, True])
def test_gains_are_those_of_each_threshold(gain):
    """A larger gamma leaves less to divide by, also where it finds the same columns."""
    model, x = layer(), planted(factor=1.0)
    x[:, [3, 17, 40]] = 16 * randn(len(x), 3, seed=9).clamp(-1, 1)
    with torch.no_grad():
        model.weight[:, [3, 17, 40]] /= 64
    config = Int8TileConfig(outlier_gain=gain)
    with analysis.record(model, config, thresholds=(6.0, 12.0)) as recording:
        model(x)
    found, w = only(recording), array(model.weight)
    exact = array(x).astype(np.float64) @ w.T
    for each in found.thresholds[1:]:
        for field, gained in (("y_db", False), ("y_gain_db", True)):
            y, _ = reference.linear_forward(
                array(x), w, threshold=each.threshold, outlier_gain=gained, capacity=capacity_for(K)
            )
            assert getattr(each, field) == pytest.approx(db(exact, y), abs=1e-3)
    assert found.y_db == found.snr_db["y_gain" if gain else "y_split"]
    assert found.bits_db[12] == found.y_db
    assert found.thresholds[1].y_gain_db > found.thresholds[3].y_gain_db + 1


def test_a_weight_that_is_not_finite_is_counted_and_left_out():
    model = layer()
    with torch.no_grad():
        model.weight[2, 5] = float("nan")
    with analysis.record(model) as recording:
        model(planted().requires_grad_()).sum().backward()
    found = only(recording)
    assert (found.nonfinite_calls, found.measured_calls, found.measured_gradients) == (1, 0, 0)
    assert found.cosine["grad_input"] is None
    assert recording.report().recommendation


def test_variance_is_that_of_numpy():
    model, xs = layer(), [planted(s) for s in range(3)]
    with analysis.record(model) as recording:
        for x in xs:
            model(x)
    found, x = only(recording), np.concatenate([array(x).astype(np.float64) for x in xs])
    outlier = np.isin(np.arange(K), (3, 17, 40))
    regular, out = x[:, ~outlier], x[:, outlier]
    within = (regular.var() * regular.size + out.var() * out.size) / x.size
    assert found.variance["within"] == pytest.approx(within)
    assert found.variance["total"] == pytest.approx(x.var())
    assert found.outlier_energy == pytest.approx((out**2).sum() / (x**2).sum())
    assert found.histogram[1].sum() == np.count_nonzero(x)
    plain, split = found.distortion["plain"], found.distortion["split"]
    assert split["chi_square"] < plain["chi_square"]
    assert 0 <= split["hcr_bound"] <= split["binned_variance"]


@pytest.mark.parametrize("bits", [8, 14])  # 14: the largest of a row is 16383, on the limit
@pytest.mark.parametrize("granularity", ["row", "tensor"])
def test_outliers_that_rounding_takes_beyond_their_bits_are_counted(granularity, bits):
    config = Int8TileConfig(outlier_bits=bits, granularity=granularity)
    model, x = layer(), planted(m=4000, factor=255.2 / 127 * 4)  # 255.2 is 127.6 of two steps
    if granularity == "row":
        x[:, [3, 17, 40]] = 400 * randn(len(x), 3, seed=9)
    with analysis.record(model, config=config) as recording:
        model(x)
    split = reference.quantize_split(
        array(x), np.array([3, 17, 40]), outlier_bits=bits, granularity=granularity
    )
    limbs = np.abs(128 * split.high.astype(int) + split.low)
    largest = limbs.max() if granularity == "tensor" else limbs.max(1, keepdims=True)
    dropped = np.exp2(np.maximum(0, np.ceil(np.log2(largest + 1)) - (bits - 1)))
    inv = np.float32(1) / split.scale[:, None]
    beyond = np.abs(array(x)[:, split.index]) * inv / dropped >= 2 ** (bits - 1) - 0.5
    assert beyond.any() == (bits == 8 or granularity == "row")
    assert only(recording).clipped == beyond.sum() / x.numel()


def test_the_real_ops_measure():
    model = layer()
    with RecordOps() as ops, analysis.record(model) as recording:
        model(planted().requires_grad_()).sum().backward()
    assert {"quantize_split", "linear_forward_only", "linear_grad_input", "linear_grad_weight"} <= {
        *ops.names
    }
    assert all(value < 1 for value in only(recording).cosine.values())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_models_are_measured(dtype):
    model = layer().to(dtype)
    with analysis.record(model) as recording:
        model(planted().to(dtype).requires_grad_()).square().mean().backward()
    found = only(recording)
    assert len(found.columns) == 3
    assert found.snr_db["y_split"] > 30
    assert found.cosine["grad_weight_split"] > 0.99


def test_autocast_does_not_reach_the_measurement():
    model, x = layer(), planted()
    with analysis.record(model) as exact:
        model(x)
    with torch.autocast("cpu", torch.bfloat16), analysis.record(model) as recording:
        model(x)
    assert only(recording).snr_db["y_split"] == only(exact).snr_db["y_split"]


def test_a_converted_layer_is_measured_with_its_own_config():
    model = nn.Sequential(layer(), layer(N, 8))
    int8tile.convert_(model, {"0": Int8TileConfig(threshold=20.0, outlier_bits=10), "*": None})
    with analysis.record(model) as recording:
        model(planted(factor=12.0).requires_grad_()).sum().backward()
    found = recording.report().layers
    assert (found["0"].converted, found["0"].gamma, found["0"].config.outlier_bits) == (
        True,
        20.0,
        10,
    )
    assert found["0"].columns == []
    assert (found["1"].converted, found["1"].gamma) == (False, 5.0)
    assert found["0"].cosine["grad_input"] is not None
    with analysis.record(model, Int8TileConfig(threshold=3.0)) as recording:
        model(planted(factor=12.0))
    assert recording.report().layers["0"].gamma == 3.0


def test_a_config_without_a_split_is_reported_at_the_default_gamma():
    model = layer()
    with analysis.record(model, Int8TileConfig(threshold=None)) as recording:
        model(planted())
    assert only(recording).gamma == 5.0
    assert len(only(recording).columns) == 3
