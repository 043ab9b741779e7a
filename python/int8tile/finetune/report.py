"""Presents a run: the table on the console, metrics.json and curves.png."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from rich import box
from rich.table import Table

from int8tile.finetune.results import RunResult

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BASELINE = "fp32"
# Okabe and Ito's colours, which the colour-blind can tell apart; an arm keeps its colour.
COLORS = {
    "fp32": "#000000",
    "bf16": "#009E73",
    "int8": "#E69F00",
    "int8-split": "#0072B2",
    "int8-gain": "#D55E00",
    "paper-int8": "#CC79A7",
    "paper-split": "#56B4E9",
}


def table(result: RunResult) -> Table:
    """Lay the arms out as a table.

    Args:
        result: The run.

    Returns:
        A table with one row per arm.
    """
    columns = (
        *("arm", result.metric_name, "eval\nloss", f"{result.unit}\nper s"),
        *(f"speed\n/ {BASELINE}", "saved for\nbackward", "outliers /\noverflow"),
    )
    rows = []
    baseline = result.arms.get(BASELINE)
    for arm, each in result.arms.items():
        speed = each.examples_per_second / baseline.examples_per_second if baseline else None
        rows.append(
            [
                arm,
                f"{each.metric:.4f}",
                f"{each.loss:.4f}",
                f"{each.examples_per_second:.1f}",
                "-" if speed is None else f"{speed:.2f}x",
                f"{each.saved_bytes / 1e6:.1f} MB",
                f"{each.outliers.found:.1f}/{each.outliers.overflow:.1f}" if each.outliers else "-",
            ]
        )
    title = f"{result.arguments['task']}: fine-tuned in {len(result.arms)} arms"
    if (processes := result.environment.get("processes", 1)) > 1:
        title += f" by {processes} processes"
    shown = Table(title=title, box=box.SIMPLE_HEAVY, show_edge=False, padding=(0, 1, 0, 0))
    for column, *cells in zip(columns, *rows, strict=True):
        # It fits 80 columns.
        width = max(map(len, [*column.splitlines(), *cells]))
        first = column == "arm"
        shown.add_column(
            column,
            style="bold" if first else None,
            justify="left" if first else "right",
            min_width=width,
        )
    for row in rows:
        shown.add_row(*row)
    return shown


def notes(result: RunResult) -> list[str]:
    """Say what the table does not: all metrics, what is int8, and what outliers are counted by.

    Args:
        result: The run.

    Returns:
        A few lines.
    """
    conversions: dict[str, str] = {}  # what was converted -> the first arm that did
    for arm, each in result.arms.items():
        if each.conversion:
            conversions.setdefault(str(each.conversion), arm)
    lines = [
        f"{arm}: {', '.join(f'{name} {value:.4f}' for name, value in each.metrics.items())}"
        for arm, each in result.arms.items()
        if len(each.metrics) > 1
    ]
    lines += [f"{arm}: {text}" for text, arm in conversions.items()]
    if result.environment.get("processes", 1) > 1:
        lines.append(f"{result.unit}/s of all processes together; saved for backward in each")
    splitting = {arm: each.outliers for arm, each in result.arms.items() if each.outliers}
    if splitting:
        lines.append("outliers: columns above the threshold in one call of a layer, on average")
    for arm, outliers in splitting.items():
        full = {name: layer for name, layer in outliers.layers.items() if layer.overflow}
        if full:
            worst = max(full, key=lambda name: full[name].overflow)
            lines.append(
                f"{arm}: {len(full)} layers found more outlier columns than they can split, most "
                f"of all {worst} ({full[worst].found / full[worst].calls:.0f} found, "
                f"{full[worst].capacity} split); metrics.json has all"
            )
    return lines


def write_json(result: RunResult, file: Path) -> None:
    """Write metrics.json.

    Args:
        result: The run.
        file: The file to write.
    """
    text = json.dumps(result.to_json(), indent=2, allow_nan=False, ensure_ascii=False)
    file.write_text(text + "\n", encoding="utf-8")


def draw_curves(result: RunResult, file: Path) -> None:
    """Draw training loss and evaluation metric against the steps, one line per arm.

    Args:
        result: The run.
        file: The .png file to write.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.2), dpi=150, layout="constrained")
    left, right = figure.subplots(1, 2)
    for arm, each in result.arms.items():
        style = {"color": COLORS[arm], "linewidth": 2.4 if arm == BASELINE else 1.6, "alpha": 0.85}
        left.plot(*zip(*each.train_curve, strict=True), label=arm, **style)
        name = f"{arm}: {each.metric:.3f}"  # the last point
        right.plot(*zip(*each.eval_curve, strict=True), label=name, marker="o", ms=4, **style)
    left.set_ylim(bottom=0)
    _finish(left, "Training loss", "loss")
    _finish(right, f"Evaluation {result.metric_name}", result.metric_name)
    arguments = result.arguments
    figure.suptitle(
        f"int8tile finetune: {arguments['task']}, batch {arguments['batch_size']}, "
        f"lr {arguments['lr']:g}, seed {arguments['seed']}"
    )
    figure.savefig(file, metadata={"Software": "int8tile"})


def _finish(axes: Axes, title: str, label: str) -> None:
    axes.set_title(title)
    axes.set_xlim(left=0)
    axes.set_xlabel("step")
    axes.set_ylabel(label)
    axes.grid(visible=True, alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
