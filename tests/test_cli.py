"""The command line: help, version, plan, info, errors, and a run in a process of its own."""

import importlib.util
import json
import os
import subprocess
import sys

import pytest
from typer.testing import CliRunner

import int8tile
from int8tile import _core, gpus
from int8tile.cli import app
from int8tile.finetune.settings import ARM_NAMES, TASK_NAMES

OPTIONS = [  # of finetune
    "--model",
    "--task",
    "--data",
    "--text-columns",
    "--label-column",
    "--regression",
    "--metrics",
    "--max-eval",
    "--doc-stride",
    "--max-answer-length",
    "--null-threshold",
    "--arms",
    "--threshold",
    "--outlier-bits",
    "--stress",
    "--max-steps",
    "--max-train",
    "--epochs",
    "--batch-size",
    "--lr",
    "--seed",
    "--max-length",
    "--threads",
    "--save-every",
    "--keep",
    "--resume",
    "--timeout",
    "--output",
]
needs_demo = pytest.mark.skipif(
    importlib.util.find_spec("transformers") is None, reason="needs the demo extra"
)


def call(*arguments):
    return CliRunner().invoke(app, list(arguments), env={"COLUMNS": "200", "NO_COLOR": "1"})


def test_version():
    assert call("--version").output == f"int8tile {int8tile.__version__}\n"


def test_help_names_every_option():
    words = call("finetune", "--help").output
    for option in OPTIONS:
        assert option in words
    assert all(name in words for name in (*TASK_NAMES, *ARM_NAMES))


def test_plan_shows_the_three_products():
    done = call("plan", "--m", "4096", "--n", "768", "--k", "512", "--threads", "2")
    assert done.exit_code == 0
    forward, grad_input, grad_weight = (
        int8tile.plan(4096, 768, 512, threads=2),
        int8tile.plan(4096, 512, 768, outlier_capacity=0, threads=2),
        int8tile.plan(768, 512, 4096, outlier_capacity=0, threads=2),
    )
    products = {"forward": forward, "grad_input": grad_input, "grad_weight": grad_weight}
    shown = [f"{name}\n{p.text(with_verdict=False)}\n\n" for name, p in products.items()]
    shown += [f"verdict\n  {forward.verdict}\n"]
    shown += [f"{device}\n  {verdict}\n" for device, verdict in gpus.verdicts().items()]
    assert done.output == "".join(shown)


def test_the_verdict_of_a_plan_is_about_the_tokens_of_the_layer():
    # In the product for the weight's gradient m is 768: enough for "int8 is faster".
    done = call("plan", "--m", "16", "--n", "768", "--k", "768", "--isa", "portable")
    assert done.output.count("is expected") == 1
    assert "the portable kernel has no int8 dot-product instruction" in done.output
    if "avx512_vnni" in _core.supported_isas():
        done = call("plan", "--m", "16", "--n", "768", "--k", "768", "--isa", "avx512_vnni")
        assert "with fewer than 32 tokens" in done.output
        assert done.output.count("while the weight is trained") == 1


@pytest.mark.parametrize("option", [("--outlier-bits", "7"), ("--isa", "sse9"), ("--m", "-1")])
def test_bad_plans_are_refused(option):
    done = call("plan", "--m", "8", "--n", "8", "--k", "8", *option)
    assert done.exit_code == 2
    assert done.stderr.startswith("error: int8tile")
    assert done.stderr.count("\n") == 1


def test_info_tests_itself():
    done = call("info")
    assert done.exit_code == 0
    for name in ("int8tile", "torch", "transformers", "python", "cpu", "isa", "threads", "cuda"):
        assert name in done.output
    words = "has not run on a GPU yet" if _core.cuda_compiled else "no CUDA backend"
    assert words in done.output
    assert "passed" in done.output


def test_info_says_which_kernel_runs_and_whether_it_is_faster(monkeypatch):
    monkeypatch.setenv("INT8TILE_ISA", "portable")
    words = " ".join(call("info").output.split())
    assert "isa portable speed float32 is expected to be as fast or faster: the portable" in words
    if "avx512_vnni" in _core.supported_isas():
        monkeypatch.setenv("INT8TILE_ISA", "avx512_vnni")
        words = " ".join(call("info").output.split())
        assert "isa avx512_vnni speed int8 is expected to be faster than float32" in words


def test_info_fails_when_the_numbers_are_wrong(monkeypatch):
    monkeypatch.setattr("int8tile.cli.environment.self_test", lambda: {"output": 0.0})
    done = call("info")
    assert done.exit_code == 1
    assert "FAILED" in done.output


@needs_demo
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--task", "imdb"], "--task must be one of"),
        (["--arms", "fp32,int4"], "--arms must be"),
        (["--threshold", "-5"], "--threshold must be above 0"),
        (["--outlier-bits", "16"], "--outlier-bits must be 8..15; got 16"),
        (["--max-steps", "0"], "--max-steps must be at least 1"),
        (["--model", "/no/such/model"], "--model must be a directory or a hub id"),
        (["--task", "sst2", "--data", "/no/such/data"], "--data needs the sst2 files"),
        (["--task", "squad", "--data", "/no/such/data"], "--data needs the squad files"),
        (["--task", "custom", "--data", "/no", "--text-columns", "a, b"], "must hold a file train"),
        (["--metrics", "accuracy, bleu"], "--metrics must be one or more different ones of"),
        (["--task", "clm", "--data", "/no/such/file"], "--model must be a causal language model"),
    ],
)
def test_bad_input_is_one_clear_line(tmp_path, arguments, message):
    done = call("finetune", "--output", str(tmp_path / "out"), *arguments)
    assert done.exit_code == 2
    assert done.stderr.startswith("error: int8tile finetune: ")
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_unparsable_input_is_a_usage_error():
    assert call("finetune", "--lr", "fast").exit_code == 2


@needs_demo
def test_unwritable_output_is_refused(tmp_path):
    (tmp_path / "file").write_text("mine")
    done = call("finetune", "--output", str(tmp_path / "file"))
    assert done.exit_code == 2
    assert "--output must be a folder that can be written" in done.stderr
    assert (tmp_path / "file").read_text() == "mine"


def test_missing_demo_extra_names_the_command(monkeypatch, tmp_path):
    monkeypatch.setattr("int8tile.finetune.DEMO_PACKAGES", ("no_such_package",))
    done = call("finetune", "--output", str(tmp_path / "out"))
    assert done.exit_code == 1
    assert "pip install 'int8tile[demo]'" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_command_line_needs_no_demo_package():
    code = (
        "import sys; missing = ['transformers', 'matplotlib', 'datasets', 'accelerate']; "
        "sys.modules.update(dict.fromkeys(missing)); "
        "sys.argv = ['int8tile', 'info']; import int8tile.__main__ as entry; entry.main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "self-test" in done.stdout


@needs_demo
def test_finetune_in_its_own_process(tmp_path):
    for stem in ("train", "dev"):
        (tmp_path / f"{stem}.tsv").write_text("sentence\tlabel\ngood\t1\nbad\t0\n")
    command = [sys.executable, "-W", "error", "-m", "int8tile", "finetune"]
    options = ["--task", "sst2", "--data", ".", "--arms", "fp32", "--epochs", "2", "--output", "o"]
    done = subprocess.run(
        [*command, *options],
        cwd=tmp_path,
        env={**os.environ, "COLUMNS": "200"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "fp32: step 2/2" in done.stdout
    assert "backward" in done.stdout
    assert json.loads((tmp_path / "o" / "metrics.json").read_text())["arms"]["fp32"]
