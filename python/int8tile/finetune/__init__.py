"""`int8tile finetune`: the same fine-tuning in several number formats, compared. Start at `run`."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from int8tile.finetune.results import ArmResult, RunResult
from int8tile.finetune.settings import Settings, UsageError

if TYPE_CHECKING:
    from rich.console import Console

    from int8tile.finetune.train import Inputs

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
    from int8tile.finetune.train import train_arm

    console = console or Console(quiet=True)
    check_writable(settings.output)
    with _threads(settings.threads):
        with console.status("reading the data and the model"):
            inputs = _prepare(settings)
        sizes = {name: len(rows) for name, rows in inputs.evaluation.items()}
        console.print(
            f"[bold]{settings.task}[/]: {len(inputs.train)} examples to train, "
            f"{', '.join(f'{n} to evaluate ({name})' for name, n in sizes.items())}",
            highlight=False,
        )
        arms: dict[str, ArmResult] = {}
        metric_name = inputs.data.metric_names[0]
        with staging(settings.output) as folder:
            with ProgressBars(console, metric_name) as progress:
                for arm in settings.arms:
                    callback = progress.callback(arm)
                    arms[arm], model = train_arm(arm, inputs, str(folder), [callback])
                    if arm == settings.arms[-1]:
                        with quiet():
                            model.save_pretrained(folder / "model")
                            inputs.tokenizer.save_pretrained(folder / "model")
                    del model  # before the next one is loaded
                    release_memory()
            data = {
                "metric": metric_name,
                "train_examples": len(inputs.train),
                "eval_examples": sizes,
                "labels": list(inputs.data.labels),
                "skipped_rows": inputs.data.skipped_rows,
            }
            facts = {**environment.describe(), "model": inputs.source, "data": data}
            result = RunResult(arms, metric_name, facts, settings.arguments())
            report.write_json(result, folder / "metrics.json")
            report.draw_curves(result, folder / "curves.png")
    console.print(report.table(result))
    console.print(f"written to {settings.output}: metrics.json, curves.png, model", soft_wrap=True)
    return result


def check_demo_extra(settings: Settings) -> None:
    """Raise unless the packages that fine-tuning needs are installed.

    Args:
        settings: Tell whether the Hugging Face hub's datasets are needed.

    Raises:
        ImportError: Names the missing packages and the command that installs them.
    """
    hub = settings.task != "docstrings" and settings.data is None
    needed = (*DEMO_PACKAGES, "datasets") if hub else DEMO_PACKAGES
    missing = [name for name in needed if importlib.util.find_spec(name) is None]
    if missing:
        raise ImportError(
            f"int8tile finetune: needs {', '.join(missing)}; pip install 'int8tile[demo]'"
        )


def _prepare(settings: Settings) -> Inputs:
    """Find the model, read the task and tokenize it: all that can fail before training."""
    from int8tile.finetune import checkpoint, docstrings, glue
    from int8tile.finetune.train import Inputs

    source = checkpoint.find_model(settings.model)
    tokenizer = checkpoint.load_tokenizer(source, settings.max_length)
    if settings.task == "docstrings":
        data = docstrings.load()
    elif settings.data is not None:
        data = glue.load_files(settings.task, settings.data)
    else:
        data = glue.load_hub(settings.task)
    data = data.limited(settings.max_train)
    train = checkpoint.tokenize(data.train, tokenizer, settings.max_length)
    evaluation = {
        # Examples of a like length share a batch, which needs less padding; the order of an
        # evaluation does not matter.
        name: sorted(
            checkpoint.tokenize(examples, tokenizer, settings.max_length),
            key=lambda row: len(row["input_ids"]),
        )
        for name, examples in data.evaluation.items()
    }
    return Inputs(settings, data, source, tokenizer, train, evaluation)


@contextmanager
def _threads(threads: int | None) -> Iterator[None]:
    """Set torch's number of threads, and set it back."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
