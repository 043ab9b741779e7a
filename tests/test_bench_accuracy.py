"""bench_accuracy runs, keeps finished runs and no half ones, and sums up what is there."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("transformers")

BENCH = Path(__file__).resolve().parents[1] / "bench"
SCRIPT = str(BENCH / "bench_accuracy.py")
SECONDS = 300  # a guard against hanging, not a measurement


@pytest.fixture(autouse=True)
def _bench_on_path(monkeypatch):
    monkeypatch.syspath_prepend(BENCH)


def command(folder, table, *options):
    places = ("--work", str(folder / "work"), "--output", str(folder / "out"))
    return [sys.executable, SCRIPT, table, "--smoke", *places, *options]


def call(folder, table, *options):
    done = subprocess.run(
        command(folder, table, *options),
        capture_output=True, text=True, timeout=SECONDS, check=False,
    )  # fmt: skip
    return done, done.stdout + done.stderr


def run_files(folder):
    return {file: file.stat().st_mtime_ns for file in (folder / "work").glob("*.json")}


@pytest.fixture(scope="module")
def scales(tmp_path_factory):
    folder = tmp_path_factory.mktemp("accuracy")
    done, text = call(folder, "scales")
    assert done.returncode == 0, text
    return folder, done.stdout


def test_smoke_trains_and_compares_gradients(scales):
    folder, table = scales
    content = json.loads((folder / "out" / "accuracy_scales.json").read_text())
    assert content["missing"] == 0
    assert content["arguments"]["smoke"] is True
    kinds = {(r["kind"], r["arm"], r["stress"]) for r in content["results"]}
    arms = ("fp32", "row absmax nearest", "paper 15 bits")
    assert kinds == {
        (kind, arm, stress) for kind in ("train", "gradient") for arm in arms for stress in (1, 60)
    }
    for result in content["results"]:
        if result["kind"] == "gradient":
            assert (result["cosine_layers"] == 1) == (result["arm"] == "fp32")
            assert result["step_against_fp32"]["median"] > 0
            split = result["arm"] != "fp32"
            assert (result["outliers"] is not None) == split
            assert not split or (result["outliers"]["found"] > 0) == (result["stress"] == 60)
    assert all(arm in table for arm in arms)
    assert (folder / "out" / "accuracy_scales.png").read_bytes().startswith(b"\x89PNG")


def test_a_run_file_says_what_it_is_of(scales):
    folder, _ = scales
    runs = [json.loads(file.read_text()) for file in run_files(folder)]
    trained = [run for run in runs if run["identity"]["kind"] == "train"]
    assert len(runs) == 2 * len(trained) == 12
    for run in trained:
        assert len(run["results"]["losses"]) == len(run["results"]["gradient_norms"]) == 5
        assert run["environment"]["int8tile"] == run["identity"]["int8tile"]
        assert {"date", "total_seconds", "constant_loss", "metric"} <= set(run)
        assert 0 < run["results"]["train_seconds"] < run["total_seconds"]
        assert run["identity"]["recipe"]["steps"] == 5


def test_finished_runs_are_shared_and_not_repeated(scales):
    folder, _ = scales
    before = run_files(folder)
    done, text = call(folder, "gain", "--arms", "columns")
    assert done.returncode == 0, text
    assert "runs to make" not in text
    assert run_files(folder) == before


def alive(group):
    """The processes of a group, but for those that have ended and nobody has asked for."""
    found = []
    for file in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, its_group, *_ = file.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue  # ended in between
        if int(its_group) == group and state != "Z":
            found.append(file.parent.name)
    return found


@pytest.fixture
def interruptible():
    """What a background job of a shell starts would ignore SIGINT."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_an_interrupt_loses_only_the_runs_in_progress(tmp_path):
    with subprocess.Popen(
        command(tmp_path, "tasks", "--jobs", "1"),
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
    ) as process:  # fmt: skip
        end = time.monotonic() + SECONDS
        while not run_files(tmp_path) and time.monotonic() < end and process.poll() is None:
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        text, _ = process.communicate(timeout=SECONDS)
    assert process.returncode == 130, text
    assert "the same command goes on" in text
    while alive(process.pid) and time.monotonic() < end:
        time.sleep(0.05)
    assert not alive(process.pid)  # no worker is left
    kept = run_files(tmp_path)
    assert 0 < len(kept) < 6
    assert all(json.loads(file.read_text())["results"]["losses"] for file in kept)
    assert not list((tmp_path / "work").glob("*.partial"))

    done, text = call(tmp_path, "tasks", "--show")
    assert done.returncode == 0, text
    assert f"{6 - len(kept)} of 6 runs are missing" in text
    content = json.loads((tmp_path / "out" / "accuracy_tasks.json").read_text())
    assert content["missing"] == 6 - len(content["results"]) == 6 - len(kept)
    assert run_files(tmp_path) == kept


def test_a_part_of_a_table_is_shown_and_not_written(scales):
    folder, _ = scales
    results = {file: file.stat().st_mtime_ns for file in (BENCH / "results").iterdir()}
    done = subprocess.run(
        [sys.executable, SCRIPT, "scales", "--smoke", "--show", "--work", str(folder / "work")],
        capture_output=True, text=True, timeout=SECONDS, check=True,
    )  # fmt: skip
    assert "row absmax nearest" in done.stdout
    assert "--output FOLDER writes its JSON and plot" in done.stdout
    assert {file: file.stat().st_mtime_ns for file in (BENCH / "results").iterdir()} == results


def test_a_failed_write_leaves_the_file_that_was_there(tmp_path, monkeypatch):
    import accuracy_runs

    file = tmp_path / "work" / "run.json"
    accuracy_runs.write(file, {"loss": float("nan")})

    def fail(path, text, **_):
        with path.open("w") as partial:
            partial.write(text[: len(text) // 2])
        raise OSError("disk full")

    monkeypatch.setattr(Path, "write_text", fail)
    with pytest.raises(OSError, match="disk full"):
        accuracy_runs.write(file, {"loss": 1.0})
    assert accuracy_runs.read(file) == {"loss": None}
    assert list(file.parent.iterdir()) == [file]


def make_run(**changes):
    from accuracy_arms import ARMS
    from accuracy_runs import TRAIN, Recipe, Run

    return replace(Run(TRAIN, ARMS["int8-split"], "sst2", 1, 0, Recipe()), **changes)


@pytest.fixture
def data(tmp_path):
    folder = tmp_path / "data" / "glue" / "sst2"
    folder.mkdir(parents=True)
    (folder / "train.tsv").write_text("sentence\tlabel\n")
    return tmp_path / "data"


def test_a_changed_setting_is_another_run(data, tmp_path):
    from accuracy_arms import ARMS, int8
    from accuracy_runs import GRADIENT, Recipe, Source, _digest_files

    source = Source(data)
    file = make_run().file(source, tmp_path)
    others = [
        make_run(kind=GRADIENT),
        make_run(arm=ARMS["paper-split"]),
        make_run(arm=int8(threshold=4.0)),
        make_run(stress=20),
        make_run(seed=1),
        make_run(recipe=Recipe(steps=101)),
        make_run(recipe=Recipe(lr=1e-4)),
        make_run(recipe=Recipe(max_eval=10)),
    ]
    names = {run.file(source, tmp_path) for run in others}
    assert len(names | {file}) == 1 + len(others)
    assert make_run().file(Source(data, "other/model"), tmp_path) != file
    assert make_run().file(Source(data / "glue"), tmp_path) == file  # the same data
    assert make_run(stress=1.0).file(source, tmp_path) == file
    (data / "glue" / "sst2" / "train.tsv").write_text("sentence\tlabel\na\t1\n")
    _digest_files.cache_clear()
    assert make_run().file(source, tmp_path) != file


def test_kept_runs_are_found_without_their_data(data, tmp_path):
    from accuracy_runs import Source, kept, write

    source, run = Source(data), make_run()
    write(run.file(source, tmp_path), {"identity": run.identity(source)})
    other = make_run(task="rte")
    assert run.file(kept(tmp_path, None), tmp_path).exists()
    assert other.file(kept(tmp_path, None), tmp_path) == other.file(Source(), tmp_path)
    assert not run.file(kept(tmp_path, "other/model"), tmp_path).exists()


def test_arms_that_compute_the_same_are_one():
    from accuracy_arms import ARMS, PAPER, int8, scale_grid, threshold_grid

    grid = threshold_grid((5.0, None), (8, 12))
    assert grid["gamma 5 12 bits"] == ARMS["columns"]
    assert grid["no split"] == ARMS["int8"]
    assert len(set(grid.values())) == 4
    assert scale_grid((12,))["tensor pow2 stochastic"] == ARMS["paper-split"]
    assert int8(threshold=None, **PAPER) == ARMS["paper-int8"] != ARMS["paper-split"]


def test_an_arm_that_replaces_linear_layers_is_refused(monkeypatch):
    from torch import nn

    import accuracy_arms

    def replaced(model):
        model[0] = nn.Identity()

    monkeypatch.setitem(accuracy_arms.FORMATS, "odd", replaced)
    with pytest.raises(TypeError, match=r"odd: 1 nn.Linear must stay such; got 0"):
        accuracy_arms.Arm("odd").convert(nn.Sequential(nn.Linear(2, 2)))


def row(arm, seed, metric, **more):
    head = {"kind": "train", "arm": arm, "task": "sst2", "stress": 1, "seed": seed}
    return {**head, "metric": metric, **more}


def test_differences_are_paired_by_seed():
    from accuracy_summary import mean, percent

    rows = [row("fp32", 0, 0.80), row("fp32", 1, 0.90), row("fp32", 2, 0.10)]
    rows += [row("int8", 0, 0.79), row("int8", 1, 0.87), row("int8", 3, None)]
    place = {"kind": "train", "task": "sst2", "stress": 1}
    int8 = mean(rows, percent, arm="int8", **place)
    assert (int8.count, int8.pairs) == (2, 2)
    assert int8.mean == pytest.approx(83)
    assert int8.deviation == pytest.approx(8 / 2**0.5)
    assert int8.difference == pytest.approx(-2)  # of -1 and -3
    assert int8.error == pytest.approx(1)
    assert mean(rows, percent, arm="fp32", **place).difference is None
    one = mean(rows[:1] + rows[3:4], percent, arm="int8", **place)
    assert (one.difference, one.error) == (pytest.approx(-1), None)


def test_the_documented_recipes_are_those_in_use():
    from accuracy_figures import TASK_NAMES
    from accuracy_runs import RECIPES
    from accuracy_specs import ALL_TASKS

    text = (BENCH / "ACCURACY.md").read_text(encoding="utf-8")
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines()]
    for task in ALL_TASKS:
        recipe, name = RECIPES[task], TASK_NAMES[task].partition(",")[0]
        (row,) = [each for each in rows if len(each) == 8 and each[0] == name]
        steps, batch, rate, tokens, grouped, *_ = row[1:]
        assert (int(steps), int(batch), float(rate)) == (
            recipe.steps,
            recipe.batch_size,
            recipe.lr,
        )
        assert int(tokens.split()[0]) == recipe.max_length
        assert grouped == ("yes" if recipe.group_by_length else "no")


def test_bars_are_of_tasks_that_have_every_arm_under_the_largest_stress():
    from accuracy_plots import by_task

    rows = [row("fp32", 0, 0.8), row("int8", 0, 0.7)]  # another stress
    rows += [row(arm, s, m, stress=60) for s in (0, 1) for arm, m in (("fp32", 0.8), ("int8", 0.6))]
    rows += [row("int8-split", s, 0.81, stress=60) for s in (0, 1)]
    rows += [{**each, "task": "mrpc"} for each in rows if each["arm"] != "int8-split"]
    (axes,) = by_task(rows).axes
    heights = [bar.get_height() for bars in axes.containers[1::2] for bar in bars]
    assert heights == pytest.approx([-20, 1])
    (label,) = [each.get_text() for each in axes.get_xticklabels()]
    assert label == "SST-2\nfloat32: 80.0\n2 seeds"
    assert by_task([row("fp32", 0, 0.8)]) is None


def test_the_mean_of_tasks_needs_all_of_them():
    from accuracy_summary import mean_of_tasks, percent

    rows = [row("fp32", 0, 0.8), row("int8", 0, 0.7)]
    rows += [{**each, "task": "rte", "metric": 0.6} for each in rows]
    place = {"kind": "train", "stress": 1, "arm": "int8"}
    assert mean_of_tasks(rows, ["sst2", "rte"], percent, **place).difference == pytest.approx(-5)
    assert mean_of_tasks(rows[:3], ["sst2", "rte"], percent, **place).difference is None


def test_curves_are_smoothed_and_judged():
    from accuracy_curves import diverged, goal, reach, smoothed

    losses = [5.0, 4.0, 3.0, 2.0, 1.0, 1.0, 1.0, 1.0, 1.0, 3.0]
    smooth = smoothed(losses)
    assert smooth[:3] == [None, 4.5, 3.5]
    assert smooth[-1] == 2.0
    assert smoothed([1.0] * 9 + [None])[-2:] == [1.0, None]
    results = {"losses": losses, "gradient_norms": [1.0], "loss": 1.0}
    assert not diverged(results, 0.8, 0.69)
    assert diverged(results, 0.84, 0.69)
    assert diverged({**results, "gradient_norms": [None]}, 0.1, 0.69)
    assert diverged({**results, "loss": None}, 0.1, 0.69)
    runs = [row("fp32", 0, 1, smoothed=smooth), row("int8", 0, 1, smoothed=[None, 3.0, 1.9])]
    assert goal(runs, runs[1]) == 2.0
    assert (reach(runs, runs[0]), reach(runs, runs[1])) == (5, 3)
    assert reach(runs[1:], runs[1]) is None


def test_a_plan_starts_with_the_most_telling_runs():
    from accuracy_specs import SPECS, Plan

    cells = Plan(SPECS["tasks"], seeds=2).cells()
    assert len(cells) == len(set(cells)) == 5 * 3 * 5 * 2
    assert {cell.run.seed for cell in cells[:75]} == {0}
    assert [str(cell) for cell in cells[:2]] == [
        "sst2 x60 seed 0 fp32",
        "sst2 x60 seed 0 paper-int8",
    ]
    assert list(dict.fromkeys(c.run.task for c in cells)) == [
        "sst2",
        "mrpc",
        "qnli",
        "rte",
        "squad",
    ]
    kinds = [cell.run.kind for cell in Plan(SPECS["gain"], seeds=1).cells()]
    assert kinds == ["gradient"] * 32 + ["train"] * 32


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("tables",), "is not one of"),
        (("tasks", "--smoke", "--output", "{results}"), "must not replace"),
        (("tasks", "--stress", "0"), "comma-separated numbers above 0; got '0'"),
        (("tasks", "--arms", "int4"), "got 'int4'"),
        (("tasks", "--data", "{empty}"), "--data must hold a folder sst2"),
    ],
    ids=["table", "output", "stress", "arms", "data"],
)
def test_bad_options_are_refused(options, message, tmp_path):
    words = [word.format(empty=tmp_path, results=BENCH / "results") for word in options]
    more = [] if "--smoke" in words else ["--output", str(tmp_path / "out")]
    done = subprocess.run(
        [sys.executable, SCRIPT, *words, *more],
        capture_output=True, text=True, timeout=SECONDS, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert message in " ".join((done.stderr + done.stdout).replace("│", " ").split())
