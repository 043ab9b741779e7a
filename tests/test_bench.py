"""The benchmarks run, check what they time, and write what they promise. No time is asserted."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).resolve().parents[1] / "bench"
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
        assert result["outliers_split"] == (4 if candidate == "int8-split" else 0)
    names = {r["candidate"] for r in content["results"]}
    assert names >= {"fp32", "bf16", "int8", "int8-split", "int_mm"}
    assert "int8-split" in table


def test_the_split_keeps_outliers_accurate(linear):
    content, _ = linear
    for kind in (("forward", "each"), ("forward", "frozen")):
        errors = {
            r["candidate"]: r["error"]
            for r in content["results"]
            if (r["pass"], r["weight"]) == kind
        }
        assert errors["int8-split"] < errors["int8"]


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
    ],
    ids=["isa", "threads", "shapes", "json", "output"],
)
def test_bad_options_are_refused(script, options, message):
    done = run(script, *options)
    assert done.returncode == 2
    assert message in " ".join(done.stderr.replace("│", " ").split())
