"""Fine-tuning: settings, model, stress, memory, timing, output, and whole runs."""

import dataclasses
import gc
import io
import json
import math
import weakref
from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch import nn

pytest.importorskip("transformers", reason="needs the demo extra")

from int8tile import Int8TileConfig
from int8tile.finetune import (
    RunResult,
    Settings,
    UsageError,
    arms,
    check_demo_extra,
    checkpoint,
    memory,
    output,
    report,
    run,
)
from int8tile.finetune.outliers import LayerOutliers, Outliers
from int8tile.finetune.results import ArmResult
from int8tile.finetune.settings import ARM_NAMES
from int8tile.finetune.stress import COLUMNS, Stress
from int8tile.finetune.timing import StepTimer
from int8tile.finetune.train import total_steps


def write_task(folder, stems, text):
    folder.mkdir()
    for stem in ("train", *stems):
        (folder / f"{stem}.tsv").write_text(text)


# Settings.

CUSTOM = {"task": "custom", "data": Path("folder")}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": "imdb"}, "--task must be one of docstrings, sst2.*got imdb"),
        ({"arms": ("fp32", "int4")}, "--arms must be one or more different ones of.*got fp32,int4"),
        ({"arms": ("fp32", "fp32")}, "--arms must be one or more different"),
        ({"arms": ()}, "--arms must be one or more different"),
        ({"threshold": -1.0}, "--threshold must be above 0 and finite; got -1.0"),
        ({"threshold": math.nan}, "--threshold must be above 0"),
        ({"outlier_bits": 7}, "--outlier-bits must be 8..15; got 7"),
        ({"outlier_bits": 16}, "--outlier-bits must be 8..15; got 16"),
        ({"stress": 0.0}, "--stress must be above 0"),
        ({"max_steps": 0}, "--max-steps must be at least 1; got 0"),
        ({"max_train": -5}, "--max-train must be at least 1"),
        ({"epochs": 0.0}, "--epochs must be above 0"),
        ({"batch_size": 0}, "--batch-size must be at least 1"),
        ({"lr": math.inf}, "--lr must be above 0 and finite"),
        ({"seed": -1}, "--seed must be 0..4294967295"),
        ({"max_length": 2}, "--max-length must be at least 3 tokens"),
        ({"threads": 0}, "--threads must be at least 1"),
        ({"data": Path("glue")}, "--data must be left out with the docstrings task"),
        ({"max_eval": 0}, "--max-eval must be at least 1; got 0"),
        ({"max_answer_length": 0}, "--max-answer-length must be at least 1; got 0"),
        ({"task": "clm", "model": "m"}, "--data must be a text file or a folder for the clm task"),
        ({"task": "clm", "data": Path("a.txt")}, "--model must be a causal language model for the"),
        ({"task": "custom"}, "--data must be a folder for the custom task; got None"),
        ({"text_columns": ("a",)}, "--text-columns must be left out unless the task is custom"),
        ({"label_column": "a"}, "--label-column must be left out unless the task is custom"),
        ({"task": "sst2", "regression": True}, "--regression must be left out unless the task is"),
        (CUSTOM | {"text_columns": ("a", "b", "c")}, "--text-columns must be one or two different"),
        (CUSTOM | {"text_columns": ("a", "a")}, "one or two different columns; got a,a"),
        (CUSTOM | {"text_columns": ("a", "")}, "one or two different columns; got a,"),
        ({"metrics": ("bleu",)}, "--metrics must be one or more different ones of accuracy.*bleu"),
        ({"metrics": ("f1", "f1")}, "--metrics must be one or more different"),
        ({"metrics": ()}, "--metrics must be one or more different"),
        ({"task": "squad", "metrics": ("f1",)}, "--metrics must be left out with the squad task"),
        ({"task": "squad", "max_length": 15}, "--max-length must be at least 16 for squad; got 15"),
        ({"task": "squad", "max_length": 64, "doc_stride": 39}, "be 0..38 with 64 tokens; got 39"),
        ({"task": "squad", "doc_stride": -1}, "--doc-stride must be 0..315 with 384 tokens"),
        ({"doc_stride": 8}, "--doc-stride must be left out unless the task is squad or squad_v2"),
        ({"task": "squad_v2", "null_threshold": math.nan}, "--null-threshold must be finite"),
    ],
)
def test_bad_settings_are_refused(changes, message):
    with pytest.raises(UsageError, match=message):
        Settings(**changes)


@pytest.mark.parametrize("tokens", [16, 32, 100, 384, 512])
def test_default_windows_move_on(tokens):
    settings = Settings(task="squad", max_length=tokens)
    assert settings.question_tokens + settings.stride < tokens - 4


def test_settings_are_json():
    arguments = Settings(task="rte", data=Path("glue")).arguments()
    assert json.loads(json.dumps(arguments))["data"] == "glue"
    assert arguments["max_length"] == 128
    assert Settings(task="squad").arguments()["max_length"] == 384


@pytest.mark.parametrize(
    ("changes", "steps"),
    [({}, 8), ({"max_steps": 3}, 3), ({"max_steps": 99}, 8), ({"epochs": 0.1}, 1)],
)
def test_total_steps(changes, steps):
    assert total_steps(Settings(**{"batch_size": 32, "epochs": 2.0, **changes}), 100) == steps


def test_arms_are_the_configs_they_name():
    settings = Settings(threshold=4.0, outlier_bits=10)
    assert arms.config("fp32", settings) is None
    assert arms.config("bf16", settings) is None
    assert arms.config("int8", settings) == Int8TileConfig(threshold=None, grad_split=False)
    split = arms.config("int8-split", settings)
    assert split == Int8TileConfig(threshold=4.0, outlier_bits=10)
    gain = arms.config("int8-gain", settings)
    assert gain == dataclasses.replace(split, outlier_gain=True)
    assert arms.config("paper-int8", settings).threshold is None
    paper = arms.config("paper-split", settings)
    assert (paper.threshold, paper.granularity, paper.scale) == (4.0, "tensor", "pow2")


def test_missing_demo_extra_is_named(monkeypatch):
    monkeypatch.setattr("int8tile.finetune.DEMO_PACKAGES", ("transformers", "no_such_package"))
    with pytest.raises(ImportError, match=r"needs no_such_package; pip install 'int8tile\[demo\]'"):
        check_demo_extra(Settings())


# The model.


@pytest.mark.parametrize("model", ["/no/such/folder", "./nothing", "a/b/c"])
def test_missing_model_is_refused(model):
    with pytest.raises(UsageError, match="--model must be a directory or a hub id"):
        checkpoint.find_model(model)


def test_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"has no config\.json"):
        checkpoint.find_model(str(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UsageError, match="cannot load --model"):
        checkpoint.load_tokenizer(checkpoint.find_model(str(tmp_path)), 128)


def test_too_long_examples_are_refused():
    with pytest.raises(UsageError, match=r"--max-length must be at most 512 for .*; got 9999"):
        checkpoint.load_tokenizer(checkpoint.find_model(None), 9999)


def test_a_head_for_other_classes_is_replaced(tiny_bert, tmp_path):
    from transformers import AutoModelForSequenceClassification as AutoClassifier

    AutoClassifier.from_pretrained(tiny_bert, num_labels=5).save_pretrained(tmp_path)
    model = checkpoint.load_model(AutoClassifier, str(tmp_path), 0, num_labels=3)
    again = checkpoint.load_model(AutoClassifier, str(tmp_path), 0, num_labels=3)
    assert model.classifier.weight.shape == (3, 64)
    assert torch.equal(model.classifier.weight, again.classifier.weight)
    assert torch.equal(
        model.bert.embeddings.word_embeddings.weight,
        AutoClassifier.from_pretrained(tiny_bert).bert.embeddings.word_embeddings.weight,
    )


# Stress, memory and timing.


def small_model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(96, 64), nn.GELU(), nn.Linear(64, 64), nn.Linear(64, 3))


@pytest.mark.parametrize("factor", [20.0, 64.0])
def test_stress_keeps_the_function(factor):
    model, x = small_model(), torch.randn(5, 7, 96)
    before, weights = model(x), [p.clone() for p in model.parameters()]
    stress = Stress(model, factor)
    assert len(stress) == 3
    seen = []
    model[0].register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    torch.testing.assert_close(model(x), before, rtol=0, atol=2e-6)
    enlarged = (seen[0] / x).mean(dim=(0, 1)).round()
    assert sorted(enlarged.tolist()) == [1.0] * (96 - COLUMNS) + [factor] * COLUMNS
    stress.remove()
    for now, then in zip(model.parameters(), weights, strict=True):
        torch.testing.assert_close(now, then, rtol=3e-7, atol=0)
    torch.testing.assert_close(model(x), before, rtol=0, atol=2e-6)


def test_stress_leaves_tied_and_narrow_linears_alone():
    model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(8, 64))
    model[1].weight = model[0].weight
    assert len(Stress(model, 8.0)) == 0


def test_saved_bytes_of_one_class_counts_what_its_modules_save():
    model = nn.Sequential(nn.Linear(32, 16), nn.Sigmoid(), nn.Linear(16, 8), nn.Sigmoid())
    x = torch.randn(10, 32)
    kept = memory.saved_bytes(model, lambda: model(x).sum(), within=nn.Linear)
    assert kept == 4 * (10 * 32 + 10 * 16)
    assert memory.saved_bytes(model, lambda: model(x).sum()) == kept + 4 * 10 * 8
    assert not any(module._forward_hooks for module in model)


def test_saved_bytes_leaves_no_graph_behind():
    seen = []

    def loss():
        y = torch.ones(9, requires_grad=True).exp()  # a node that saves its own output
        seen.append(weakref.ref(y))
        return y.sum()

    assert memory.saved_bytes(nn.Module(), loss) == 4 * 9
    gc.collect()
    assert seen[0]() is None


def test_saved_bytes_counts_each_activation_once():
    linear = nn.Linear(32, 16)
    x = torch.randn(10, 32)
    # linear saves x [10, 32]; exp saves its result [10, 16]; the weight does not count
    assert memory.saved_bytes(linear, lambda: linear(x).exp().sum()) == 4 * (10 * 32 + 10 * 16)
    # two linears that read one input keep it once
    two = nn.ModuleList([nn.Linear(32, 16), nn.Linear(32, 16)])
    assert memory.saved_bytes(two, lambda: (two[0](x) + two[1](x)).sum()) == 4 * 10 * 32
    assert linear.weight.grad is None


def test_measuring_memory_draws_no_random_numbers():
    state = torch.get_rng_state()
    memory.saved_bytes(nn.Module(), lambda: nn.functional.dropout(torch.ones(9)))
    assert torch.equal(torch.get_rng_state(), state)


def test_int8_saves_less_for_backward():
    import int8tile

    model = nn.Sequential(nn.Linear(256, 256), nn.Linear(256, 256))
    x = torch.randn(64, 256)
    kept = memory.saved_bytes(model, lambda: model(x).sum())
    int8tile.convert_(model, int8tile.Int8TileConfig(threshold=None))
    assert memory.saved_bytes(model, lambda: model(x).sum()) < 0.4 * kept


def test_speed_leaves_the_first_steps_out():
    timer = StepTimer()
    timer.seconds = [9.0] * 5 + [1.0, 1.0, 2.0]
    # 50 examples are batches of 20, 20 and 10: the last three steps are those
    assert timer.examples_per_second(50, 20) == pytest.approx((10 + 20 + 20) / 4)
    timer.seconds = [2.0]
    assert timer.examples_per_second(50, 20) == 10


# Output.


def test_output_is_all_or_nothing(tmp_path):
    folder = tmp_path / "deep" / "out"
    with pytest.raises(RuntimeError), output.staging(folder) as new:  # noqa: PT012
        (new / "metrics.json").write_text("half")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_output_stays_as_it_was_where_a_move_fails(tmp_path, monkeypatch):
    for name in ("a", "c"):
        (tmp_path / name).write_text("before")
    move = Path.rename

    def rename(path, target):
        if path.parent.name == "new" and path.name == "c":
            raise OSError
        return move(path, target)

    monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(OSError), output.staging(tmp_path) as new:  # noqa: PT011, PT012
        for name in "abc":
            (new / name).write_text("after")
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == {"a": "before", "c": "before"}


def test_output_replaces_its_own_files_only(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "old.bin").touch()
    (tmp_path / "notes.txt").touch()
    with output.staging(tmp_path) as new:
        (new / "model").mkdir()
        (new / "model" / "new.bin").touch()
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["model", "new.bin", "notes.txt"]


def test_unwritable_output_is_refused(tmp_path):
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "out"):
        with pytest.raises(UsageError, match="--output must be a folder that can be written"):
            output.check_writable(folder)
    output.check_writable(tmp_path / "a" / "b")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_numbers_that_json_lacks_become_null():
    arm = ArmResult(0.5, {"accuracy": 0.5}, math.nan, 1.0, math.inf, 7, [], [])
    arguments = {"pairs": [(1, math.nan)]}
    content = RunResult({"fp32": arm}, "accuracy", "examples", {}, arguments).to_json()
    assert content["arguments"] == {"pairs": [[1, None]]}
    assert content["arms"]["fp32"]["loss"] is None
    assert content["arms"]["fp32"]["examples_per_second"] is None
    assert content["arms"]["fp32"]["saved_bytes"] == 7


def test_the_table_fits_80_columns():
    layers = {"mlp": LayerOutliers(32, 4, 4 * 123, 4 * 91)}
    arm = ArmResult(9.876, {}, 1.2, 1.0, 321.0, 453_800_000, [], [], None, Outliers(layers))
    result = RunResult(dict.fromkeys(ARM_NAMES, arm), "perplexity", "windows", {}, {"task": "clm"})
    console = Console(width=80, file=io.StringIO())
    console.print(report.table(result))
    shown = console.file.getvalue()
    assert "\u2026" not in shown  # an ellipsis
    for word in (
        "paper-split",
        "9.8760",
        "windows",
        "per s",
        "1.00x",
        "453.8 MB",
        "123.0/91.0",
    ):
        assert word in shown


def test_metrics_beside_the_headline_are_shown():
    one = ArmResult(0.5, {"f1": 0.5, "exact_match": 0.25}, 1.0, 1.0, 1.0, 7, [], [])
    result = RunResult({"fp32": one, "int8": one}, "f1", "windows", {}, {"task": "squad"})
    line = "f1 0.5000, exact_match 0.2500"
    assert report.notes(result) == [f"fp32: {line}", f"int8: {line}"]
    alone = ArmResult(0.5, {"f1": 0.5}, 1.0, 1.0, 1.0, 7, [], [])
    assert report.notes(RunResult({"fp32": alone}, "f1", "windows", {}, {})) == []


# The whole job.

ARM_KEYS = [
    *("metric", "metrics", "loss", "train_seconds", "examples_per_second", "saved_bytes"),
    *("conversion", "outliers"),
]


def check_run(folder, arms_run, metric_names):
    """Check metrics.json, curves.png and the saved model of a finished run."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    assert sorted(p.name for p in folder.iterdir()) == ["curves.png", "metrics.json", "model"]
    content = json.loads((folder / "metrics.json").read_text())
    assert list(content) == ["arms", "environment", "arguments"]
    assert list(content["arms"]) == arms_run
    for arm in content["arms"].values():
        assert list(arm) == ARM_KEYS
        assert list(arm["metrics"]) == metric_names
        assert arm["metric"] == arm["metrics"][metric_names[0]]
        assert arm["loss"] > 0
        assert arm["train_seconds"] > 0
        assert arm["examples_per_second"] > 0
        assert arm["saved_bytes"] > 0
    assert (folder / "curves.png").read_bytes()[:4] == b"\x89PNG"
    model = AutoModelForSequenceClassification.from_pretrained(folder / "model")
    batch = AutoTokenizer.from_pretrained(folder / "model")("Some text.", return_tensors="pt")
    assert torch.isfinite(model(**batch).logits).all()
    assert not any("int8tile" in type(module).__module__ for module in model.modules())
    return content


def test_tiny_run_end_to_end(tmp_path):
    threads = torch.get_num_threads()
    settings = Settings(
        arms=("fp32", "int8-split"), max_steps=3, max_train=64, batch_size=8, max_length=32,
        stress=4.0, threads=1, output=tmp_path / "out",
    )  # fmt: skip
    result = run(settings)
    content = check_run(tmp_path / "out", ["fp32", "int8-split"], ["accuracy"])
    exact, split = content["arms"]["fp32"], content["arms"]["int8-split"]
    assert split["loss"] == pytest.approx(exact["loss"], rel=0.05)
    assert split["loss"] != exact["loss"]
    assert split["saved_bytes"] < exact["saved_bytes"]
    assert [step for step, _ in result.arms["fp32"].train_curve] == [1, 2, 3]
    assert result.arms["fp32"].eval_curve[-1][0] == 3
    assert content["arguments"]["max_steps"] == 3
    assert content["environment"]["data"]["train_examples"] == 64
    assert torch.get_num_threads() == threads


def test_two_runs_agree(tmp_path, tiny_bert):
    rows = "".join(f"a film of {i}\t{i % 2}\n" for i in range(16))
    write_task(tmp_path / "glue", ["dev"], "sentence\tlabel\n" + rows)
    common = {"model": tiny_bert, "task": "sst2", "data": tmp_path / "glue", "batch_size": 8}
    arms_run = ("fp32", "int8-split")
    first = run(Settings(**common, arms=arms_run, output=tmp_path / "a"))
    again = run(Settings(**common, arms=arms_run[::-1], output=tmp_path / "b"))
    for arm in arms_run:
        assert first.arms[arm].train_curve == again.arms[arm].train_curve
        assert first.arms[arm].loss == again.arms[arm].loss


def test_regression_run(tmp_path, tiny_bert):
    rows = "".join(f"a film of {i}\tthe film {i % 7}\t{i % 6}\n" for i in range(24))
    write_task(tmp_path / "glue", ["dev"], "sentence1\tsentence2\tscore\n" + rows)
    chosen = ("bf16", "int8-gain", "paper-split")
    run(
        Settings(
            model=tiny_bert, task="stsb", data=tmp_path / "glue", arms=chosen, max_steps=2,
            batch_size=8, output=tmp_path / "out",
        )
    )  # fmt: skip
    check_run(tmp_path / "out", list(chosen), ["pearson", "spearman"])


def test_mnli_run_reports_both_sets(tmp_path, tiny_bert):
    rows = "".join(f"a {i}\tb {i}\t{i % 3}\n" for i in range(16))
    write_task(
        tmp_path / "glue", ["dev_matched", "dev_mismatched"], "premise\thypothesis\tlabel\n" + rows
    )
    settings = Settings(
        model=tiny_bert, task="mnli", data=tmp_path / "glue", arms=("int8",),
        max_steps=1, batch_size=4, output=tmp_path / "out",
    )  # fmt: skip
    run(settings)
    check_run(tmp_path / "out", ["int8"], ["accuracy", "accuracy_mismatched"])


@pytest.mark.slow
def test_default_run_trains_int8_split_as_well_as_fp32(tmp_path):
    run(Settings(output=tmp_path / "out"))
    content = check_run(tmp_path / "out", ["fp32", "int8", "int8-split"], ["accuracy"])
    exact, split = content["arms"]["fp32"], content["arms"]["int8-split"]
    assert exact["metric"] > 0.75
    assert split["loss"] == pytest.approx(exact["loss"], rel=0.03)
    assert split["saved_bytes"] < 0.8 * exact["saved_bytes"]
