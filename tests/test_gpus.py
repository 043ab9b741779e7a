"""What is said of a GPU before anything runs on it, with made-up devices."""

import importlib

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from int8tile import Int8TileConfig, _core, gpus
from int8tile.nn import Int8Linear, convert, convert_

H100, B300 = ("H100", 9, 0, 132), ("B300", 10, 3, 148)


@pytest.fixture
def devices(monkeypatch):
    """Makes this build one with CUDA that finds the devices given."""

    def found(*facts):
        monkeypatch.setattr(_core, "cuda_compiled", True)
        monkeypatch.setattr(_core, "cuda_unavailable", lambda: "", raising=False)
        monkeypatch.setattr(_core, "cuda_device_count", lambda: len(facts), raising=False)
        monkeypatch.setattr(_core, "cuda_device", lambda index: facts[index], raising=False)

    return found


def call(*arguments):
    cli = importlib.import_module("int8tile.cli")
    return " ".join(CliRunner().invoke(cli.app, [*arguments]).output.split())


@pytest.mark.parametrize("capability", gpus.PEAKS, ids=str)
def test_int8_pays_where_its_peak_is_higher(capability):
    peaks = gpus.PEAKS[capability]
    assert bool(gpus.why_slow(capability)) == (peaks.int8 <= peaks.bfloat16)
    assert peaks.chip in gpus.verdict(capability)


def test_one_chip_is_better_off_in_bfloat16():
    assert [c for c in gpus.PEAKS if gpus.why_slow(c)] == [(10, 3)]
    assert gpus.why_slow((10, 3)) == (
        "bfloat16 is expected to be faster: at compute capability 10.3 int8 has 0.07 times its "
        "published peak (B300)"
    )


@pytest.mark.parametrize("capability", [(5, 2), (7, 0), (7, 5)], ids=str)
def test_older_chips_cannot_run_it(capability):
    needed = "the CUDA backend needs compute capability 8.0 or later; this is"
    assert gpus.verdict(capability).startswith(needed)


@pytest.mark.parametrize("capability", [(8, 7), (12, 1), (99, 0)], ids=str)
def test_of_an_unknown_chip_nothing_is_promised(capability):
    assert gpus.why_slow(capability) == ""
    assert gpus.verdict(capability).startswith("no published peaks")


def test_a_build_without_cuda_names_no_device(monkeypatch):
    monkeypatch.setattr(_core, "cuda_compiled", False)
    assert gpus.verdicts() == {}


def test_info_and_plan_show_every_device(devices):
    devices(H100, B300)
    for text in (call("info"), call("plan", "--m", "512", "--n", "768", "--k", "768")):
        assert "cuda:0 H100 (compute capability 9.0)" in text
        assert "int8 can be up to 2.0 times as fast as bfloat16" in text
        assert "cuda:1 B300 (compute capability 10.3)" in text
        assert "bfloat16 is expected to be faster" in text


def test_converting_a_model_on_a_slow_gpu_says_so(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: B300[1:3])
    layer = nn.Linear(4, 4)
    assert convert._why_slow(layer, "slow") == "slow"
    monkeypatch.setattr(nn.Module, "parameters", lambda self: iter([FakeParameter]))
    assert "compute capability 10.3" in convert._why_slow(layer, "")


class FakeParameter:
    device = torch.device("cuda", 0)


def test_the_report_names_a_slow_kernel_once(monkeypatch):
    monkeypatch.setattr(_core, "kernel_verdict", lambda: "slow here")
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    report = convert_(model, Int8TileConfig())
    assert report.notes == ["slow here"]
    assert isinstance(model[0], Int8Linear)
