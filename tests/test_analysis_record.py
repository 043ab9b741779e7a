"""Recording: what is planted is found, nothing is disturbed, whatever a model does."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import int8tile
from int8tile import Int8TileConfig, analysis
from int8tile.analysis.options import BITS
from recordings import K, M, N, layer, only, planted

PAPER = Int8TileConfig.paper()


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
@pytest.mark.parametrize("every", [1, 2])
def test_a_checkpointed_layer_is_seen_once(reentrant, every):
    model, x = layer(), planted().requires_grad_()
    with analysis.record(model, every=every) as recording:
        for _ in range(4):
            checkpoint(model, x, use_reentrant=reentrant).square().mean().backward()
    found = only(recording)
    measured = 4 // every
    assert (found.calls, found.measured_calls, found.measured_gradients) == (4, measured, measured)
    with analysis.record(model) as plain:
        model(x).square().mean().backward()
    assert found.cosine == pytest.approx(only(plain).cosine)


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


def test_a_converted_layer_whose_forward_was_replaced_is_watched():
    model = layer()
    int8tile.convert_(model)
    model.forward = model.forward
    with analysis.record(model) as recording:
        model(planted()).sum().backward()
    assert only(recording).measured_gradients == 1


class Router(nn.Linear):
    def forward(self, x):
        y = super().forward(x)
        return y, y.argmax(-1)


def test_what_convert_would_leave_alone_is_not_watched():
    model = nn.ModuleDict({"router": Router(K, 4), "layer": layer()})
    with analysis.record(model) as recording:
        model["layer"](planted()).sum().backward()
        model["router"](planted())
    report = recording.report()
    assert list(report.layers) == ["layer"]
    assert report.skipped == int8tile.convert_(model).skipped


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
