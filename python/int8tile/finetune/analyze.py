"""`int8tile analyze`: some float32 training steps, watched layer by layer. Start at `analyze`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from int8tile.analysis import Report, record
from int8tile.config import Int8TileConfig
from int8tile.finetune.settings import Settings, UsageError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Batch = dict[str, Any]


def analyze(settings: Settings, every: int = 1, console: Console | None = None) -> Report:
    """Train in float32 for some steps, measure what int8 would do, and write the output folder.

    The output holds report.json and report.html. Both are moved in at the end: an interrupted run
    leaves nothing behind.

    Args:
        settings: What to train, as for `int8tile.finetune.run`; its arms are not looked at, its
            threshold and outlier bits are those of the report, its steps those to watch.
        every: Quantize at every so many-th step; columns are counted in all steps.
        console: Where to show progress and the table; None shows nothing.

    Returns:
        What was measured.

    Raises:
        UsageError: Something that the settings name is missing or broken; raised before training.
        ImportError: The demo extra is not installed.
    """
    from int8tile import finetune
    from int8tile.analysis import page, table
    from int8tile.finetune import environment
    from int8tile.finetune.checkpoint import PACKAGED_MODEL
    from int8tile.finetune.output import check_writable, staging
    from int8tile.finetune.stress import Stress
    from int8tile.finetune.threads import using_threads

    finetune.check_demo_extra(settings)
    console = console or Console(quiet=True)
    check_writable(settings.output)
    if every < 1:
        raise UsageError(f"int8tile analyze: --every must be at least 1; got {every}")
    config = Int8TileConfig(threshold=settings.threshold, outlier_bits=settings.outlier_bits)
    threads = settings.threads or torch.get_num_threads()
    with using_threads(threads), staging(settings.output) as folder:
        with console.status("reading the data and the model"):
            model, batches, steps = _load(settings)
        order = [name for name, _ in model.named_modules()]
        if settings.stress != 1:
            Stress(model, settings.stress)
        with record(model, config, every=every) as recording:
            _train(model, batches, steps, settings.lr, console)
        facts = {**settings.arguments(), "max_steps": steps, "every": every}
        facts["model"] = settings.model or PACKAGED_MODEL
        del facts["arms"]
        report = recording.report(facts | environment.describe())
        report.write_json(folder / "report.json")
        with console.status("drawing"):
            layers = [name for name in order if name in report.layers]
            page.write(report, folder / "report.html", layers)
    console.print(table.table(report, console.width))
    console.print(table.advice(report.recommendation))
    console.print(report.recommendation.code(), markup=False, highlight=False, soft_wrap=True)
    console.print(f"written to {settings.output}: report.json, report.html", soft_wrap=True)
    return report


def _load(settings: Settings) -> tuple[PreTrainedModel, Iterator[Batch], int]:
    """Load model and data as fine-tuning does; give the model, its batches, and their number."""
    from int8tile.finetune.tasks import prepare
    from int8tile.finetune.train import total_steps

    task = prepare(settings)
    batches = _batches(task.train, task.collate, settings)
    return task.load_model(), batches, total_steps(settings, len(task.train))


def _batches(
    rows: Sequence[Batch], collate: Callable[[Sequence[Batch]], Batch], settings: Settings
) -> Iterator[Batch]:
    """Shuffled batches without end."""
    generator = torch.Generator().manual_seed(settings.seed)
    while True:
        order = torch.randperm(len(rows), generator=generator).tolist()
        for begin in range(0, len(order), settings.batch_size):
            yield collate([rows[i] for i in order[begin : begin + settings.batch_size]])


def _train(
    model: PreTrainedModel, batches: Iterator[Batch], steps: int, lr: float, console: Console
) -> None:
    """Take some steps of AdamW at a constant rate."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.01)
    model.train()
    columns = (
        TextColumn("[bold]step"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TextColumn("{task.fields[status]} left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        bar = progress.add_task("step", total=steps, status="")
        for _ in range(steps):
            loss = model(**next(batches)).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            progress.update(bar, advance=1, status=f"loss {loss.item():.3f}")
