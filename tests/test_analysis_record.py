"""Recording: what is planted is found, numbers are those of the reference, nothing is disturbed."""

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import int8tile
from helpers import RecordOps, array, capacity_for, matrix, randn
from int8tile import Int8TileConfig, analysis, reference
from int8tile.analysis.options import BITS

M, K, N = 48, 80, 72
PAPER = Int8TileConfig.paper()


def planted(step=0, columns=(3, 17, 40), factor=40.0, m=M, k=K):
    """Values within +-4 except in `columns`, whose absmax is `factor`."""
    x = randn(m, k, seed=step).clamp(-4, 4)
    for j in columns:
        x[:, j] = factor * torch.linspace(-1, 1, m)
    return x


def layer(k=K, n=N, seed=1):
    module = nn.Linear(k, n)
    with torch.no_grad():
        module.weight.copy_(randn(n, k, seed=seed))
    return module


class Net(nn.Module):
    """Two linears, dropout, and an activation that overwrites its input."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(K, N), nn.Linear(N, 16)
        self.act, self.dropout = nn.ReLU(inplace=True), nn.Dropout(0.3)

    def forward(self, x):
        return self.second(self.dropout(self.act(self.first(x))))


def train(model, steps=3, x=planted, lr=0.05):
    """Steps of SGD; gives outputs and gradients."""
    seen = []
    for step in range(steps):
        y = model(x(step))
        y.square().mean().backward()
        grads = [p.grad.clone() for p in model.parameters()]
        with torch.no_grad():
            for p in model.parameters():
                p -= lr * p.grad
                p.grad = None
        seen.append([y.detach().clone(), *grads])
    return seen


def only(recording):
    (found,) = recording.report().layers.values()
    return found


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


# What is planted is found.


def test_planted_outliers_are_found_exactly():
    model = layer()
    with analysis.record(model) as recording:
        for step in range(4):
            model(planted(step))
    found = only(recording)
    assert [(c.index, c.absmax, c.share) for c in found.columns] == [
        (3, 40.0, 1.0),
        (17, 40.0, 1.0),
        (40, 40.0, 1.0),
    ]
    assert (found.calls, found.tokens, found.mean_columns, found.most_columns) == (4, M, 3.0, 3)
    assert (found.stability, found.overflow_calls) == (1.0, 0)
    largest = max(float(planted(s, columns=()).abs().max()) for s in range(4))
    assert found.largest_ratio >= 40 / largest
    assert found.variance["outlier_share"] == pytest.approx(3 / K)
    assert (
        found.absmax.tolist()
        == torch.stack([planted(s) for s in range(4)]).abs().amax((0, 1)).tolist()
    )


def test_outliers_that_move_are_less_stable():
    model = layer()
    with analysis.record(model) as recording:
        for step in range(4):
            model(planted(step, columns=(5, 10 + step)))
    found = only(recording)
    shares = {c.index: c.share for c in found.columns}
    assert shares == {5: 1.0, 10: 0.25, 11: 0.25, 12: 0.25, 13: 0.25}
    assert found.stability == pytest.approx(2 / 5)


def test_overflow_of_the_capacity_is_counted():
    model, config = layer(), Int8TileConfig(outlier_capacity=2)
    with analysis.record(model, config) as recording:
        model(planted(0))
        model(planted(1, columns=(7,)))
    found = only(recording)
    assert (found.capacity, found.overflow_calls, found.overflow_columns) == (2, 1, 1)


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
        y, split = reference.linear_forward(
            x,
            w,
            threshold=threshold,
            capacity=capacity_for(K),
            outlier_gain=config.outlier_gain,
            **scales,
        )
        assert config.outlier_gain == (split.gain > 1).any() or arm == "plain"
        undivided = reference.quantize_split(x, split.index, **scales)
        assert found.snr_db[f"x_{arm}"] == pytest.approx(db(x, dequantized(undivided)), abs=1e-4)
        assert found.snr_db[f"y_{arm}"] == pytest.approx(db(exact, y), abs=1e-3)
        grad = reference.grad_weight(g, split, **how)
        assert found.cosine[f"grad_weight_{arm}"] == pytest.approx(cosine(g.T @ x, grad), abs=1e-6)
    grad = reference.grad_input(g, w, **how)
    assert found.cosine["grad_input"] == pytest.approx(cosine(g @ w, grad), abs=1e-6)
    q, scale = reference.quantize(w, **scales)
    assert found.snr_db["weight"] == pytest.approx(db(w, q * scale[:, None]), abs=1e-4)
    q, scale = reference.quantize(g, **how)
    assert found.snr_db["gradient"] == pytest.approx(db(g, q * scale[:, None]), abs=1e-4)
    assert found.snr_db["y_split"] > found.snr_db["y_plain"] + 5


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
        for field, gained in (("y_db", gain), ("y_gain_db", True)):
            y, _ = reference.linear_forward(
                array(x), w, threshold=each.threshold, outlier_gain=gained, capacity=capacity_for(K)
            )
            assert getattr(each, field) == pytest.approx(db(exact, y), abs=1e-3)
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
    assert 0 <= split["hcr_bound"] <= split["variance"]


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


# Nothing is disturbed.


@pytest.mark.parametrize("config", [None, Int8TileConfig(), PAPER], ids=["float", "int8", "paper"])
def test_training_is_as_without_it(config):
    plain = Net()
    if config is not None:
        int8tile.convert_(plain, config)
    watched = copy.deepcopy(plain)
    torch.manual_seed(3)
    expected = train(plain)
    after = torch.get_rng_state()
    torch.manual_seed(3)
    with analysis.record(watched) as recording:
        seen = train(watched)
    assert torch.equal(torch.get_rng_state(), after)
    for step, (ours, theirs) in enumerate(zip(seen, expected, strict=True)):
        for a, b in zip(ours, theirs, strict=True):
            assert torch.equal(a, b), step
    report = recording.report()
    assert all(each.measured_gradients == 3 for each in report.layers.values())


def test_no_hook_is_left_behind():
    model = Net()
    other = model.first.register_forward_hook(lambda *_: None)
    hooks = [list(m._forward_hooks) for m in model.modules()]
    with pytest.raises(RuntimeError, match="cannot be multiplied"), analysis.record(model):
        model(torch.ones(2, K + 1))
    with analysis.record(model):
        assert [list(m._forward_hooks) for m in model.modules()] != hooks
    for module in model.modules():
        kept = [module._forward_hooks_with_kwargs, module._forward_pre_hooks]
        assert not any([*kept, module._backward_hooks, module._backward_pre_hooks])
    assert [list(m._forward_hooks) for m in model.modules()] == hooks
    other.remove()


def test_gradients_that_come_after_the_end_are_not_looked_at():
    model = layer()
    with analysis.record(model) as recording:
        y = model(planted())
    y.sum().backward()
    assert only(recording).measured_gradients == 0
    assert only(recording).cosine["grad_weight_split"] is None


def test_an_input_that_is_overwritten_is_measured_as_it_was():
    model = layer().requires_grad_(False)
    x = planted().requires_grad_()

    def run(overwrite):
        with analysis.record(model) as recording:
            inner = x * 1
            y = model(inner)
            if overwrite:
                inner.zero_()
            y.square().mean().backward()
        return only(recording)

    assert run(True).cosine == run(False).cosine
    assert run(True).cosine["grad_weight_split"] is None  # the weight is frozen


def size(value, seen):
    """Bytes of all tensors and lengths of all containers that can be reached."""
    if id(value) in seen or isinstance(value, nn.Module):
        return 0
    seen.add(id(value))
    if isinstance(value, torch.Tensor):
        return value.numel() * value.element_size()
    if isinstance(value, dict):
        return len(value) + sum(size(each, seen) for each in value.values())
    if isinstance(value, list | tuple | set):
        return len(value) + sum(size(each, seen) for each in value)
    return size(vars(value), seen) if hasattr(value, "__dict__") else 0


def test_memory_does_not_grow_with_the_batches():
    model, sizes = Net(), []
    with analysis.record(model) as recording:
        for step in range(12):
            train(model, 1, lambda _, step=step: planted(step, m=8 + step))
            sizes.append(size(recording, set()))
    assert sizes[0] == sizes[-1]
    features = K + N
    assert sizes[0] < 8 * features * 12 + 20_000


# Whatever a model does.


def test_only_every_so_many_th_call_is_quantized():
    model = layer()
    with analysis.record(model, every=3) as recording:
        for step in range(7):
            model(planted(step)).sum().backward()
    found = only(recording)
    assert (found.calls, found.measured_calls, found.measured_gradients) == (7, 3, 3)
    assert found.columns[0].share == 1.0


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_checkpointed_layer_is_seen_once(reentrant):
    model, x = layer(), planted().requires_grad_()
    with analysis.record(model) as recording:
        checkpoint(model, x, use_reentrant=reentrant).square().mean().backward()
    found = only(recording)
    assert (found.calls, found.measured_calls, found.measured_gradients) == (1, 1, 1)
    with analysis.record(model) as plain:
        model(x).square().mean().backward()
    assert found.cosine == only(plain).cosine


def test_inputs_by_keyword_of_any_rank_and_of_no_rows():
    model = layer()
    with analysis.record(model) as recording:
        model(input=planted().reshape(2, M // 2, K))
        model(planted()[0])
        model(torch.empty(0, K))
    found = only(recording)
    assert (found.calls, found.tokens) == (2, round((M + 1) / 2))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_values_that_are_not_finite_are_counted_and_left_out(value):
    model = layer()
    with analysis.record(model) as recording:
        model(planted()).sum().backward()
        clean = only(recording)
        x = planted()
        x[2, 5] = value
        model(x).sum().backward()
        model(planted()).backward(torch.full((M, N), value))
    found = only(recording)
    assert found.nonfinite_calls == 2
    assert (found.measured_calls, found.measured_gradients) == (2, 1)
    assert [c.index for c in found.columns] == [3, 17, 40]
    assert found.snr_db == pytest.approx(clean.snr_db)
    assert found.cosine == clean.cosine


def test_an_input_of_zeros_is_no_division_by_zero():
    model = layer()
    with analysis.record(model) as recording:
        model(torch.zeros(4, K)).sum().backward()
    found = only(recording)
    assert found.snr_db["x_plain"] is None
    assert found.cosine["grad_weight_split"] is None
    assert found.columns == []
    assert recording.report().recommendation.config


def test_layers_that_are_not_measured_are_named():
    model = nn.ModuleDict({"used": layer(), "idle": layer(), "wide": layer().double()})
    with analysis.record(model) as recording:
        assert str(recording.report()) == "no linear layer was called"
        model["used"](planted())
    report = recording.report()
    assert list(report.layers) == ["used"]
    assert report.unseen == ["idle"]
    assert report.skipped == {"wide": "its weight is torch.float64"}


# What is wrong is refused.


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"config": "int8"}, TypeError, "config must be an Int8TileConfig; got str"),
        ({"thresholds": (0.0,)}, ValueError, "thresholds must be above 0 and finite; got 0.0"),
        ({"thresholds": (math.inf,)}, ValueError, "thresholds must be above 0"),
        ({"bits": (16,)}, ValueError, "bits must be 8..15; got 16"),
        ({"every": 0}, ValueError, "every must be an int of at least 1; got 0"),
        ({"config": Int8TileConfig(outlier_capacity=81)}, ValueError, "outlier_capacity"),
    ],
)
def test_wrong_arguments_are_refused(arguments, error, message):
    with (
        pytest.raises(error, match=rf"int8tile.analysis.record.*{message}"),
        analysis.record(layer(), **arguments),
    ):
        pass


def test_a_model_without_linear_layers_is_refused():
    with (
        pytest.raises(ValueError, match=r"model must hold an nn\.Linear"),
        analysis.record(nn.ReLU()),
    ):
        pass


def test_the_default_bits_are_the_whole_range():
    assert (min(BITS), max(BITS)) == (8, 15)
