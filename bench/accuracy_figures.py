"""What the plots of bench_accuracy share: colors, panels, and the quantities they show."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

from accuracy_runs import GRADIENT, TRAIN
from accuracy_summary import Mean, Row, Value, mean, outlier_columns, percent, select, step_time
from int8tile.finetune.report import COLORS

mpl.use("Agg")

ANGLE = "1 - gradient cosine, mean of layers"
TASK_NAMES = {
    **{"sst2": "SST-2", "mrpc": "MRPC", "rte": "RTE", "qnli": "QNLI", "squad": "SQuAD, F1"},
    "docstrings": "docstrings",
}
ARM_COLORS = {
    **COLORS,
    **{"fp8": "#7F7F7F", "columns": COLORS["int8-split"], "columns-gain": COLORS["int8-gain"]},
}
STYLES = {"fp32": ":", "paper-int8": "--", "int8": "--"}  # without a split: not a whole line


def new_figure(
    columns: int, rows: int = 1, size: tuple[float, float] = (3.6, 3.6)
) -> tuple[Figure, Any]:
    """Make a figure and the array of its panels, each of `size` inches."""
    return plt.subplots(
        rows, columns, figsize=(size[0] * columns, size[1] * rows), squeeze=False,
        layout="constrained",
    )  # fmt: skip


def names(found: Sequence[Row], name: str, **wanted: object) -> list[Any]:
    """Give the distinct values that some rows have, in their order."""
    return list(dict.fromkeys(row[name] for row in select(found, **wanted)))


def finish(axes: Axes, title: str, ylabel: str = "", xlabel: str = "") -> None:
    """Put titles on a panel; what shows an angle is logarithmic."""
    if title.endswith(ANGLE):
        axes.set_yscale("log")
    if xlabel.endswith(ANGLE):
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 3)))
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set(title=title, ylabel=ylabel, xlabel=xlabel)
    axes.grid(visible=True, alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def style(arm: str, number: int = 0) -> dict[str, Any]:
    """Give an arm's line."""
    return {
        "color": ARM_COLORS.get(arm, f"C{number}"),
        "linestyle": STYLES.get(arm, "-"),
        "linewidth": 2.0,
    }


def legend_below(figure: Figure, arms: Sequence[str]) -> None:
    """Put one legend below all panels."""
    handles = [mpl.lines.Line2D([], [], label=arm, **style(arm, n)) for n, arm in enumerate(arms)]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(arms), frameon=False)


def _angle(row: Row) -> float | None:
    return None if row["cosine_layers"] is None else 1 - row["cosine_layers"]


QUANTITIES: Mapping[str, tuple[str, Value]] = {
    "points against fp32": (TRAIN, percent),
    ANGLE: (GRADIENT, _angle),
    "outlier columns of a call": (GRADIENT, outlier_columns),
    "time of a step / fp32's": (GRADIENT, step_time),
}


def _shown(value: Mean, kind: str) -> float | None:
    return value.difference if kind == TRAIN else value.mean


def over_tasks(
    found: Sequence[Row], kind: str, value: Value, **place: object
) -> tuple[float, float] | None:
    """Average what a panel shows over the tasks that have it; give also its error."""
    tasks = [task for task in TASK_NAMES if select(found, kind=kind, task=task)]
    means = [mean(found, value, kind=kind, task=task, **place) for task in tasks]
    each = [(shown, m.error) for m in means if (shown := _shown(m, kind)) is not None]
    if not each or len(each) < len(tasks):
        return None
    errors = [error for _, error in each if error is not None]
    known = kind == TRAIN and len(errors) == len(each)
    error = math.hypot(*errors) / len(each) if known else None
    return sum(shown for shown, _ in each) / len(each), or_nan(error)


def or_nan(error: float | None) -> float:
    """Give an error bar's length; NaN, for which no bar is drawn, where it is not known."""
    return math.nan if error is None else error
