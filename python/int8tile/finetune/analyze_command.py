"""The options of `int8tile analyze`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, ClassVar

import typer
from rich.console import Console

from int8tile.finetune.analyze import analyze as run
from int8tile.finetune.options import (
    STRESS_HELP,
    BatchSizeOption,
    DocStrideOption,
    LabelColumnOption,
    ModelOption,
    RegressionOption,
    SeedOption,
    TaskOption,
    TextColumnsOption,
    output_option,
    training_option,
    what_option,
)
from int8tile.finetune.settings import Settings, UsageError

DEFAULTS = Settings(max_steps=10, output=Path("int8tile-analysis"))
measure_option = partial(typer.Option, rich_help_panel="Measuring")


@dataclass(frozen=True)
class AnalyzeSettings(Settings):
    """The settings of `finetune`, of which some are options of another name here."""

    OPTIONS: ClassVar[Mapping[str, str]] = {"max_steps": "steps", "threshold": "gamma"}


@contextmanager
def _own_name() -> Iterator[None]:
    """Name this command in what the settings and the data complain about."""
    try:
        yield
    except (UsageError, ImportError) as error:
        text = str(error).removeprefix("int8tile finetune: ").removeprefix("int8tile analyze: ")
        raise type(error)(f"int8tile analyze: {text}") from error


def analyze(
    model: ModelOption = None,
    task: TaskOption = DEFAULTS.task,
    data: Annotated[
        Path | None,
        what_option(
            "--data",
            help="The task's files, as for finetune.",
            show_default="the hub for GLUE and SQuAD",
        ),
    ] = None,
    text_columns: TextColumnsOption = None,
    label_column: LabelColumnOption = None,
    regression: RegressionOption = DEFAULTS.regression,
    max_length: Annotated[
        int | None,
        what_option("--max-length", help="Most tokens of an example.", show_default="as finetune"),
    ] = None,
    doc_stride: DocStrideOption = None,
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
            help=STRESS_HELP,
        ),
    ] = DEFAULTS.stress,
    batch_size: BatchSizeOption = DEFAULTS.batch_size,
    lr: Annotated[float, training_option("--lr", help="Learning rate.")] = DEFAULTS.lr,
    seed: SeedOption = DEFAULTS.seed,
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
    with _own_name():
        settings = AnalyzeSettings(
            model=model, task=task, data=data, text_columns=texts, label_column=label_column,
            regression=regression, max_length=max_length, doc_stride=doc_stride, max_steps=steps,
            threshold=gamma, outlier_bits=outlier_bits,
            stress=stress, batch_size=batch_size, lr=lr, seed=seed, threads=threads, output=output,
        )  # fmt: skip
        run(settings, every, Console())
