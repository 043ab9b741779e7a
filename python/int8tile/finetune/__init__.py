"""`int8tile finetune`: the same fine-tuning in several number formats, compared. Start at `run`."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from int8tile.finetune.results import ArmResult, RunResult
from int8tile.finetune.settings import HUB_TASKS, Settings, UsageError

if TYPE_CHECKING:
    from rich.console import Console

    from int8tile.finetune.tasks import Task

__all__ = ["ArmResult", "RunResult", "Settings", "UsageError", "check_demo_extra", "run"]

DEMO_PACKAGES = ("transformers", "accelerate", "matplotlib")


def run(settings: Settings, console: Console | None = None) -> RunResult:
    """Fine-tune in every arm with the same seed and data order, and write the output folder.

    The output holds metrics.json, curves.png and model/, a plain transformers checkpoint of the
    last arm. All of it is moved in at the end: an interrupted run leaves nothing behind.

    Args:
        settings: What to do.
        console: Where to show progress and the table; None shows nothing.

    Returns:
        What each arm measured.

    Raises:
        UsageError: Something that the settings name is missing or broken; raised before training.
        ImportError: The demo extra is not installed.
    """
    check_demo_extra(settings)
    from rich.console import Console

    from int8tile.finetune import environment, report
    from int8tile.finetune.memory import release_memory
    from int8tile.finetune.output import check_writable, staging
    from int8tile.finetune.progress import ProgressBars
    from int8tile.finetune.quiet import quiet
    from int8tile.finetune.tasks import prepare
    from int8tile.finetune.train import train_arm

    console = console or Console(quiet=True)
    check_writable(settings.output)
    with _threads(settings.threads):
        with console.status("reading the data and the model"):
            task = prepare(settings)
        console.print(_describe(task), highlight=False)
        arms: dict[str, ArmResult] = {}
        metric_name = task.metric_names[0]
        with staging(settings.output) as folder:
            with ProgressBars(console, metric_name) as progress:
                for arm in settings.arms:
                    callback = progress.callback(arm)
                    arms[arm], model = train_arm(arm, task, str(folder), [callback])
                    if arm == settings.arms[-1]:
                        with quiet():
                            model.save_pretrained(folder / "model")
                            task.tokenizer.save_pretrained(folder / "model")
                    del model  # before the next one is loaded
                    release_memory()
            facts = {**environment.describe(), "model": task.source, "data": _facts(task)}
            result = RunResult(arms, metric_name, task.unit, facts, settings.arguments())
            report.write_json(result, folder / "metrics.json")
            report.draw_curves(result, folder / "curves.png")
    console.print(report.table(result))
    for note in report.notes(result):
        console.print(note, soft_wrap=True, highlight=False, markup=False)
    console.print(f"written to {settings.output}: metrics.json, curves.png, model", soft_wrap=True)
    return result


def check_demo_extra(settings: Settings) -> None:
    """Raise unless the packages that fine-tuning needs are installed.

    Args:
        settings: Tell whether the Hugging Face hub's datasets are needed.

    Raises:
        ImportError: Names the missing packages and the command that installs them.
    """
    hub = settings.task in HUB_TASKS and settings.data is None
    needed = (*DEMO_PACKAGES, "datasets") if hub else DEMO_PACKAGES
    missing = [name for name in needed if importlib.util.find_spec(name) is None]
    if missing:
        raise ImportError(
            f"int8tile finetune: needs {', '.join(missing)}; pip install 'int8tile[demo]'"
        )


def _describe(task: Task) -> str:
    """Say how much there is to train and evaluate on."""
    sizes = [f"{len(rows)} to evaluate ({name})" for name, rows in task.evaluation.items()]
    counts = f"{len(task.train)} {task.unit} to train, {', '.join(sizes)}"
    return "\n".join([f"[bold]{task.settings.task}[/]: {counts}", *task.notes()])


def _facts(task: Task) -> dict[str, Any]:
    return {
        "metric": task.metric_names[0],
        "unit": task.unit,
        "train_examples": len(task.train),
        "eval_examples": {name: len(rows) for name, rows in task.evaluation.items()},
        **task.facts,
    }


@contextmanager
def _threads(threads: int | None) -> Iterator[None]:
    """Set torch's number of threads, and set it back."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
