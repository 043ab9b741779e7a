"""The options of `int8tile analyze`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from int8tile.finetune.analyze import analyze as run
from int8tile.finetune.settings import TASK_NAMES, Settings, UsageError

DEFAULTS = Settings(max_steps=10, output=Path("int8tile-analysis"))
what_option = partial(typer.Option, rich_help_panel="What")
measure_option = partial(typer.Option, rich_help_panel="Measuring")
training_option = partial(typer.Option, rich_help_panel="Training")
output_option = partial(typer.Option, rich_help_panel="Output")
# The settings are those of `finetune`; here some of them have other names.
RENAMED = {
    "int8tile finetune:": "int8tile analyze:",
    "--max-steps": "--steps",
    "--threshold": "--gamma",
}


@contextmanager
def _own_names() -> Iterator[None]:
    """Name this command and its options in what the settings and the data complain about."""
    try:
        yield
    except (UsageError, ImportError) as error:
        text = str(error)
        for theirs, ours in RENAMED.items():
            text = text.replace(theirs, ours)
        raise type(error)(text) from error


def analyze(
    model: Annotated[
        str | None,
        what_option("--model", help="Hub id or directory.", show_default="packaged MiniLM"),
    ] = None,
    task: Annotated[
        str, what_option("--task", help=f"One of {', '.join(TASK_NAMES)}.")
    ] = DEFAULTS.task,
    data: Annotated[
        Path | None,
        what_option("--data", help="The task's files, as for finetune.", show_default="the hub"),
    ] = None,
    text_columns: Annotated[
        str | None,
        what_option(
            "--text-columns", metavar="A[,B]", help="Texts of a custom task.", show_default="text"
        ),
    ] = None,
    label_column: Annotated[
        str | None,
        what_option("--label-column", help="Labels of a custom task.", show_default="label"),
    ] = None,
    max_length: Annotated[
        int | None,
        what_option("--max-length", help="Most tokens of an example.", show_default="as finetune"),
    ] = None,
    steps: Annotated[
        int | None, measure_option("--steps", help="Training steps to watch.")
    ] = DEFAULTS.max_steps,
    every: Annotated[
        int,
        measure_option("--every", help="Quantize at every so many-th step; columns count in all."),
    ] = 1,
    gamma: Annotated[
        float,
        measure_option("--gamma", help="Activations above it are outliers; others are compared."),
    ] = DEFAULTS.threshold,
    outlier_bits: Annotated[
        int, measure_option("--outlier-bits", help="Bits of an outlier, 8 to 15.")
    ] = DEFAULTS.outlier_bits,
    stress: Annotated[
        float,
        measure_option(
            "--stress",
            metavar="K",
            help="Multiply 4 input features of each linear by K and divide its weight's columns "
            "by K: the same function, with the outliers of a larger model. 1 leaves it out.",
        ),
    ] = DEFAULTS.stress,
    batch_size: Annotated[
        int, training_option("--batch-size", help="Examples per step.")
    ] = DEFAULTS.batch_size,
    lr: Annotated[float, training_option("--lr", help="Learning rate.")] = DEFAULTS.lr,
    seed: Annotated[
        int, training_option("--seed", help="Of classifier, data order and dropout.")
    ] = DEFAULTS.seed,
    threads: Annotated[
        int | None,
        training_option("--threads", help="CPU threads.", show_default="torch's choice"),
    ] = None,
    output: Annotated[
        Path, output_option("--output", help="Folder for the report.")
    ] = DEFAULTS.output,
) -> None:
    """Measure what int8 would do to each linear layer of a model, and recommend a config.

    Trains in float32 for some steps and, at each, quantizes what every linear layer sees: outlier
    columns, signal-to-noise ratio of input, weight, gradient and output, and the angle between int8
    and float gradients, without and with split outliers.

    The output folder gets report.html to look at and report.json.
    """
    texts = (
        None if text_columns is None else tuple(each.strip() for each in text_columns.split(","))
    )
    with _own_names():
        settings = Settings(
            model=model, task=task, data=data, text_columns=texts, label_column=label_column,
            max_length=max_length, max_steps=steps, threshold=gamma, outlier_bits=outlier_bits,
            stress=stress, batch_size=batch_size, lr=lr, seed=seed, threads=threads, output=output,
        )  # fmt: skip
        run(settings, every, Console())
