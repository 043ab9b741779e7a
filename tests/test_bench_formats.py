"""The comparisons of number formats run, and what they measure is what they say."""

import json
import math
from pathlib import Path

import pytest
import torch
from torch import nn

from helpers import activations, randn
from int8tile import reference
from test_bench import ENVIRONMENT, run

BENCH = Path(__file__).resolve().parents[1] / "bench"


@pytest.fixture
def formats(monkeypatch):
    monkeypatch.syspath_prepend(BENCH)
    import formats

    return formats


def smoke(script, folder):
    path = folder / "out.json"
    done = run(script, "--smoke", "--threads", "1", "--json", str(path))
    assert done.returncode == 0, done.stdout + done.stderr
    assert path.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    content = json.loads(path.read_text())
    assert set(content["environment"]) >= ENVIRONMENT
    assert content["arguments"]["smoke"] is True
    return content, done.stdout


def call(formats, factor=40.0):
    x = activations(50, 128, factor=factor)
    return formats.Call(x, randn(96, 128, seed=1), randn(50, 96, seed=2))


def test_products_are_those_of_the_formats(formats):
    one = call(formats)
    exact = formats.products(one, "fp32")
    torch.testing.assert_close(exact["grad_w"], one.g.t() @ one.x)
    split = formats.products(one, "int8-split")
    wanted, _ = reference.linear_forward(one.x.numpy(), one.weight.numpy(), capacity=32)
    assert (split["y"].numpy() == wanted).all()
    for arm in formats.ARMS:
        got = formats.products(one, arm)
        assert all(0 < (got[p] - exact[p]).norm() < 0.3 * exact[p].norm() for p in formats.PRODUCTS)
    assert not one.x.requires_grad


def test_recorded_calls_are_what_the_layers_multiply(formats):
    model = nn.Sequential(nn.Linear(64, 70), nn.ReLU(), nn.Linear(70, 66), nn.Linear(66, 2))
    x = randn(5, 64, requires_grad=True)
    with formats.recorded(model) as calls:
        model(x).sum().backward()
    assert list(calls) == ["0", "2"]  # in order, without the classifier
    for name, each in calls.items():
        weight_gradient = model.get_submodule(name).weight.grad
        torch.testing.assert_close(formats.products(each, "fp32")["grad_w"], weight_gradient)
    torch.testing.assert_close(formats.products(calls["0"], "fp32")["grad_x"], x.grad)


def test_the_crest_factor_tells_the_noise_of_int8(formats):
    for factor in (1.0, 4.0, 20.0):
        x = activations(400, 256, factor=factor)
        predicted = formats.INT8_NOISE_DB - formats.crest_db(x)
        assert formats.operand_db(x, "int8") == pytest.approx(predicted, abs=0.5)
    flat = torch.tensor([[3.0, -3.0], [1.0, 1.0]])
    assert formats.crest_db(flat) == pytest.approx(0)


def test_an_arm_is_undone(formats):
    model = nn.Sequential(nn.Linear(64, 64))
    x = randn(4, 64)
    wanted = model(x)
    for arm in formats.ARMS:
        with formats.as_arm(model, arm):
            assert (arm == "bf16") == torch.equal(model(x), wanted)
        assert type(model[0]) is nn.Linear


def test_fp8_layers_smoke(tmp_path):
    content, table = smoke("accuracy_fp8.py", tmp_path)
    results, models = content["results"], content["environment"]["models"]
    assert {r["stress"] for r in results} == {1, 60}
    assert len(results) == 2 * 37
    for r in results:
        assert all(0 < r["arms"][arm]["y_db"] < 100 for arm in r["arms"])
        assert r["operands"]["weight"]["crest_db"] > 0
    for model in models:
        assert all(0 < cosine <= 1 for cosine in model["cosine"].values())
        assert model["cosine"]["int8-split"] < 1
    assert "better than fp8" in table


def test_decoders_smoke(tmp_path):
    content, table = smoke("accuracy_decoders.py", tmp_path)
    found = {(r["case"], r["layer"].rsplit(".", 1)[1]): r for r in content["results"]}
    assert {case for case, _ in found} == {"none", "residual", "down_proj"}
    clean, down = found["none", "down_proj"], found["down_proj", "down_proj"]
    assert clean["outliers"]["found"] == 0
    assert (down["outliers"]["found"], down["extra_columns"]) == (4, 4)
    assert down["coarser"]["int8"]["massive_row"] > 50 > 5 > down["coarser"]["split"]["massive_row"]
    assert down["coarser"]["int8"]["other_rows"] == 1
    others = {
        a: (clean["arms"][a]["y_others_db"], down["arms"][a]["y_others_db"]) for a in clean["arms"]
    }
    assert others["int8"][0] == others["int8"][1]  # their rows are what they were
    assert others["int8-split"][1] == pytest.approx(others["int8-split"][0], abs=1)
    assert others["int8-tensor"][1] < 10
    assert "capacity 32 columns" in table


def test_mates_smoke(tmp_path):
    content, table = smoke("accuracy_mates.py", tmp_path)
    single = content["environment"]["single"]
    assert single["int8"]["changed"] == single["int8"]["max"] == 0
    assert single["int8-split"]["changed"] > 0
    assert {(r["arm"], r["case"]) for r in content["results"]} == {
        (arm, case)
        for arm in ("fp32", "int8", "int8-split")
        for case in ("same length", "padding", "batch")
    }
    assert all(math.isfinite(value) for r in content["results"] for value in r["logits"])
    assert "quantisation error" in table


@pytest.mark.parametrize(
    ("script", "options", "message"),
    [
        ("accuracy_fp8.py", ("--arms", "int4"), "must be some of"),
        ("accuracy_fp8.py", ("--stress", "much"), "could not convert"),
        ("accuracy_decoders.py", ("--models", "gpt"), "must be some of"),
        ("accuracy_mates.py", ("--task", "sst2", "--data", "nowhere"), "nowhere"),
    ],
)
def test_bad_options_are_refused(script, options, message):
    done = run(script, *options)
    assert done.returncode == 2
    assert message in " ".join(done.stderr.replace("│", " ").split())
