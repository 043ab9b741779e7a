"""Options that `int8tile finetune` and `int8tile analyze` share, in groups of their help."""

from __future__ import annotations

from functools import partial
from typing import Annotated

import typer

from int8tile.finetune.settings import TASK_NAMES

what_option = partial(typer.Option, rich_help_panel="What")
training_option = partial(typer.Option, rich_help_panel="Training")
output_option = partial(typer.Option, rich_help_panel="Output")

STRESS_HELP = (
    "Multiply 4 input features of each linear by K and divide its weight's columns by K: the same "
    "function, with the outliers of a larger model. 1 leaves it out."
)

ModelOption = Annotated[
    str | None,
    what_option("--model", help="Hub id or directory.", show_default="packaged MiniLM"),
]
TaskOption = Annotated[str, what_option("--task", help=f"One of {', '.join(TASK_NAMES)}.")]
TextColumnsOption = Annotated[
    str | None,
    what_option(
        "--text-columns", metavar="A[,B]", help="Texts of a custom task.", show_default="text"
    ),
]
LabelColumnOption = Annotated[
    str | None,
    what_option("--label-column", help="Labels of a custom task.", show_default="label"),
]
RegressionOption = Annotated[
    bool,
    what_option(
        "--regression",
        help="A custom task's labels are numbers to predict, as they are taken anyway if they are "
        "not all whole.",
    ),
]
DocStrideOption = Annotated[
    int | None,
    what_option(
        "--doc-stride",
        help="Tokens that two windows of one context share (SQuAD).",
        show_default="a third of the length",
    ),
]
BatchSizeOption = Annotated[int, training_option("--batch-size", help="Examples per step.")]
SeedOption = Annotated[
    int, training_option("--seed", help="Of classifier, data order and dropout.")
]
