"""Reads one GLUE .tsv file: today's and the original column names, label names and indices."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from int8tile.finetune.examples import Example
from int8tile.finetune.settings import UsageError

if TYPE_CHECKING:
    from int8tile.finetune.glue import GlueTask


def read_examples(file: Path, task: GlueTask) -> tuple[list[Example], int]:
    """Read the examples of one file.

    GLUE's files know no quoting: a quotation mark is text. A few rows of the original QQP file
    are cut off; rows without a label or a text are left out and counted.

    Args:
        file: A UTF-8 file of tab-separated fields, one header row (CoLA's original has none).
        task: The task that it belongs to.

    Returns:
        The examples, and how many rows were left out.

    Raises:
        UsageError: The file is not UTF-8 text, has no usable row, lacks a column, or holds a
            label of no class.
    """
    try:
        lines = file.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"int8tile finetune: cannot read {file}: {error}") from error
    rows = [(number, line.rstrip("\r").split("\t")) for number, line in enumerate(lines, 1) if line]
    header: Sequence[str] = [name.strip() for name in rows[0][1]] if rows else ()
    if task.headerless and len(header) == len(task.headerless) and header[1] in ("0", "1"):
        header = task.headerless
    else:
        rows = rows[1:]
    if not rows:
        raise UsageError(f"int8tile finetune: {file} must hold at least one example; it has none")
    text = _column(file, header, task.text)
    pair = _column(file, header, task.text_pair) if task.text_pair else None
    label = _column(file, header, task.label)
    needed = [text, label] if pair is None else [text, pair, label]
    examples = [
        Example(
            fields[text],
            None if pair is None else fields[pair],
            _label(fields[label], task.labels, f"{file}:{number}"),
        )
        for number, fields in rows
        if len(fields) > max(needed) and all(fields[column].strip() for column in needed)
    ]
    if not examples:
        raise UsageError(f"int8tile finetune: {file} must hold a complete row; it has none")
    return examples, len(rows) - len(examples)


def _column(file: Path, header: Sequence[str], names: Sequence[str]) -> int:
    """Give the index of the first of `names` that the header has."""
    for name in names:
        if name in header:
            return list(header).index(name)
    raise UsageError(
        f"int8tile finetune: {file} must have a column {' or '.join(map(repr, names))}; "
        f"got {', '.join(map(repr, header))}"
    )


def _label(value: str, labels: Sequence[str], place: str) -> int | float:
    """Read a label: a class name, a class index, or a number where there are no classes."""
    value = value.strip()
    if value in labels:
        return labels.index(value)
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not labels and math.isfinite(number):
        return number
    if labels and number.is_integer() and 0 <= number < len(labels):
        return int(number)
    wanted = f"one of {', '.join(labels)} or 0..{len(labels) - 1}" if labels else "a number"
    raise UsageError(f"int8tile finetune: {place}: label must be {wanted}; got {value!r}")
