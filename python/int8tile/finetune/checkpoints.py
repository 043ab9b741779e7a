"""A run's checkpoints: OUTPUT/checkpoints/ARM/checkpoint-STEP, and the results of finished arms."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from int8tile.finetune.conversion import Conversion
from int8tile.finetune.outliers import LayerOutliers, Outliers
from int8tile.finetune.results import ArmResult
from int8tile.finetune.settings import Settings, UsageError

FOLDER = "checkpoints"  # in the output
PARTIAL = ".partial"  # in FOLDER: what is being written
PREFIX = "checkpoint-"
RECORD = "int8tile.json"  # of a checkpoint; written last
RESULT = "result.json"  # of an arm that is finished


@dataclass(frozen=True)
class Record:
    """What a checkpoint holds beside the Trainer's files.

    Args:
        step: Optimizer steps done.
        processes: Number of processes that saved it, each with a random state of its own.
        losses: Training loss of each step.
        seconds: Wall time of each step.
        starts: Steps at which the run began and went on.
    """

    step: int
    processes: int
    losses: Sequence[float]
    seconds: Sequence[float]
    starts: Sequence[int]


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint.

    Args:
        folder: Where it is.
        record: What it holds beside the Trainer's files.
    """

    folder: Path
    record: Record


class Checkpoints:
    """The checkpoints of one run; only its first process may call what writes.

    Args:
        settings: Give the folder, and how many checkpoints of an arm to keep.
        examples: Number of training examples, which must not change either.
    """

    def __init__(self, settings: Settings, examples: int) -> None:
        self.root = settings.output / FOLDER
        self.partial = self.root / PARTIAL
        self.skipped: list[str] = []  # lines on what was passed over
        self._always = settings.save_every is not None
        self._keep = settings.keep
        self._arms = settings.arms
        identity = settings.identity() | {"train_examples": examples}
        self._identity = json.loads(json.dumps(identity))
        self._results: dict[str, ArmResult] = {}

    def check_new(self) -> dict[str, ArmResult | Checkpoint]:
        """Raise a UsageError where a new run would mix its checkpoints with those of another."""
        # Looked at before anything is removed: another run may still be writing there.
        if self.root.exists() and any(each.name != PARTIAL for each in self.root.iterdir()):
            raise UsageError(
                f"int8tile finetune: {self.root} holds the checkpoints of an earlier run: "
                f"--resume goes on with it; to begin anew remove it or choose another --output"
            )
        self.discard()
        return {}

    def find(self) -> dict[str, ArmResult | Checkpoint]:
        """Find what an earlier run has left.

        Returns:
            The result of each arm that is finished, and the newest complete checkpoint of others.

        Raises:
            UsageError: There is nothing, nothing is left to do, or the settings were others.
        """
        self.discard()
        found: dict[str, ArmResult | Checkpoint] = {}
        for arm in self._arms:
            each = self._result(arm) or self._newest(arm)
            if each is not None:
                found[arm] = each
        if not found:
            why = "".join(f"; {line}" for line in self.skipped)
            raise UsageError(
                f"int8tile finetune: --resume needs a complete checkpoint in {self.root}; "
                f"there is none{why}"
            )
        if all(isinstance(found.get(arm), ArmResult) for arm in self._arms):
            raise UsageError(
                f"int8tile finetune: --resume has nothing left to do: the run in "
                f"{self.root.parent} is finished"
            )
        self._results = {arm: r for arm, r in found.items() if isinstance(r, ArmResult)}
        return found

    def complete(self, arm: str, record: Record) -> None:
        """Give the checkpoint that the Trainer wrote to `partial` its name, and drop old ones."""
        name = f"{PREFIX}{record.step}"
        written = self.partial / name
        files = {str(f.relative_to(written)): f.stat().st_size for f in _files(written)}
        content = {"identity": self._identity, "record": asdict(record), "files": files}
        (written / RECORD).write_text(json.dumps(content), encoding="utf-8")
        for file in _files(written):
            _to_disk(file)
        folder = self.root / arm
        folder.mkdir(exist_ok=True)
        if (folder / name).exists():  # an incomplete one
            (folder / name).rename(self.partial / "old")
        written.rename(folder / name)
        _to_disk(folder)
        self.discard()
        for old in self._all(arm)[self._keep :]:
            old.rename(self.root / PARTIAL)  # gone as a whole
            self.discard()

    def finish(self, arm: str, result: ArmResult) -> None:
        """Keep the result of an arm."""
        self._results[arm] = result
        if self._always or self.root.exists():
            self.keep_results()

    def keep_results(self) -> bool:
        """Write the results of finished arms that are not yet.

        Returns:
            Whether there is anything to go on from.
        """
        for arm, result in self._results.items():
            file = self.root / arm / RESULT
            if not file.exists():
                file.parent.mkdir(parents=True, exist_ok=True)
                content = {"identity": self._identity, "result": asdict(result)}
                new = file.with_name(f".{RESULT}")
                new.write_text(json.dumps(content), encoding="utf-8")
                _to_disk(new)
                new.rename(file)
        self.discard()
        return self.root.exists()

    def end(self, arms: Mapping[str, ArmResult]) -> None:
        """Mark the run as finished, or remove what it was not asked to save."""
        if self._always:
            self._results.update(arms)
            self.keep_results()
        elif self.root.exists():
            shutil.rmtree(self.root)

    def discard(self) -> None:
        """Remove what was not written to its end."""
        if self.partial.exists():
            shutil.rmtree(self.partial)
        if self.root.exists() and not any(self.root.iterdir()):
            self.root.rmdir()

    def _all(self, arm: str) -> list[Path]:
        """List an arm's checkpoints, the newest first."""
        folders = [
            f for f in (self.root / arm).glob(f"{PREFIX}*") if f.name[len(PREFIX) :].isdigit()
        ]
        return sorted(folders, key=lambda folder: int(folder.name[len(PREFIX) :]), reverse=True)

    def _newest(self, arm: str) -> Checkpoint | None:
        for folder in self._all(arm):
            content = _read(folder / RECORD)
            why = _missing(folder, content)
            if content is not None and not why:
                self._check(folder, content)
                return Checkpoint(folder, Record(**content["record"]))
            self.skipped.append(f"{folder} is incomplete ({why}): passed over")
        return None

    def _result(self, arm: str) -> ArmResult | None:
        content = _read(self.root / arm / RESULT)
        if content is None:
            return None
        self._check(self.root / arm, content)
        return _to_result(content["result"])

    def _check(self, folder: Path, content: Mapping[str, Any]) -> None:
        """Raise unless a checkpoint is of the same run."""
        mine = self._identity
        defaults = json.loads(json.dumps(Settings().identity()))  # of settings newer than it
        saved = {n: defaults.get(n) for n in mine} | content["identity"]
        differ = [
            f"{_option(name)} is {mine.get(name)} and was {saved.get(name)}"
            for name in dict.fromkeys([*mine, *saved])
            if mine.get(name) != saved.get(name)
        ]
        if differ:
            raise UsageError(
                f"int8tile finetune: --resume must have the settings of the run in {folder}: "
                f"{', '.join(differ)}"
            )


def _option(name: str) -> str:
    if name == "train_examples":
        return "the number of training examples"
    return f"--{name.replace('_', '-')}"


def _files(folder: Path) -> list[Path]:
    return sorted(each for each in folder.rglob("*") if each.is_file())


def _to_disk(path: Path) -> None:
    """Wait until a file, or a folder's names, would outlast a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _read(file: Path) -> dict[str, Any] | None:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def _missing(folder: Path, content: Mapping[str, Any] | None) -> str:
    """Say what a checkpoint lacks; nothing where it is complete."""
    if content is None:
        return f"{RECORD} is missing or broken"
    for name, size in content["files"].items():
        file = folder / name
        if not file.is_file():
            return f"{name} is missing"
        if file.stat().st_size != size:
            return f"{name} has {file.stat().st_size} of {size} bytes"
    return ""


def _to_result(values: dict[str, Any]) -> ArmResult:
    for name in ("train_curve", "eval_curve"):
        values[name] = [(step, value) for step, value in values[name]]
    if values["conversion"]:
        values["conversion"] = Conversion(**values["conversion"])
    if values["outliers"]:
        layers = values["outliers"]["layers"]
        values["outliers"] = Outliers({n: LayerOutliers(**each) for n, each in layers.items()})
    return ArmResult(**values)
