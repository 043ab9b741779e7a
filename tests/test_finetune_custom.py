"""Fine-tuning on the user's own columns: tables, labels, metrics, refusals, and whole runs."""

import json

import numpy as np
import pytest

pytest.importorskip("transformers", reason="needs the demo extra")

from int8tile.finetune import Settings, UsageError, columns, metrics, run
from int8tile.finetune.examples import Example
from int8tile.finetune.settings import METRIC_NAMES
from int8tile.finetune.tables import read_table

FILES = {
    "tsv": 'text\tlabel\r\na "b\tx\n\nc\ty\n',
    "csv": 'text,label\n"a ""b",x\nc,y\n',
    "jsonl": '{"text": "a \\"b", "label": "x"}\n\n{"label": "y", "text": "c", "more": null}\n',
}


def write(folder, **files):
    """Write files: train_csv="..." makes train.csv."""
    for name, text in files.items():
        (folder / name.replace("_", ".")).write_text(text)
    return folder


def settings(data, **changes):
    return Settings(**{"task": "custom", "data": data, **changes})


def load(folder, **changes):
    return columns.load(folder, settings(folder, **changes))


# Tables.


@pytest.mark.parametrize("suffix", FILES)
def test_tables_are_read(tmp_path, suffix):
    write(tmp_path, **{f"t_{suffix}": FILES[suffix]})
    table = read_table(tmp_path / f"t.{suffix}")
    assert [(row["text"], row["label"]) for _, row in table.rows] == [('a "b', "x"), ("c", "y")]
    assert list(table.columns)[:2] == ["text", "label"]
    lines = {"tsv": [2, 4], "csv": [2, 3], "jsonl": [1, 3]}
    assert [number for number, _ in table.rows] == lines[suffix]


@pytest.mark.parametrize("suffix", FILES)
def test_only_newlines_end_a_line(tmp_path, suffix):
    texts = [f"good{mark}film" for mark in "\u2028\u2029\x85\x0b\x0c\x1c\x1d\x1e"]
    rows = {
        "tsv": ["text\tlabel", *(f"{text}\tx" for text in texts)],
        "csv": ["text,label", *(f"{text},x" for text in texts)],
        "jsonl": [json.dumps({"text": t, "label": "x"}, ensure_ascii=False) for t in texts],
    }
    write(tmp_path, **{f"t_{suffix}": "\n".join(rows[suffix])})
    table = read_table(tmp_path / f"t.{suffix}")
    assert [row for _, row in table.rows] == [{"text": text, "label": "x"} for text in texts]


def test_csv_fields_may_hold_commas_and_lines(tmp_path):
    write(tmp_path, t_csv='\ufeffa,b\n"x, y\nz",1\nshort\n')
    table = read_table(tmp_path / "t.csv")
    assert table.rows == [(3, {"a": "x, y\nz", "b": "1"}), (4, {"a": "short", "b": ""})]


def test_json_values_become_text(tmp_path):
    write(tmp_path, t_jsonl='{"i": 1, "f": 0.5, "b": true, "n": null, "s": "é"}')
    ((_, row),) = read_table(tmp_path / "t.jsonl").rows
    assert row == {"i": "1", "f": "0.5", "b": "true", "n": "", "s": "é"}


@pytest.mark.parametrize(
    ("suffix", "text", "message"),
    [
        ("tsv", "", r"t\.tsv must hold at least one row; it has none"),
        ("csv", "text,label\n", r"t\.csv must hold at least one row; it has none"),
        ("jsonl", "\n", r"t\.jsonl must hold at least one row; it has none"),
        ("csv", "a,b\n1,2,3\n", r"t\.csv:2: a row must have at most 2 fields; got 3"),
        ("csv", 'a,b\n"1,2\n', r"cannot read .*t\.csv: unexpected end of data"),
        ("jsonl", '{"a": 1}\n{"a"', r"t\.jsonl:2: a line must be a JSON object; Expecting ':'"),
        ("jsonl", "[1]", r"t\.jsonl:1: a line must be a JSON object; got list"),
    ],
)
def test_broken_tables_are_refused(tmp_path, suffix, text, message):
    write(tmp_path, **{f"t_{suffix}": text})
    with pytest.raises(UsageError, match=message):
        read_table(tmp_path / f"t.{suffix}")


# Labels.


def test_classes_are_those_of_the_training_file(tmp_path):
    write(
        tmp_path, train_csv="text,label\na,no\nb,yes\nc,no\nd,\n", dev_tsv="text\tlabel\ne\tyes\n"
    )
    data = load(tmp_path)
    assert data.labels == ["no", "yes"]
    assert data.train == [Example("a", None, 0), Example("b", None, 1), Example("c", None, 0)]
    assert data.evaluation == {"eval": [Example("e", None, 1)]}
    assert data.skipped_rows == 1
    assert data.metric_names == ("accuracy", "macro_f1")


def test_columns_are_chosen_by_name(tmp_path):
    text = '{"id": 7, "q": "who", "p": "me", "gold": 2}\n{"q": "u", "p": "v", "gold": 10}\n'
    write(tmp_path, train_jsonl=text, validation_jsonl=text)
    data = load(tmp_path, text_columns=("q", "p"), label_column="gold")
    assert data.labels == ["2", "10"]  # in the order of the numbers
    assert data.train == [Example("who", "me", 0), Example("u", "v", 1)]


@pytest.mark.parametrize(
    ("labels", "changes", "regression"),
    [
        (("0.5", "2", "3"), {}, True),
        (("1", "2", "3"), {}, False),
        (("1.0", "0.0", "1.0"), {}, False),
        (("1", "2", "3"), {"regression": True}, True),
        (("0.5", "x", "1"), {}, False),
    ],
)
def test_numbers_that_are_not_all_whole_are_a_regression(tmp_path, labels, changes, regression):
    text = "text,label\n" + "".join(f"t{i},{label}\n" for i, label in enumerate(labels))
    data = load(write(tmp_path, train_csv=text, dev_csv=text), **changes)
    assert data.regression == regression
    if regression:
        assert [example.label for example in data.train] == [float(label) for label in labels]
        assert data.metric_names == ("pearson", "spearman")


@pytest.mark.parametrize(
    ("files", "changes", "message"),
    [
        ({}, {}, r"must hold a file train\.\{tsv,csv,jsonl\}; .* has none"),
        ({"train_csv": "text,label\na,1\n"}, {}, r"a file \{dev,validation,eval,test\}\."),
        ({"train_csv": "t,label\na,1\n", "dev_csv": "text,label\na,1\n"}, {},
         r"train\.csv must have a column 'text'; got 't', 'label'"),
        ({"train_csv": "text,label\na,1\n", "dev_csv": "text,gold\na,1\n"}, {},
         r"dev\.csv must have a column 'label'; got 'text', 'gold'"),
        ({"train_csv": "text,label\na,x\nb,y\n", "dev_csv": "text,label\na,x\nb,z\n"}, {},
         r"dev\.csv:3: label must be one of the training file's, x, y; got 'z'"),
        ({"train_csv": "text,label\na,x\nb,x\n", "dev_csv": "text,label\na,x\n"}, {},
         "must hold at least two labels in 'label'; got 'x'"),
        ({"train_csv": "text,label\na,0.5\nb,1\n", "dev_csv": "text,label\na,high\n"}, {},
         r"dev\.csv:2: label must be a number; got 'high'"),
        ({"train_csv": "text,label\na,x\nb,y\n", "dev_csv": "text,label\n,x\n"}, {},
         r"dev\.csv must hold a complete row; it has none"),
        ({"train_csv": "text,label\na,x\n", "dev_csv": "text,label\na,x\n"}, {"regression": True},
         r"train\.csv:2: label must be a number; got 'x'"),
    ],
)  # fmt: skip
def test_bad_custom_data_is_refused(tmp_path, files, changes, message):
    write(tmp_path, **files)
    with pytest.raises(UsageError, match=message):
        load(tmp_path, **changes)


# Metrics.


def test_metric_names_are_those_known():
    assert tuple(metrics.METRICS) == METRIC_NAMES


@pytest.mark.parametrize(
    ("names", "classes", "message"),
    [
        (["pearson"], 2, "must be of accuracy,f1,macro_f1,matthews for 2 classes; got pearson"),
        (["f1"], 3, "must be of accuracy,macro_f1 for 3 classes; got f1"),
        (["accuracy"], 0, "must be of pearson,spearman for a regression; got accuracy"),
    ],
)
def test_metrics_must_fit_the_labels(names, classes, message):
    with pytest.raises(UsageError, match=message):
        metrics.check(names, classes)


def test_macro_f1_by_hand():
    # class 0: tp 1, fp 1, fn 1; class 1: tp 1, fp 0, fn 1; class 2: tp 0, fp 1, fn 0
    got = metrics.compute(["macro_f1"], [0, 0, 1, 2], [0, 1, 1, 0])
    assert got["macro_f1"] == pytest.approx((2 / 4 + 2 / 3 + 0) / 3)


def test_class_metrics_agree_with_scikit_learn():
    reference = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(0)
    got, true = rng.integers(0, 2, (2, 300))
    ours = metrics.compute(["accuracy", "f1", "macro_f1", "matthews"], got, true)
    assert ours["accuracy"] == pytest.approx(reference.accuracy_score(true, got))
    assert ours["f1"] == pytest.approx(reference.f1_score(true, got))
    assert ours["macro_f1"] == pytest.approx(reference.f1_score(true, got, average="macro"))
    assert ours["matthews"] == pytest.approx(reference.matthews_corrcoef(true, got))
    got, true = rng.integers(0, 5, (2, 300))
    ours = metrics.compute(["macro_f1"], got, true)["macro_f1"]
    assert ours == pytest.approx(reference.f1_score(true, got, average="macro"))


# Whole runs.


def test_custom_run_learns_its_classes(tmp_path, tiny_bert):
    words = {"red": "colour", "blue": "colour", "dog": "animal", "cat": "animal", "oak": "tree"}
    rows = "".join(json.dumps({"a": word, "b": "a", "kind": k}) + "\n" for word, k in words.items())
    write(tmp_path, train_jsonl=rows * 4, eval_jsonl=rows)
    result = run(
        settings(
            tmp_path, model=tiny_bert, arms=("fp32", "int8-split"), text_columns=("a", "b"),
            label_column="kind", metrics=("macro_f1", "accuracy"), batch_size=10, lr=3e-3,
            epochs=99, max_steps=20, max_eval=4, threads=1, output=tmp_path / "out",
        )
    )  # fmt: skip
    made = json.loads((tmp_path / "out" / "metrics.json").read_text())
    for arm in made["arms"].values():
        assert list(arm["metrics"]) == ["macro_f1", "accuracy"]
        assert arm["metrics"]["accuracy"] > 0.7
    data = made["environment"]["data"]
    assert data["labels"] == ["animal", "colour", "tree"]
    assert data["eval_examples"] == {"eval": 4}
    assert result.arms["int8-split"].loss != result.arms["fp32"].loss


def test_custom_regression_run(tmp_path, tiny_bert):
    text = "text,label\n" + "".join(f"a film of {i},{i % 5 / 2}\n" for i in range(16))
    write(tmp_path, train_csv=text, test_csv=text)
    result = run(
        settings(
            tmp_path, model=tiny_bert, arms=("int8-split",), metrics=("spearman",), batch_size=8,
            max_steps=2, threads=1, output=tmp_path / "out",
        )
    )  # fmt: skip
    assert list(result.arms["int8-split"].metrics) == ["spearman"]


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_decoders_classify_too(tmp_path, tiny_decoder, kind):
    text = "text,label\n" + "".join(f"{'ada' * i},{i % 2}\n" for i in range(1, 9))
    write(tmp_path, train_csv=text, dev_csv=text)
    result = run(
        settings(
            tmp_path, model=tiny_decoder(kind), arms=("fp32", "int8-split"), batch_size=4,
            max_length=32, max_steps=2, threads=1, output=tmp_path / "out",
        )
    )  # fmt: skip
    assert result.arms["int8-split"].conversion.converted == (15 if kind == "llama" else 1)
    assert result.arms["int8-split"].loss == pytest.approx(result.arms["fp32"].loss, rel=0.1)


def test_metrics_that_do_not_fit_stop_a_run_before_it_writes(tmp_path, tiny_bert):
    text = "text,label\na,x\nb,y\n"
    write(tmp_path, train_csv=text, dev_csv=text)
    with pytest.raises(UsageError, match="--metrics must be of accuracy,f1"):
        run(settings(tmp_path, model=tiny_bert, metrics=("pearson",), output=tmp_path / "out"))
    assert not (tmp_path / "out").exists()
