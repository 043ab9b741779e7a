"""Reads a table of text: .tsv without quoting, .csv with it, or .jsonl with an object a line."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from int8tile.finetune.settings import UsageError

SUFFIXES = (".tsv", ".csv", ".jsonl")
Fields = dict[str, str]  # column -> text; a column that the row leaves out is missing or empty


@dataclass(frozen=True)
class Table:
    """The rows of one file.

    Args:
        file: Where they come from.
        columns: Names of the columns, in the order found.
        rows: (line number, fields) of each row.
    """

    file: Path
    columns: Sequence[str]
    rows: Sequence[tuple[int, Fields]]

    def require(self, *columns: str) -> None:
        """Raise unless all of `columns` are there.

        Args:
            *columns: Names of columns.

        Raises:
            UsageError: Names the first one missing and those present.
        """
        for column in columns:
            if column not in self.columns:
                raise UsageError(
                    f"int8tile finetune: {self.file} must have a column {column!r}; "
                    f"got {', '.join(map(repr, self.columns))}"
                )


def read_table(file: Path) -> Table:
    """Read one file.

    Args:
        file: A UTF-8 file whose suffix is one of `SUFFIXES`; .tsv and .csv have a header row.

    Returns:
        Its rows; those without any field are left out.

    Raises:
        UsageError: The file cannot be read, is broken, or has no rows.
    """
    readers = {".tsv": _read_tsv, ".csv": _read_csv, ".jsonl": _read_jsonl}
    try:
        text = file.read_text(encoding="utf-8-sig")
        rows = list(readers[file.suffix](text))
    except (OSError, UnicodeDecodeError, csv.Error, json.JSONDecodeError) as error:
        raise UsageError(f"int8tile finetune: cannot read {file}: {error}") from error
    except _BrokenRowError as error:
        raise UsageError(f"int8tile finetune: {file}:{error}") from error
    if not rows:
        raise UsageError(f"int8tile finetune: {file} must hold at least one row; it has none")
    return Table(file, list(dict.fromkeys(name for _, row in rows for name in row)), rows)


class _BrokenRowError(ValueError):
    """A row that is no row of its file: line number, what is required, what came."""


def _read_tsv(text: str) -> Iterator[tuple[int, Fields]]:
    # A quotation mark is text, as in GLUE's files.
    lines = enumerate(text.split("\n"), 1)
    return _named((number, line.rstrip("\r").split("\t")) for number, line in lines if line.strip())


def _read_csv(text: str) -> Iterator[tuple[int, Fields]]:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    return _named((reader.line_num, fields) for fields in reader if fields)


def _named(rows: Iterator[tuple[int, list[str]]]) -> Iterator[tuple[int, Fields]]:
    """Give the fields of each row the names that the first row holds."""
    header = [name.strip() for name in next(rows, (0, []))[1]]
    for number, fields in rows:
        if len(fields) > len(header):
            raise _BrokenRowError(
                f"{number}: a row must have at most {len(header)} fields; got {len(fields)}"
            )
        yield number, dict(zip(header, fields + [""] * (len(header) - len(fields)), strict=True))


def _read_jsonl(text: str) -> Iterator[tuple[int, Fields]]:
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise _BrokenRowError(
                    f"{number}: a line must be a JSON object; {error.msg}"
                ) from error
            if not isinstance(row, dict):
                raise _BrokenRowError(
                    f"{number}: a line must be a JSON object; got {type(row).__name__}"
                )
            yield number, {name: _text(value) for name, value in row.items()}


def _text(value: object) -> str:
    """Give a JSON value as the text that a .csv file would hold."""
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
