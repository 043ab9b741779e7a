"""The GLUE tasks: columns, labels, metrics, and where they come from (.tsv files or the hub)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from int8tile.finetune import hub
from int8tile.finetune.examples import Example, TaskData
from int8tile.finetune.settings import UsageError
from int8tile.finetune.tsv import read_examples

if TYPE_CHECKING:
    import datasets

HUB_DATASET = "nyu-mll/glue"


@dataclass(frozen=True)
class GlueTask:
    """What sets one GLUE task apart.

    Args:
        folder: Name of its folder in the original GLUE download.
        text: Accepted names of the column of the first text.
        text_pair: Accepted names of the column of the second text; empty for single texts.
        label: Accepted names of the label column.
        labels: Class names in index order; empty for a regression.
        metric_names: The official metrics, the headline first.
        evaluation: Name of each evaluation set -> accepted file names without `.tsv`.
        headerless: Column names of the original file where it has no header row.
    """

    folder: str
    text: tuple[str, ...]
    text_pair: tuple[str, ...]
    label: tuple[str, ...]
    labels: tuple[str, ...]
    metric_names: tuple[str, ...] = ("accuracy",)
    evaluation: Mapping[str, tuple[str, ...]] | None = None
    headerless: tuple[str, ...] = ()

    @property
    def evaluation_files(self) -> Mapping[str, tuple[str, ...]]:
        """Name of each evaluation set -> accepted file names without `.tsv`."""
        return self.evaluation or {"eval": ("dev", "validation")}


_ENTAILMENT = ("entailment", "not_entailment")
TASKS: Mapping[str, GlueTask] = {
    "sst2": GlueTask("SST-2", ("sentence",), (), ("label",), ("negative", "positive")),
    "mrpc": GlueTask(
        "MRPC",
        ("sentence1", "#1 String"),
        ("sentence2", "#2 String"),
        ("label", "Quality"),
        ("not_equivalent", "equivalent"),
        ("accuracy", "f1"),
    ),
    "rte": GlueTask("RTE", ("sentence1",), ("sentence2",), ("label",), _ENTAILMENT),
    "cola": GlueTask(
        "CoLA",
        ("sentence",),
        (),
        ("label",),
        ("unacceptable", "acceptable"),
        ("matthews", "accuracy"),
        headerless=("source", "label", "mark", "sentence"),
    ),
    "qnli": GlueTask(
        "QNLI", ("question", "sentence1"), ("sentence", "sentence2"), ("label",), _ENTAILMENT
    ),
    "qqp": GlueTask(
        "QQP",
        ("question1", "sentence1"),
        ("question2", "sentence2"),
        ("is_duplicate", "label"),
        ("not_duplicate", "duplicate"),
        ("accuracy", "f1"),
    ),
    "mnli": GlueTask(
        "MNLI",
        ("premise", "sentence1"),
        ("hypothesis", "sentence2"),
        ("gold_label", "label"),
        ("entailment", "neutral", "contradiction"),
        evaluation={
            "matched": ("dev_matched", "validation_matched", "dev", "validation"),
            "mismatched": ("dev_mismatched", "validation_mismatched"),
        },
    ),
    "stsb": GlueTask(
        "STS-B", ("sentence1",), ("sentence2",), ("score", "label"), (), ("pearson", "spearman")
    ),
    "wnli": GlueTask("WNLI", ("sentence1",), ("sentence2",), ("label",), _ENTAILMENT[::-1]),
}


def load_files(name: str, data: Path) -> TaskData:
    """Read a task from `data`/train.tsv or `data`/<task>/train.tsv, and the dev files beside it.

    Args:
        name: A key of `TASKS`.
        data: The folder; the task's own folder in it may have GLUE's spelling, such as SST-2.

    Returns:
        The training and evaluation examples.

    Raises:
        UsageError: A file is missing, empty, lacks a column or holds a label of no class.
    """
    task = TASKS[name]
    tried = [data, data / name, data / task.folder]
    folder = next((each for each in tried if (each / "train.tsv").is_file()), None)
    if folder is None:
        files = ", ".join(str(each / "train.tsv") for each in tried)
        raise UsageError(f"int8tile finetune: --data needs the {name} files; none of {files} found")
    train, skipped = read_examples(folder / "train.tsv", task)
    evaluation = {}
    for split, stems in task.evaluation_files.items():
        file = next((f for f in (folder / f"{s}.tsv" for s in stems) if f.is_file()), None)
        if file is not None:
            evaluation[split], more = read_examples(file, task)
            skipped += more
        elif split != "mismatched":  # the second set of MNLI is optional
            raise UsageError(
                f"int8tile finetune: --data needs an evaluation file; {folder} has no "
                f"{' or '.join(f'{stem}.tsv' for stem in stems)}"
            )
    return TaskData(train, evaluation, task.labels, task.metric_names, skipped)


def load_hub(name: str) -> TaskData:
    """Load a task from the Hugging Face hub (or its cache).

    Args:
        name: A key of `TASKS`.

    Returns:
        The training and evaluation examples.

    Raises:
        UsageError: The hub cannot be reached.
    """
    task = TASKS[name]
    splits = hub.load_dataset(HUB_DATASET, name, files=".tsv")
    evaluation = {
        split: _from_rows(splits[next(stem for stem in stems if stem in splits)], task)
        for split, stems in task.evaluation_files.items()
    }
    return TaskData(_from_rows(splits["train"], task), evaluation, task.labels, task.metric_names)


def _from_rows(rows: datasets.Dataset, task: GlueTask) -> list[Example]:
    """Turn a hub split, whose labels are already indices or scores, into examples."""
    columns = rows.column_names
    text = next(name for name in task.text if name in columns)
    pair = next((name for name in task.text_pair if name in columns), None)
    return [Example(row[text], row[pair] if pair else None, row["label"]) for row in rows]
