"""Reads the text of the clm task: one file, or a folder of .txt files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from int8tile.finetune.settings import UsageError

EVALUATION_NAMES = ("dev.txt", "validation.txt", "eval.txt", "test.txt")


@dataclass(frozen=True)
class TextData:
    """The texts of one run.

    Args:
        train: Texts to train on, each a document.
        evaluation: Text to evaluate on; None where a part of `train` is to be held out.
    """

    train: Sequence[str]
    evaluation: str | None


def load(data: Path) -> TextData:
    """Read the texts.

    Args:
        data: A file, or a folder: the first of `EVALUATION_NAMES` is for evaluation, the others of
            these are left out, and every other .txt file is for training, in order of their names.

    Returns:
        The texts.

    Raises:
        UsageError: There is no such file, or it cannot be read or is empty.
    """
    if data.is_file():
        return TextData([_read(data)], None)
    files = sorted(file for file in data.glob("*.txt") if file.name not in EVALUATION_NAMES)
    if not files:
        raise UsageError(
            f"int8tile finetune: --data must be a text file or a folder with .txt files to train "
            f"on; got {data}"
        )
    names = (data / name for name in EVALUATION_NAMES)
    evaluation = next((file for file in names if file.is_file()), None)
    return TextData(list(map(_read, files)), None if evaluation is None else _read(evaluation))


def _read(file: Path) -> str:
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"int8tile finetune: cannot read {file}: {error}") from error
    if not text.strip():
        raise UsageError(f"int8tile finetune: {file} must hold text; it has none")
    return text
