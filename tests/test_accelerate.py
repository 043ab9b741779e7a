"""Accelerate prepares, accumulates, saves and resumes a converted model unchanged."""

import pytest

pytest.importorskip("transformers", reason="needs the demo extra")
pytest.importorskip("accelerate", reason="needs the demo extra")

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch.utils.data import DataLoader

import int8tile
from helpers import same
from int8tile import Int8TileConfig
from int8tile.nn import Int8Linear
from tasks import bert, examples, own_accelerator  # noqa: F401 - a fixture

CONFIGS = pytest.mark.parametrize(
    "config",
    [Int8TileConfig(), Int8TileConfig(grad_rounding="stochastic")],
    ids=["nearest", "stochastic"],
)


pytestmark = pytest.mark.usefixtures("own_accelerator")


def prepared(config=None, accumulate=1, batch=8, **options):
    set_seed(5)
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=accumulate, **options)
    model = bert(dropout=0.1)
    int8tile.convert_(model, config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    loader = DataLoader(examples(), batch_size=batch)
    return accelerator, *accelerator.prepare(model, optimizer, loader)


def train(accelerator, model, optimizer, loader):
    """The losses of one pass over the examples."""
    model.train()
    losses = []
    for batch in loader:
        with accelerator.accumulate(model):
            loss = model(**batch).loss
            accelerator.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
        losses.append(loss.item())
    return losses


@CONFIGS
def test_it_learns(config):
    parts = prepared(config)
    curves = [train(*parts) for _ in range(6)]
    assert sum(curves[-1]) < 0.6 * sum(curves[0])
    unwrapped = parts[0].unwrap_model(parts[1])
    assert sum(isinstance(module, Int8Linear) for module in unwrapped.modules()) == 14


def test_gradients_are_accumulated():
    """The same step as by hand, bit for bit."""
    accelerator, model, _, loader = prepared(accumulate=2, batch=4)
    expected = bert(dropout=0.1)
    int8tile.convert_(expected)
    batches = list(loader)[:2]
    torch.manual_seed(3)
    expected.train()
    for batch in batches:
        (expected(**batch).loss / 2).backward()
    torch.manual_seed(3)
    model.train()
    for batch in batches:
        with accelerator.accumulate(model):
            accelerator.backward(model(**batch).loss)
    for mine, theirs in zip(model.parameters(), expected.parameters(), strict=True):
        same(mine.grad, theirs.grad)


@CONFIGS
def test_a_resumed_run_is_the_same_run(tmp_path, config):
    once = prepared(config)
    first = train(*once)
    once[0].save_state(tmp_path / "state")
    second = train(*once)
    again = prepared(config)
    again[0].load_state(tmp_path / "state")
    assert train(*again) == second != first


def test_bfloat16_autocast():
    parts = prepared(mixed_precision="bf16")
    accelerator, model, _, loader = parts
    with accelerator.autocast():
        assert (
            model(**next(iter(loader))).logits.dtype == torch.float32
        )  # as Accelerate converts it
    curves = [train(*parts) for _ in range(4)]
    assert sum(curves[-1]) < 0.9 * sum(curves[0])
