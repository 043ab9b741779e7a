"""The data of fine-tuning: the docstrings task, GLUE files, and metrics."""

import math
import re
import subprocess
import sys
import sysconfig
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("transformers", reason="needs the demo extra")

from checkpoints import real_data
from int8tile.finetune import UsageError, docstrings, glue, metrics
from int8tile.finetune.examples import Example, limited
from int8tile.finetune.settings import GLUE_TASKS

# The docstrings task.


@pytest.fixture(scope="module")
def stdlib():
    return docstrings.load()


def test_docstrings_are_distinct_and_many(stdlib):
    texts = [example.text for example in (*stdlib.train, *stdlib.evaluation["eval"])]
    assert len(texts) == len(set(texts)) >= 1500
    assert len(stdlib.evaluation["eval"]) >= 250


def test_docstring_classes_are_present_on_both_sides(stdlib):
    assert set(stdlib.labels) | docstrings.OPTIONAL == set(docstrings.PACKAGES)
    for examples in (stdlib.train, stdlib.evaluation["eval"]):
        count = Counter(example.label for example in examples)
        assert set(count) == set(range(len(stdlib.labels)))
        assert min(count.values()) >= 15
        assert max(count.values()) / len(examples) < 0.35


def test_docstrings_have_5_to_80_words_and_hide_their_package(stdlib):
    for example in (*stdlib.train, *stdlib.evaluation["eval"]):
        assert 5 <= len(example.text.split()) <= 80
        assert stdlib.labels[example.label] not in example.text.lower()


def test_docstring_split_leaks_no_near_duplicate(stdlib):
    def words(example):
        return frozenset(re.findall(r"[a-z]+", example.text.lower()))

    train = [words(example) for example in stdlib.train]
    for mine in map(words, stdlib.evaluation["eval"]):
        assert all(len(mine & w) < docstrings.NEAR_DUPLICATE * len(mine | w) for w in train)


def test_docstrings_are_the_same_every_time(stdlib):
    assert docstrings.load() == stdlib


def test_docstrings_do_not_import_the_packages():
    code = (
        "import sys, int8tile.finetune.docstrings as d; before = set(sys.modules); d.load(); "
        "print(sorted(set(sys.modules) - before))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"tkinter", "asyncio", "unittest", "xml"} & set(eval(done.stdout))


def test_docstrings_need_the_sources(tmp_path):
    with pytest.raises(UsageError, match=r"needs the sources of the standard library.*asyncio"):
        docstrings.load(tmp_path)


def test_tkinter_is_optional(tmp_path):
    root = Path(sysconfig.get_paths()["stdlib"])
    for name in set(docstrings.PACKAGES) - docstrings.OPTIONAL:
        (tmp_path / docstrings.PACKAGES[name]).symlink_to(root / docstrings.PACKAGES[name])
    data = docstrings.load(tmp_path)
    assert len(data.labels) == 9
    assert "tkinter" not in data.labels


def test_near_duplicate_groups_join_chains():
    texts = [
        "one two three four five six seven eight nine ten",
        "nothing of the kind here",
        "one two three four five six seven eight nine eleven",
        "one two three four five six seven eight twelve eleven",
    ]
    assert docstrings.near_duplicate_groups(texts) == [0, 1, 0, 0]


# GLUE files.

FILES = {  # task -> file text, expected (text, text_pair, label) of its rows
    "sst2": (
        'sentence\tlabel\na "fine\tnegative\nfilm\t1\n',
        [('a "fine', None, 0), ("film", None, 1)],
    ),
    "mrpc": (
        "\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\r\n1\t7\t8\tone\ttwo\r\n",
        [("one", "two", 1)],
    ),
    "rte": (
        "index\tsentence1\tsentence2\tlabel\n0\tp\th\tentailment\n1\tp\tq\tnot_entailment\n",
        [("p", "h", 0), ("p", "q", 1)],
    ),
    "cola": (
        "gj04\t1\t\tIt runs.\ngj04\t0\t*\tRun it not do.\n",
        [("It runs.", None, 1), ("Run it not do.", None, 0)],
    ),
    "qnli": ("index\tquestion\tsentence\tlabel\n0\twho\tme\tentailment\n", [("who", "me", 0)]),
    "qqp": (
        "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n0\t1\t2\ta\tb\t1\n1\t2\t3\tcut off\n",
        [("a", "b", 1)],
    ),
    "mnli": (
        "index\tsentence1\tsentence2\tlabel1\tgold_label\n0\tp\th\tneutral\tcontradiction\n",
        [("p", "h", 2)],
    ),
    "stsb": ("index\tsentence1\tsentence2\tscore\n0\ta\tb\t3.25\n", [("a", "b", 3.25)]),
    "wnli": ("index\tsentence1\tsentence2\tlabel\n0\ta\tb\t1\n", [("a", "b", 1)]),
}


# The metrics of the benchmark's leaderboard, and the classes in the order of nyu-mll/glue.
OFFICIAL = {
    "cola": (["matthews"], ["unacceptable", "acceptable"]),
    "sst2": (["accuracy"], ["negative", "positive"]),
    "mrpc": (["f1", "accuracy"], ["not_equivalent", "equivalent"]),
    "stsb": (["pearson", "spearman"], []),
    "qqp": (["f1", "accuracy"], ["not_duplicate", "duplicate"]),
    "mnli": (["accuracy"], ["entailment", "neutral", "contradiction"]),
    "qnli": (["accuracy"], ["entailment", "not_entailment"]),
    "rte": (["accuracy"], ["entailment", "not_entailment"]),
    "wnli": (["accuracy"], ["not_entailment", "entailment"]),
}


def test_glue_has_its_official_metrics_and_classes():
    assert glue.TASKS.keys() == OFFICIAL.keys() == set(GLUE_TASKS)
    for name, (official, labels) in OFFICIAL.items():
        task = glue.TASKS[name]
        assert set(official) <= set(task.metric_names) <= {*official, "accuracy"}
        assert list(task.labels) == labels
        metrics.check(task.metric_names, len(labels))
    assert list(glue.TASKS["mnli"].evaluation_files) == ["matched", "mismatched"]


def write_task(folder, task, text):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "train.tsv").write_text(text, encoding="utf-8")
    for stem in ("dev_matched", "dev_mismatched") if task == "mnli" else ("dev",):
        (folder / f"{stem}.tsv").write_text(text, encoding="utf-8")


@pytest.mark.parametrize("task", FILES)
def test_original_glue_files_are_read(tmp_path, task):
    text, rows = FILES[task]
    write_task(tmp_path, task, text)
    data = glue.load_files(task, tmp_path)
    assert [(e.text, e.text_pair, e.label) for e in data.train] == rows
    assert all(examples == data.train for examples in data.evaluation.values())
    assert data.regression == (task == "stsb")
    assert data.skipped_rows == (2 if task == "qqp" else 0)
    assert list(data.evaluation) == (["matched", "mismatched"] if task == "mnli" else ["eval"])


@pytest.mark.parametrize("task", glue.TASKS)
def test_normalised_columns_are_read(tmp_path, task):
    pair = bool(glue.TASKS[task].text_pair)
    header, row = ("sentence1\tsentence2", "a\tb") if pair else ("sentence", "a")
    write_task(tmp_path, task, f"{header}\tlabel\n{row}\t1\n")
    assert glue.load_files(task, tmp_path).train == [Example("a", "b" if pair else None, 1)]


@pytest.mark.parametrize("folder", ["sst2", "SST-2", "."])
def test_task_folder_is_found(tmp_path, folder):
    write_task(tmp_path / folder, "sst2", FILES["sst2"][0])
    assert len(glue.load_files("sst2", tmp_path).train) == 2


def test_mnli_mismatched_is_optional(tmp_path):
    write_task(tmp_path, "mnli", FILES["mnli"][0])
    (tmp_path / "dev_mismatched.tsv").unlink()
    assert list(glue.load_files("mnli", tmp_path).evaluation) == ["matched"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "must hold at least one example; it has none"),
        ("sentence\tlabel\n", "must hold at least one example; it has none"),
        ("sentence\tlabel\nonly text\n", "must hold a complete row; it has none"),
        ("text\tlabel\na\t1\n", "must have a column 'sentence'; got 'text', 'label'"),
        ("sentence\tgold\na\t1\n", "must have a column 'label'; got 'sentence', 'gold'"),
        ("sentence\tlabel\na\t1\nb\t2\n", r"train.tsv:3: label must be one of negative, positive "
         r"or 0..1; got '2'"),
        ("sentence\tlabel\na\tgood\n", "got 'good'"),
    ],
)  # fmt: skip
def test_bad_glue_files_are_refused(tmp_path, text, message):
    write_task(tmp_path, "sst2", text)
    with pytest.raises(UsageError, match=message):
        glue.load_files("sst2", tmp_path)


def test_bad_scores_are_refused(tmp_path):
    write_task(tmp_path, "stsb", "sentence1\tsentence2\tscore\na\tb\tinf\n")
    with pytest.raises(UsageError, match="label must be a number; got 'inf'"):
        glue.load_files("stsb", tmp_path)


def test_binary_files_are_refused(tmp_path):
    (tmp_path / "train.tsv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match=r"cannot read .*train\.tsv"):
        glue.load_files("sst2", tmp_path)


def test_missing_glue_files_are_named(tmp_path):
    with pytest.raises(
        UsageError, match=r"--data needs the sst2 files; none of .*SST-2.train\.tsv"
    ):
        glue.load_files("sst2", tmp_path)
    (tmp_path / "train.tsv").write_text(FILES["sst2"][0])
    with pytest.raises(UsageError, match=r"has no dev\.tsv or validation\.tsv"):
        glue.load_files("sst2", tmp_path)


def test_unreachable_hub_asks_for_data(monkeypatch):
    datasets = pytest.importorskip("datasets")

    def offline(*names):
        raise ConnectionError("no network")

    monkeypatch.setattr(datasets, "load_dataset", offline)
    with pytest.raises(
        UsageError, match=r"cannot load nyu-mll/glue \(rte\).*DIR \(ConnectionError: no net"
    ):
        glue.load_hub("rte")


@pytest.mark.parametrize("task", glue.TASKS)
def test_hub_columns_are_known(monkeypatch, task):
    datasets = pytest.importorskip("datasets")
    columns = {
        "sst2": ("sentence",),
        "cola": ("sentence",),
        "qnli": ("question", "sentence"),
        "qqp": ("question1", "question2"),
        "mnli": ("premise", "hypothesis"),
    }.get(task, ("sentence1", "sentence2"))
    rows = {name: [name] for name in columns} | {"label": [1], "idx": [0]}
    splits = ("validation_matched", "validation_mismatched") if task == "mnli" else ("validation",)
    fake = {split: datasets.Dataset.from_dict(rows) for split in ("train", *splits)}
    monkeypatch.setattr(datasets, "load_dataset", lambda *names: fake)
    assert glue.load_hub(task).train == [Example(*(*columns, None)[:2], 1)]


@pytest.mark.parametrize("task", ["sst2", "mrpc", "rte", "qnli"])
def test_real_glue_files_are_read(task):
    data = glue.load_files(task, real_data("glue"))
    assert data.skipped_rows == 0
    assert len(data.train) > 2000
    assert {e.label for e in data.evaluation["eval"]} == {0, 1}


def test_max_train_is_a_fixed_choice():
    examples = list(range(100))
    few = limited(examples, 10)
    assert len(few) == 10
    assert few == limited(examples, 10)
    assert few != examples[:10]
    assert limited(examples, None) is examples
    assert limited(examples, 100) is examples


# Metrics.


def test_metrics_by_hand():
    predictions, labels = [1, 1, 0, 0, 1, 0], [1, 0, 0, 1, 1, 0]
    got = metrics.compute(["accuracy", "f1", "matthews"], predictions, labels)
    # tp 2, fp 1, fn 1, tn 2
    assert got == pytest.approx({"accuracy": 4 / 6, "f1": 4 / 6, "matthews": (4 - 1) / 9})


def test_correlations_by_hand():
    got = metrics.compute(["pearson", "spearman"], [1.0, 2.0, 3.0, 10.0], [1.0, 3.0, 3.0, 4.0])
    # deviations (-3, -2, -1, 6) and (-1.75, .25, .25, 1.25); ranks (1, 2, 3, 4), (1, 2.5, 2.5, 4)
    assert got["pearson"] == pytest.approx(12 / math.sqrt(50 * 4.75))
    assert got["spearman"] == pytest.approx(4.5 / math.sqrt(5 * 4.5))


def test_correlations_agree_with_scipy():
    stats = pytest.importorskip("scipy.stats")
    generator = np.random.default_rng(0)
    x, y = generator.integers(0, 9, 200) * 1.0, generator.normal(size=200)
    got = metrics.compute(["pearson", "spearman"], x, y)
    assert got["pearson"] == pytest.approx(stats.pearsonr(x, y).statistic)
    assert got["spearman"] == pytest.approx(stats.spearmanr(x, y).statistic)


def test_undefined_metrics_are_zero():
    names = ["f1", "matthews", "pearson", "spearman"]
    assert metrics.compute(names, [0, 0], [0, 0]) == dict.fromkeys(names, 0.0)
