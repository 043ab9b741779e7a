"""The custom task: texts and labels from the columns of the user's own files."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

from int8tile.finetune.examples import Example, TaskData
from int8tile.finetune.settings import Settings, UsageError
from int8tile.finetune.tables import SUFFIXES, Table, read_table

TEXT_COLUMNS, LABEL_COLUMN = ("text",), "label"  # where the settings name none
EVALUATION_STEMS = ("dev", "validation", "eval", "test")
CLASS_METRICS, REGRESSION_METRICS = ("accuracy", "macro_f1"), ("pearson", "spearman")

Label = Callable[[str, str], int | float]  # (text of the label, place) -> label


def load(data: Path, settings: Settings) -> TaskData:
    """Read train.* and the first of dev.*, validation.*, eval.* and test.*.

    The classes are the labels of the training file. Labels that are all numbers, and not all
    whole, are a regression.

    Args:
        data: Their folder.
        settings: Name the columns, and may ask for a regression.

    Returns:
        The training and evaluation examples.

    Raises:
        UsageError: A file or column is missing, or a label is of no class or no number.
    """
    train, evaluation = (_find(data, stems) for stems in (("train",), EVALUATION_STEMS))
    texts, column = settings.text_columns or TEXT_COLUMNS, settings.label_column or LABEL_COLUMN
    for table in (train, evaluation):
        table.require(*texts, column)
    values = {row[column].strip() for _, row in train.rows if row.get(column, "").strip()}
    numbers = [_number(value) for value in values]
    regression = settings.regression or (
        all(map(math.isfinite, numbers)) and not all(number.is_integer() for number in numbers)
    )
    if regression:
        labels: list[str] = []
        label: Label = _as_number
    else:
        numeric = all(map(math.isfinite, numbers))
        labels = sorted(values, key=lambda value: (_number(value) if numeric else 0, value))
        label = _as_class(labels)
        if len(labels) < 2:
            raise UsageError(
                f"int8tile finetune: {train.file} must hold at least two labels in {column!r}; "
                f"got {', '.join(map(repr, labels)) or 'none'}"
            )
    examples, rest = (_examples(table, texts, column, label) for table in (train, evaluation))
    skipped = len(train.rows) + len(evaluation.rows) - len(examples) - len(rest)
    metrics = REGRESSION_METRICS if regression else CLASS_METRICS
    return TaskData(examples, {"eval": rest}, labels, metrics, skipped)


def _find(data: Path, stems: Sequence[str]) -> Table:
    names = [f"{stem}{suffix}" for stem in stems for suffix in SUFFIXES]
    file = next((data / name for name in names if (data / name).is_file()), None)
    if file is None:
        wanted = f"{{{','.join(stems)}}}" if len(stems) > 1 else stems[0]
        raise UsageError(
            f"int8tile finetune: --data must hold a file {wanted}.{{tsv,csv,jsonl}}; "
            f"{data} has none"
        )
    return read_table(file)


def _examples(table: Table, texts: Sequence[str], column: str, label: Label) -> list[Example]:
    """Turn the complete rows into examples."""
    examples = [
        Example(
            row[texts[0]],
            row[texts[1]] if len(texts) == 2 else None,
            label(row[column].strip(), f"{table.file}:{number}"),
        )
        for number, row in table.rows
        if all(row.get(name, "").strip() for name in (*texts, column))
    ]
    if not examples:
        raise UsageError(f"int8tile finetune: {table.file} must hold a complete row; it has none")
    return examples


def _number(value: str) -> float:
    try:
        return float(value)
    except ValueError:
        return math.nan


def _as_number(value: str, place: str) -> float:
    number = _number(value)
    if not math.isfinite(number):
        raise UsageError(f"int8tile finetune: {place}: label must be a number; got {value!r}")
    return number


def _as_class(labels: Sequence[str]) -> Label:
    index = {label: i for i, label in enumerate(labels)}

    def label(value: str, place: str) -> int:
        if value not in index:
            raise UsageError(
                f"int8tile finetune: {place}: label must be one of the training file's, "
                f"{', '.join(labels[:20])}{', ...' * (len(labels) > 20)}; got {value!r}"
            )
        return index[value]

    return label
