"""Writes a run's folder as a whole: everything is prepared in a hidden folder, then moved."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from int8tile.finetune.settings import UsageError

PREFIX = ".int8tile-"


def check_writable(output: Path) -> None:
    """Raise unless files can be written to `output`, leaving no trace.

    Args:
        output: A folder, which need not exist.

    Raises:
        UsageError: It is a file, or it cannot be written.
    """
    made: list[Path] = []
    try:
        made = _make(output)
        with tempfile.TemporaryDirectory(prefix=PREFIX, dir=output):
            pass
    except OSError as error:
        raise UsageError(
            f"int8tile finetune: --output must be a folder that can be written; got {output} "
            f"({error.strerror})"
        ) from error
    finally:
        _remove(made)


@contextmanager
def staging(output: Path) -> Iterator[Path]:
    """Give a folder to write to, whose content moves into `output` if all goes well.

    Files and folders of `output` with the same names are replaced, others stay. After an
    exception `output` is as it was before.

    Args:
        output: The final folder, made if need be.

    Yields:
        An empty folder on the same file system.
    """
    made = _make(output)
    try:
        with tempfile.TemporaryDirectory(prefix=PREFIX, dir=output) as scratch:
            new, old = Path(scratch, "new"), Path(scratch, "old")
            new.mkdir()
            old.mkdir()
            yield new
            _replace(new, output, old)
    except BaseException:
        _remove(made)
        raise


def _replace(new: Path, output: Path, old: Path) -> None:
    """Move what is in `new` to `output`, and what was there to `old`; all of it or nothing."""
    names = sorted(entry.name for entry in new.iterdir())
    try:
        for name in names:
            if (output / name).exists():
                (output / name).rename(old / name)
            (new / name).rename(output / name)
    except BaseException:
        for name in names:
            if not (new / name).exists():
                (output / name).rename(new / name)
            if (old / name).exists():
                (old / name).rename(output / name)
        raise


def _make(folder: Path) -> list[Path]:
    """Make a folder and its parents; give those that were missing, the innermost first."""
    made = [each for each in (folder, *folder.parents) if not each.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    return made


def _remove(folders: list[Path]) -> None:
    """Remove folders that are empty, the innermost first."""
    with suppress(OSError):
        for folder in folders:
            folder.rmdir()
