"""Runs cut in two: the same losses as in one run, and what a checkpoint must be."""

import json
import shutil

import pytest
import torch

pytest.importorskip("transformers", reason="needs the demo extra")

from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from int8tile.finetune import UsageError, run
from int8tile.finetune.checkpoints import Checkpoints, Record
from int8tile.finetune.interruption import InterruptedRun
from int8tile.finetune.results import ArmResult
from int8tile.finetune.timing import StepTimer
from runs import curves, names, save_bert, save_task, settings, signal_at

ARMS = ("int8-split", "paper-split")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model with dropout, and data."""
    folder = tmp_path_factory.mktemp("resume")
    save_bert(folder / "bert")
    save_task(folder / "sst2", evaluation=20)
    return folder


@pytest.fixture(scope="module")
def whole(folder):
    """A run that was not cut."""
    return run(settings(folder, "whole", arms=ARMS))


def interrupt(each, step, **where):
    with pytest.MonkeyPatch.context() as patch:
        signal_at(patch, step, **where)
        with pytest.raises(InterruptedRun):
            run(each)


@pytest.fixture(scope="module")
def made(folder):
    each = settings(folder, "made", save_every=3, keep=3)
    interrupt(each, 6)
    return each.output


@pytest.fixture
def cut(made, tmp_path):
    """Checkpoints of steps 3, 6 and 7 of one arm."""
    shutil.copytree(made, tmp_path / "cut")
    saved = tmp_path / "cut" / "checkpoints" / "int8-split"
    assert names(saved) == ["checkpoint-3", "checkpoint-6", "checkpoint-7"]
    return saved


@pytest.fixture
def again(folder, tmp_path):
    """Settings that go on with `cut`."""
    common = {"save_every": 3, "keep": 3, "resume": True}
    return lambda **changes: settings(folder, tmp_path / "cut", **{**common, **changes})


# The same run.


@pytest.mark.parametrize(
    ("step", "save_every", "where"),
    [
        (3, None, {}),  # in an epoch
        (2, 2, {}),  # at its end
        (4, 3, {}),  # with an evaluation due
        (5, 3, {"method": "prediction_step"}),  # in that evaluation
        (17, None, {}),  # in the last step
        (18, None, {"method": "prediction_step"}),  # in the last evaluation
        (8, 3, {"arm": 1}),  # in the second arm, of stochastic rounding
    ],
)
def test_a_run_cut_in_two_is_the_same_run(folder, whole, tmp_path, again, step, save_every, where):
    arms = ARMS if where.get("arm") else ARMS[:1]
    output = tmp_path / "cut"
    interrupt(again(arms=arms, save_every=save_every, resume=False), step, **where)
    assert names(output) == ["checkpoints"]
    result = run(again(arms=arms, save_every=save_every))
    assert curves(result) == {arm: curves(whole)[arm] for arm in arms}
    assert len(result.arms[arms[-1]].train_curve) == 18  # every step
    kept = ["checkpoints"] if save_every else []
    assert names(output) == [*kept, "curves.png", "metrics.json", "model"]
    if arms == ARMS:
        one, other = (
            load_file(each / "model" / "model.safetensors") for each in (folder / "whole", output)
        )
        assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("grouped", [False, True])
def test_a_run_cut_in_three_is_the_same_run(folder, tmp_path, again, grouped):
    stressed = {"arms": ("paper-split",), "stress": 3.0, "epochs": 3.0, "group_by_length": grouped}
    whole = run(settings(folder, tmp_path / "whole", **stressed))
    interrupt(again(**stressed, resume=False), 1)
    interrupt(again(**stressed), 6)
    assert curves(run(again(**stressed))) == curves(whole)


def test_a_checkpoint_may_be_older_than_a_setting(cut, again, whole):
    for file in cut.rglob("int8tile.json"):
        content = json.loads(file.read_text())
        del content["identity"]["group_by_length"]
        file.write_text(json.dumps(content))
    assert curves(run(again())) == {"int8-split": curves(whole)["int8-split"]}
    with pytest.raises(UsageError, match=r"--group-by-length is True and was False$"):
        run(again(group_by_length=True, resume=True))


def test_finished_arms_are_not_repeated(monkeypatch, tmp_path, again):
    few = {"arms": ("fp32", "int8"), "save_every": None, "epochs": 2.0}
    interrupt(again(**few, resume=False), 2, arm=1)
    saved = tmp_path / "cut" / "checkpoints"
    assert names(saved) == ["fp32", "int8"]
    assert names(saved / "fp32") == ["result.json"]
    kept = json.loads((saved / "fp32" / "result.json").read_text())["result"]
    signal_at(monkeypatch, 0)  # the first step of an arm that begins: there is none
    result = run(again(**few))
    assert result.arms["fp32"].train_seconds == kept["train_seconds"]
    assert result.arms["int8"].conversion.converted == 14


def test_results_are_read_as_they_were_written(whole, again):
    store = Checkpoints(again(arms=("int8-split", "fp32")), 17)
    result = whole.arms["int8-split"]
    store.finish("int8-split", result)
    assert store.find() == {"int8-split": result}


# Checkpoints.


def test_a_checkpoint_is_an_ordinary_one(cut):
    model, loaded = AutoModelForSequenceClassification.from_pretrained(
        cut / "checkpoint-3", output_loading_info=True
    )
    assert not loaded["missing_keys"]
    batch = AutoTokenizer.from_pretrained(cut / "checkpoint-3")("a film", return_tensors="pt")
    assert torch.isfinite(model(**batch).logits).all()
    assert {"optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"} <= set(
        names(cut / "checkpoint-3")
    )


def test_the_newest_checkpoints_are_kept(tmp_path, again):
    run(again(save_every=2, keep=2, epochs=2.0, resume=False))
    saved = tmp_path / "cut" / "checkpoints"
    assert names(saved) == ["int8-split"]
    assert names(saved / "int8-split") == ["checkpoint-4", "checkpoint-6", "result.json"]
    with pytest.raises(
        UsageError, match=r"--resume has nothing left to do: the run in .* finished"
    ):
        run(again(epochs=2.0))


def truncate(file):
    file.write_bytes(file.read_bytes()[:-1])


@pytest.mark.parametrize(
    ("name", "harm", "why"),
    [
        ("model.safetensors", truncate, r"model\.safetensors has \d+ of \d+ bytes"),
        ("optimizer.pt", lambda file: file.unlink(), r"optimizer\.pt is missing"),
        ("int8tile.json", truncate, r"int8tile\.json is missing or broken"),
        ("int8tile.json", lambda file: file.unlink(), r"int8tile\.json is missing or broken"),
    ],
)
def test_an_incomplete_checkpoint_is_passed_over(cut, again, name, harm, why):
    harm(cut / "checkpoint-7" / name)
    store = Checkpoints(again(), 17)
    assert store.find()["int8-split"].folder == cut / "checkpoint-6"
    (line,) = store.skipped
    assert line.startswith(f"{cut / 'checkpoint-7'} is incomplete (")
    assert line.endswith("): passed over")
    for step in (3, 6):
        harm(cut / f"checkpoint-{step}" / name)
    with pytest.raises(UsageError, match=rf"--resume needs a complete .* is none; .*-3 .*{why}"):
        Checkpoints(again(), 17).find()


def test_a_run_says_what_it_passed_over_and_replaces_it(whole, cut, again):
    from rich.console import Console

    (cut / "checkpoint-7" / "optimizer.pt").unlink()
    console = Console(width=200, record=True, quiet=False, file=open("/dev/null", "w"))  # noqa: PTH123, SIM115
    with console.file:
        result = run(again(save_every=7), console)
    text = console.export_text()
    assert "checkpoint-7 is incomplete (optimizer.pt is missing): passed over" in text
    assert f"goes on from {cut / 'checkpoint-6'}" in text
    assert curves(result)["int8-split"] == curves(whole)["int8-split"]
    assert (cut / "checkpoint-7" / "optimizer.pt").is_file()


# Refusals.


def test_other_settings_are_named(cut, again):
    words = r"--batch-size is 4 and was 8, --lr is 0\.1 and was 0\.0005$"
    with pytest.raises(UsageError, match=f"--resume must have the settings of .*: {words}"):
        run(again(lr=0.1, batch_size=4))
    with pytest.raises(UsageError, match=r"--arms is .* and was "):
        run(again(arms=ARMS))
    with pytest.raises(UsageError, match="number of training examples is 18 and was 17"):
        Checkpoints(again(), 18).find()


def test_a_run_may_change_how_it_is_run(cut, again):
    found = Checkpoints(again(threads=2, save_every=None, keep=1, timeout=5.0), 17).find()
    assert found["int8-split"].folder == cut / "checkpoint-7"


def test_another_task_is_refused(cut, again):
    with pytest.raises(UsageError, match="--task is clm and was sst2"):
        Checkpoints(again(task="clm"), 17).find()


def test_another_architecture_is_refused(folder, cut, again, tmp_path):
    (folder / "bert").rename(tmp_path / "bert")
    save_bert(folder / "bert", hidden_size=32)
    words = "--resume needs a checkpoint of BertForSequenceClassification .* of another architectu"
    try:
        with pytest.raises(UsageError, match=words):
            run(again())
    finally:
        shutil.rmtree(folder / "bert")
        (tmp_path / "bert").rename(folder / "bert")


def test_there_must_be_something_to_go_on_from(tmp_path, again):
    with pytest.raises(
        UsageError, match=r"--resume needs a complete checkpoint in .*; there is no"
    ):
        run(again())
    assert not (tmp_path / "cut").exists()


def test_a_new_run_leaves_the_checkpoints_of_another_alone(cut, again):
    with pytest.raises(UsageError, match="holds the checkpoints of an earlier run: --resume goes"):
        run(again(resume=False))
    assert names(cut) == ["checkpoint-3", "checkpoint-6", "checkpoint-7"]
    partial = Checkpoints(again(resume=False), 17).partial  # of a run that is under way
    partial.mkdir()
    with pytest.raises(UsageError, match="holds the checkpoints of an earlier run"):
        run(again(resume=False))
    assert partial.exists()
    shutil.rmtree(cut.parent)
    Checkpoints(again(resume=False), 17).check_new()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"save_every": 0}, "--save-every must be at least 1"),
        ({"keep": 0}, "--keep must be at least 1"),
        ({"timeout": 0.0}, "--timeout must be above 0"),
    ],
)
def test_bad_settings_are_refused(again, changes, message):
    with pytest.raises(UsageError, match=message):
        again(**changes)


# What was half done.


def test_what_was_half_written_is_removed(again):
    store = Checkpoints(again(), 17)
    (store.partial / "checkpoint-9").mkdir(parents=True)
    store.check_new()
    assert not store.root.exists()


def test_a_checkpoint_gets_its_name_when_it_is_complete(again):
    store = Checkpoints(again(), 17)
    written = store.partial / "checkpoint-9"
    written.mkdir(parents=True)
    (written / "model.safetensors").write_bytes(b"abc")
    assert names(store.root) == [".partial"]
    record = Record(9, 2, [0.5], [1.0], [0])
    store.complete("int8-split", record)
    assert names(store.root) == ["int8-split"]
    found = store.find()["int8-split"]
    assert (found.folder, found.record) == (store.root / "int8-split" / "checkpoint-9", record)


def test_speed_leaves_the_first_steps_after_each_start_out():
    timer = StepTimer([9.0] * 5 + [1.0, 1.0], [0])
    timer.seconds += [9.0] * 5 + [2.0]
    assert timer.starts == [0, 7]
    assert timer.examples_per_second(200, 20) == pytest.approx(60 / 4)


def test_a_result_with_no_number_is_kept(again):
    store = Checkpoints(again(arms=("fp32", "int8")), 17)
    store.finish("fp32", ArmResult(0.5, {}, float("inf"), 1.0, 2.0, 7, [(1, float("inf"))], []))
    assert store.find()["fp32"].loss == float("inf")
