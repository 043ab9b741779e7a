"""One run of bench_accuracy: what decides it, and the JSON file that it leaves."""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import int8tile
from accuracy_arms import Arm
from int8tile.finetune import Settings, UsageError

TRAIN, GRADIENT = "train", "gradient"
HUB = "hub"


@dataclass(frozen=True)
class Recipe:
    """How a task is trained and evaluated.

    Args:
        steps: Optimizer steps.
        max_eval: Examples (questions of SQuAD) to evaluate; None: all.
        max_train: Those to train on; None: all.
        batch_size: Examples (windows of SQuAD) of a step.
        lr: Peak learning rate.
        max_length: Tokens of an example at most, padded to the longest of the batch.
        group_by_length: Whether examples of a batch are of about the same length.
    """

    steps: int = 100
    max_eval: int | None = None
    max_train: int | None = None
    batch_size: int = 32
    lr: float = 2e-4
    max_length: int = 128
    group_by_length: bool = False


DOCSTRINGS = "docstrings"  # needs no data: the standard library's
RECIPES = {
    "sst2": Recipe(max_train=10000),
    "mrpc": Recipe(steps=200, max_eval=1000, lr=1e-4, group_by_length=True),
    "qnli": Recipe(steps=150, max_eval=1000, lr=1e-4, group_by_length=True),
    "rte": Recipe(steps=120, lr=5e-5, group_by_length=True),
    "squad": Recipe(
        steps=300,
        max_eval=400,
        max_train=4000,
        batch_size=8,
        lr=1e-4,
        max_length=192,
        group_by_length=True,
    ),
    DOCSTRINGS: Recipe(lr=5e-4),
}


@dataclass(frozen=True)
class Source:
    """Where data and model come from; the same files elsewhere are the same data.

    Args:
        data: Folder with the tasks' folders, in it or in glue/; None: the Hugging Face hub.
        model: As for `int8tile finetune`.
        digests: (task, digest) of data that is not here, as kept runs have them.
    """

    data: Path | None = None
    model: str | None = None
    digests: tuple[tuple[str, str], ...] = ()

    def folder(self, task: str) -> Path | None:
        """Give what `int8tile finetune` takes as the data of a task."""
        if self.data is None or task == DOCSTRINGS:
            return None
        glue = self.data / "glue"
        return glue if task != "squad" and glue.is_dir() else self.data

    def fingerprint(self, task: str) -> str:
        """Give a digest of the task's files."""
        if task == DOCSTRINGS:
            return f"Python {platform.python_version()}"
        if (known := dict(self.digests).get(task)) is not None:
            return known
        folder = self.folder(task)
        return HUB if folder is None else _digest_files(folder, task)


def kept(work: Path, model: str | None) -> Source:
    """Give the source of the runs in `work`, of each task the data that most of them have."""
    counts: dict[str, Counter[str]] = {}
    for file in sorted(work.glob("*.json")):
        identity = json.loads(file.read_text(encoding="utf-8"))["identity"]
        if identity["model"] == model:
            counts.setdefault(identity["task"], Counter())[identity["data"]] += 1
    digests = [(task, found.most_common(1)[0][0]) for task, found in counts.items()]
    return Source(None, model, tuple(digests))


@cache
def _digest_files(folder: Path, task: str) -> str:
    names = [task, "SST-2" if task == "sst2" else task.upper()]
    own = next((folder / name for name in names if (folder / name).is_dir()), None)
    if own is None:
        raise UsageError(f"bench_accuracy: --data must hold a folder {task}; {folder} has none")
    digest = hashlib.sha256()
    for file in sorted(own.iterdir()):
        if file.suffix in (".tsv", ".json"):
            digest.update(file.name.encode() + file.read_bytes())
    return digest.hexdigest()[:12]


@dataclass(frozen=True)
class Run:
    """One run; equal runs are made once.

    Args:
        kind: `TRAIN`, or `GRADIENT`: gradients and time of a step, without training.
        arm: The number format.
        task: A key of `RECIPES`.
        stress: Factor of the injected outliers; 1: none.
        seed: Of the classifier, the order of the data and dropout.
        recipe: How it is trained.
    """

    kind: str
    arm: Arm
    task: str
    stress: float
    seed: int
    recipe: Recipe

    def identity(self, source: Source) -> dict[str, Any]:
        """Give everything that decides the result, as JSON values."""
        values = asdict(self) | {
            "stress": float(self.stress),
            "model": source.model,
            "data": source.fingerprint(self.task),
            "int8tile": int8tile.__version__,
        }
        read: dict[str, Any] = json.loads(json.dumps(values))
        return read

    def file(self, source: Source, work: Path) -> Path:
        """Name the run's file after what decides it."""
        text = json.dumps(self.identity(source), sort_keys=True)
        digest = hashlib.sha256(text.encode()).hexdigest()[:16]
        name = f"{self.kind}-{self.task}-{self.arm.format}-x{self.stress:g}-s{self.seed}-{digest}"
        return work / f"{name}.json"

    def settings(self, source: Source, output: Path) -> Settings:
        """Give the settings of `int8tile finetune` for this run."""
        recipe = self.recipe
        return Settings(
            model=source.model,
            task=self.task,
            data=source.folder(self.task),
            stress=self.stress,
            max_steps=recipe.steps,
            max_train=recipe.max_train,
            max_eval=recipe.max_eval,
            epochs=1e6,  # the steps decide
            batch_size=recipe.batch_size,
            lr=recipe.lr,
            seed=self.seed,
            max_length=recipe.max_length,
            group_by_length=recipe.group_by_length,
            output=output,
        )


def read(file: Path) -> dict[str, Any] | None:
    """Read a run's file; None where the run was not made."""
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    content: dict[str, Any] = json.loads(text)
    return content


def write(file: Path, content: Mapping[str, Any]) -> None:
    """Write a run's file as a whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(f".{os.getpid()}.partial")
    try:
        partial.write_text(json.dumps(finite(content), allow_nan=False), encoding="utf-8")
        partial.rename(file)
    finally:
        partial.unlink(missing_ok=True)


def finite(value: Any) -> Any:  # noqa: ANN401 - JSON values
    """Replace every number that JSON cannot hold by None."""
    if isinstance(value, Mapping):
        return {name: finite(each) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
