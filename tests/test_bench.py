"""The benchmarks run, check what they time, and write what they promise. No time is asserted."""

import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

BENCH = Path(__file__).resolve().parents[1] / "bench"
BASH = shutil.which("bash")
needs_bash = pytest.mark.skipif(BASH is None, reason="no bash")
SECONDS = 300  # a guard against hanging, not a measurement
ENVIRONMENT = {"date", "cpu", "cores", "threads", "isa", "torch", "int8tile", "python", "load"}


def run(script, *options):
    command = [sys.executable, str(BENCH / script), *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)


def smoke(script, folder):
    path = folder / f"{script}.json"
    done = run(script, "--smoke", "--json", str(path))
    assert done.returncode == 0, done.stdout + done.stderr
    content = json.loads(path.read_text())
    assert set(content["environment"]) >= ENVIRONMENT
    assert content["arguments"]["smoke"] is True
    for result in content["results"]:
        assert result["seconds"]["samples"] >= 3
        assert 0 < result["seconds"]["q1"] <= result["seconds"]["median"] <= result["seconds"]["q3"]
        assert result["speed_against_fp32"]["median"] > 0
    return content, done.stdout


def by(content, key):
    return {result[key]: result for result in content["results"]}


def test_stages_smoke(tmp_path):
    content, table = smoke("bench_stages.py", tmp_path)
    results = {(result["pass"], result["stage"]): result for result in content["results"]}
    for each in ("forward", "backward"):
        assert results[each, "the whole pass"]["share_of_pass"] == 1
    assert results["forward", "multiply"]["gops"] > 0
    assert results["backward", "GEMM alone, grad_weight"]["gops"] > 0
    assert all(result["gb_per_s"] > 0 for result in results.values())
    assert all(stage in table for _, stage in results)


def test_gemm_smoke(tmp_path):
    content, table = smoke("bench_gemm.py", tmp_path)
    results = by(content, "candidate")
    assert set(results) == {"fp32", "int_mm", "int8tile"}
    assert content["skipped"] == {}
    assert results["int8tile"]["gops"] > 0
    assert results["int8tile"]["tile_gops"] > 0
    assert results["int8tile"]["intensity"] == pytest.approx(4 * results["fp32"]["intensity"], 1)
    assert "int8tile" in table


@pytest.fixture(scope="module")
def linear(tmp_path_factory):
    return smoke("bench_linear.py", tmp_path_factory.mktemp("linear"))


def test_linear_smoke(linear):
    content, table = linear
    kinds = {(r["pass"], r["weight"]) for r in content["results"]}
    assert kinds == {(p, w) for p in ("forward", "both") for w in ("each", "frozen")}
    for result in content["results"]:
        candidate = result["candidate"]
        assert (result["error"] == 0) == (candidate == "fp32")
        gradients = {"forward": 0, "both": 1 if result["weight"] == "frozen" else 3}
        assert len(result["gradient_errors"]) == gradients[result["pass"]]
        if candidate.startswith("int8"):
            saves = result["pass"] == "both" and result["weight"] == "each"
            assert result["ran"] == f"int8tile::linear_forward{'' if saves else '_only'}"
        split = ("int8-split", "int8-gain", "int8-columns")
        assert result["outliers_split"] == (4 if candidate in split else 0)
    names = {r["candidate"] for r in content["results"]}
    assert names >= {"fp32", "bf16", "int8", *split, "int_mm"}
    assert "int8-split" in table


def test_the_split_keeps_outliers_accurate(linear):
    content, _ = linear
    for kind in (("forward", "each"), ("forward", "frozen")):
        errors = {
            r["candidate"]: r["error"]
            for r in content["results"]
            if (r["pass"], r["weight"]) == kind
        }
        assert errors["int8-gain"] < errors["int8-split"] < errors["int8"]


def test_step_smoke(tmp_path):
    content, table = smoke("bench_step.py", tmp_path)
    assert {r["model"] for r in content["results"]} == {"bert-base", "minilm", "llama"}
    for result in content["results"]:
        assert math.isfinite(result["loss"])
        int8 = result["arm"] != "fp32"
        assert (result["int8_layers"] > 0) == int8
        assert (result["gradient_error"] > 0) == int8
        assert result["saved_bytes"] > 0
    measured = [r for r in content["results"] if r["peak_bytes"] is not None]
    assert {r["arm"] for r in measured} == {"int8-split"}
    assert "int8-split" in table


def test_saved_smoke(tmp_path):
    path = tmp_path / "saved.json"
    done = run("bench_saved.py", "--smoke", "--json", str(path))
    assert done.returncode == 0, done.stdout + done.stderr
    content = json.loads(path.read_text())
    for result in content["results"]:
        names = {name for key in result["operators"] for name in key.split(" + ")}
        assert sum(result["operators"].values()) == result["saved_bytes"]
        assert result["saved_bytes"] > result["linear_saved_bytes"] > 0
        assert ("LinearFunction" in names) == (result["arm"] == "int8-shared")
    assert {r["model"] for r in content["results"]} == {"bert-base", "minilm", "llama"}
    assert "together" in done.stdout


GPU_PEERS = {"bf16", "int8", "int8-split", "int_mm", "fp8", "bitsandbytes-style"}
GPU_CANDIDATES = {
    "gemm": {"bf16", "int8tile to int32", "int8tile to bf16", "int_mm", "fp8"},
    "linear": GPU_PEERS,
    "step": GPU_PEERS | {"int8-shared", "int8-columns"},
}


@pytest.fixture(scope="module")
def gpu_parts(tmp_path_factory):
    """The code that times a GPU, run on the CPU."""
    path = tmp_path_factory.mktemp("gpu") / "gpu.json"
    done = run("bench_gpu.py", "--smoke", "--device", "cpu", "--json", str(path))
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(path.read_text())["parts"], done.stdout


def test_gpu_smoke_runs_on_a_cpu(gpu_parts):
    parts, table = gpu_parts
    assert set(parts) == set(GPU_CANDIDATES)
    for part, content in parts.items():
        assert set(content["environment"]) >= {*ENVIRONMENT, "device", "int8_peak_tops"}
        assert content["arguments"]["device"] == "cpu"
        assert content["skipped"] == content["failed"] == {}
        names = {(r["candidate"], r["outliers"]) for r in content["results"]}
        assert names == {(name, o) for name in GPU_CANDIDATES[part] for o in (0, 4)}
    assert "GEMM on ready operands" in table
    assert "training step of a decoder block" in table


def test_gpu_results_say_how_they_were_timed_and_checked(gpu_parts):
    parts, _ = gpu_parts
    results = [r for content in parts.values() for r in content["results"]]
    for result in results:
        assert result["timed"] == "host"
        assert result["share_of_int8_peak"] is None  # a CPU has no published one
        assert result["seconds"]["samples"] >= 3
        assert result["tops"] > 0
        exact = result["candidate"] in ("int_mm", "int8tile to int32")
        assert (result["error"] == 0) == (exact and result["part"] == "gemm")
    assert all(result["speed_against_bf16"]["median"] > 0 for result in results)
    for result in parts["step"]["results"]:
        inputs = result["outliers_found"]
        assert len(inputs) == 7
        assert inputs.count(result["outliers"]) >= 5  # q, k, v, gate, up


def test_gpu_parts_keep_each_other(tmp_path):
    path = tmp_path / "gpu.json"
    path.write_text(json.dumps({"parts": {"step": "kept", "gemm": "replaced"}}))
    options = ("--smoke", "--device", "cpu", "--parts", "gemm", "--limit", "0")
    done = run("bench_gpu.py", *options, "--json", str(path))
    assert done.returncode == 0, done.stdout + done.stderr
    parts = json.loads(path.read_text())["parts"]
    assert parts["step"] == "kept"
    assert parts["gemm"]["results"] == []
    assert set(parts["gemm"]["skipped"].values()) == {"the time limit was reached"}


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("script", ["bench_gpu.py", "sanitize.py"])
def test_without_a_gpu_one_line_says_so(script):
    done = run(script)
    assert done.returncode == 1
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert "needs a GPU, but " in line


def test_sanitized_layers_run_on_a_cpu():
    done = run("sanitize.py", "--device", "cpu")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "28 layers on cpu equal" in done.stdout


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H200", 1979),
        ("NVIDIA H100 80GB HBM3", 1979),
        ("NVIDIA H100 PCIe", 1513),
        ("NVIDIA A100-SXM4-80GB", 624),
        ("NVIDIA A100-SXM4-80GB MIG 1g.10gb", None),
        ("NVIDIA GH200 480GB", None),
        ("Some other card", None),
    ],
)
def test_peaks_are_those_of_whole_known_cards(name, peak, monkeypatch):
    monkeypatch.syspath_prepend(BENCH)
    import cards

    assert cards.int8_peak_tops(name) == peak


def gpu_sh(*options, **variables):
    return subprocess.run(
        [BASH, str(BENCH / "gpu.sh"), *options],
        capture_output=True, text=True, timeout=SECONDS, check=False,
        env={**os.environ, **variables},
    )  # fmt: skip


@needs_bash
def test_gpu_sh_explains_itself():
    done = gpu_sh("--help")
    assert done.returncode == 0
    assert done.stdout.startswith("usage: bench/gpu.sh")


@needs_bash
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--speed",), "unknown option --speed"),
        (("--limit", "soon"), "whole number of seconds; got 'soon'"),
        (("--only", "build,run"), "--only must be some of build,tests,sanitizer,bench; got 'run'"),
        (("--wheels",), "--wheels needs a value"),
        (("--cutlass", "nowhere"), "no folder 'nowhere'"),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_gpu_sh_refuses_bad_options(options, message):
    done = gpu_sh(*options)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("gpu.sh: ")
    assert message in line


@needs_bash
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_gpu_sh_says_that_there_is_no_gpu(tmp_path):
    folders = ("--output", str(tmp_path / "out"), "--work", str(tmp_path / "work"))
    done = gpu_sh(*folders, PYTHON=sys.executable)
    assert done.returncode == 1
    assert "sees no GPU; nvidia-smi says why" in done.stderr
    done = gpu_sh(*folders, PYTHON="no-such-python")
    assert done.returncode == 1
    assert "no no-such-python on PATH" in done.stderr


def test_run_cpu_collects_and_draws(tmp_path):
    done = run("run_cpu.py", "--smoke", "--parts", "gemm", "--output", str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    assert set(json.loads((tmp_path / "cpu.json").read_text())["parts"]) == {"gemm"}
    assert (tmp_path / "gemm.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("script", "options", "message"),
    [
        ("bench_gemm.py", ("--isa", "sse"), "this CPU runs"),
        ("bench_gemm.py", ("--threads", "0"), "at least 1"),
        ("bench_linear.py", ("--shapes", "gpt"), "a shape must be NxK"),
        ("bench_linear.py", ("--json", "/dev/null/out.json"), "cannot write"),
        ("run_cpu.py", ("--smoke",), "must not replace"),
        ("bench_gpu.py", ("--device", "tpu"), "must be some of cuda,cpu"),
        ("bench_gpu.py", ("--parts", "all"), "must be some of gemm,linear,step"),
    ],
    ids=["isa", "threads", "shapes", "json", "output", "device", "parts"],
)
def test_bad_options_are_refused(script, options, message):
    done = run(script, *options)
    assert done.returncode == 2
    assert message in " ".join(done.stderr.replace("│", " ").split())


def test_tasks_smoke(tmp_path):
    pytest.importorskip("peft", reason="needs the demo extra")
    path = tmp_path / "tasks.json"
    done = run("bench_tasks.py", "--smoke", "--json", str(path))
    assert done.returncode == 0, done.stdout + done.stderr
    parts = json.loads(path.read_text())["parts"]
    assert set(parts) == {"classification", "questions", "lora", "two-processes"}
    for part in parts.values():
        assert set(part["environment"]) >= ENVIRONMENT
        exact, split = (part["examples_per_second"][arm] for arm in ("fp32", "int8-split"))
        assert part["speed_against_fp32"] == pytest.approx(split / exact)
        assert part["shows"] in done.stdout
    assert parts["two-processes"]["processes"] == 2
    assert parts["lora"]["arguments"]["lora_rank"] == 8
