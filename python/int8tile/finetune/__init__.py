"""`int8tile finetune`: the same fine-tuning in several number formats, compared. Start at `run`."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from int8tile.finetune.results import ArmResult, RunResult
from int8tile.finetune.settings import HUB_TASKS, Settings, UsageError

if TYPE_CHECKING:
    from rich.console import Console

    from int8tile.finetune.checkpoints import Checkpoint
    from int8tile.finetune.interruption import Interruption
    from int8tile.finetune.processes import Processes
    from int8tile.finetune.session import Session
    from int8tile.finetune.tasks import Task

__all__ = ["ArmResult", "RunResult", "Settings", "UsageError", "check_demo_extra", "run"]

DEMO_PACKAGES = ("transformers", "accelerate", "matplotlib")


def run(settings: Settings, console: Console | None = None) -> RunResult:
    """Fine-tune in every arm with the same seed and data order, and write the output folder.

    The output holds metrics.json, curves.png and model/, a plain transformers checkpoint of the
    last arm; with LoRA its adapters are merged there, and adapter/ holds them in peft's format.
    All of it is moved in at the end. Beside them checkpoints/ is written while training if
    `settings.save_every` is given, and by a run that is interrupted.

    Args:
        settings: What to do.
        console: Where to show progress and the table; None shows nothing.

    Returns:
        What each arm measured.

    Raises:
        UsageError: Something that the settings name is missing or broken; raised before training.
        ImportError: The demo extra is not installed.
        InterruptedRun: SIGINT or SIGTERM came, and the run can go on with `settings.resume`.
        LostProcessError: Another process of the run ended.
    """
    check_demo_extra(settings)
    from rich.console import Console

    from int8tile.finetune.interruption import Interruption
    from int8tile.finetune.processes import check_gpu, together
    from int8tile.finetune.threads import using_threads

    check_gpu(settings)
    console = console or Console(quiet=True)
    with together(settings) as processes:
        interruption = Interruption(processes)
        with interruption.handled(), using_threads(processes.threads(settings.threads)):
            shown = console if processes.first else Console(quiet=True)
            return _run(settings, processes, interruption, shown)


def _run(
    settings: Settings, processes: Processes, interruption: Interruption, console: Console
) -> RunResult:
    from int8tile.finetune import environment, report
    from int8tile.finetune.checkpoints import Checkpoints
    from int8tile.finetune.output import check_writable, staging
    from int8tile.finetune.session import Session
    from int8tile.finetune.tasks import prepare

    processes.from_first(lambda: check_writable(settings.output))
    with console.status("reading the data and the model"):
        task = prepare(settings)
    console.print(_describe(task, processes), highlight=False)
    checkpoints = Checkpoints(settings, len(task.train))
    found = processes.from_first(checkpoints.find if settings.resume else checkpoints.check_new)
    for line in checkpoints.skipped:
        console.print(line, soft_wrap=True, highlight=False)
    session = Session(task, processes, interruption, checkpoints)
    with staging(settings.output) if processes.first else nullcontext() as folder:
        with _resumable(session):
            arms = _train_arms(session, found, folder, console)
        facts = {
            **environment.describe(),
            "processes": processes.count,
            "model": task.source,
            "data": _facts(task),
        }
        result = RunResult(arms, task.metric_names[0], task.unit, facts, settings.arguments())
        if folder is not None:
            with interruption.waits():
                report.write_json(result, folder / "metrics.json")
                report.draw_curves(result, folder / "curves.png")
    if processes.first:
        checkpoints.end(arms)
    console.print(report.table(result))
    for note in report.notes(result):
        console.print(note, soft_wrap=True, highlight=False, markup=False)
    adapter = "" if settings.lora_rank is None else ", adapter"
    written = f"metrics.json, curves.png, model{adapter}"
    console.print(f"written to {settings.output}: {written}", soft_wrap=True)
    return result


def _train_arms(
    session: Session,
    found: Mapping[str, ArmResult | Checkpoint],
    folder: Path | None,
    console: Console,
) -> dict[str, ArmResult]:
    """Run the arms that are not finished, and save the last one's model."""
    from int8tile.finetune.checkpoints import Checkpoint
    from int8tile.finetune.interruption import InterruptedRun
    from int8tile.finetune.lora import is_adapted, merge
    from int8tile.finetune.memory import release_memory
    from int8tile.finetune.progress import ProgressBars
    from int8tile.finetune.quiet import quiet
    from int8tile.finetune.train import train_arm

    task = session.task
    arms: dict[str, ArmResult] = {}
    with ProgressBars(console, task.metric_names[0]) as progress:
        for arm in task.settings.arms:
            start = found.get(arm)
            if isinstance(start, ArmResult):
                arms[arm] = start
                console.print(f"{arm}: finished before", highlight=False)
                continue
            if isinstance(start, Checkpoint):
                console.print(f"{arm}: {_describe_start(start, session)}", soft_wrap=True)
            if session.interruption.asked:
                raise InterruptedRun
            arms[arm], model = train_arm(arm, session, start, [progress.callback(arm)])
            if arm != task.settings.arms[-1]:
                session.processes.from_first(partial(session.checkpoints.finish, arm, arms[arm]))
            elif folder is not None:
                with quiet(), session.interruption.waits():
                    if is_adapted(model):
                        model = merge(model, folder / "adapter")
                    model.save_pretrained(folder / "model")
                    task.tokenizer.save_pretrained(folder / "model")
            del model  # before the next one is loaded
            release_memory()
    return arms


@contextmanager
def _resumable(session: Session) -> Iterator[None]:
    """Keep what an interrupted run has, so that it can go on."""
    from int8tile.finetune.interruption import InterruptedRun

    try:
        yield
    except KeyboardInterrupt:
        if session.processes.first:
            session.checkpoints.keep_results()
        if session.checkpoints.root.exists():
            raise InterruptedRun from None
        raise
    except Exception:
        if session.processes.first:
            session.checkpoints.discard()
        raise


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
    if settings.lora_rank is not None and importlib.util.find_spec("peft") is None:
        raise ImportError("int8tile finetune: --lora-rank needs peft: pip install 'int8tile[demo]'")


def _describe(task: Task, processes: Processes) -> str:
    """Say how much there is to train and evaluate on."""
    sizes = [f"{len(rows)} to evaluate ({name})" for name, rows in task.evaluation.items()]
    counts = f"{len(task.train)} {task.unit} to train, {', '.join(sizes)}"
    lines = [f"[bold]{task.settings.task}[/]: {counts}", *task.notes()]
    if processes.count > 1:
        threads = torch.get_num_threads()
        lines.append(f"{processes.count} processes, {threads} threads each")
    return "\n".join(lines)


def _describe_start(start: Checkpoint, session: Session) -> str:
    """Say where an arm goes on, and whether with the random numbers that it would have drawn."""
    saved, count = start.record.processes, session.processes.count
    anew = "" if saved == count else f"; random numbers are drawn anew: {saved} processes saved it"
    return f"goes on from {start.folder}{anew}"


def _facts(task: Task) -> dict[str, Any]:
    return {
        "metric": task.metric_names[0],
        "unit": task.unit,
        "train_examples": len(task.train),
        "eval_examples": {name: len(rows) for name, rows in task.evaluation.items()},
        **task.facts,
    }
