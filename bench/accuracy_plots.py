"""The plots of bench_accuracy, drawn from whatever runs are finished."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from accuracy_arms import BASELINE
from accuracy_runs import GRADIENT, TRAIN
from accuracy_specs import stress_name
from accuracy_summary import (
    Mean,
    Row,
    Value,
    mean,
    mean_of_tasks,
    number,
    outlier_columns,
    percent,
    places,
    select,
    step_time,
)
from int8tile.finetune.report import COLORS

mpl.use("Agg")

DPI = 150
TASK_NAMES = {"sst2": "SST-2", "mrpc": "MRPC", "rte": "RTE", "qnli": "QNLI", "squad": "SQuAD, F1"}
ARM_COLORS = {**COLORS, "int8-gain": "#009E73", "fp8": "#D55E00"}
STYLES = {"fp32": ":", "paper-int8": "--", "int8": "--"}  # without a split: not a whole line


def draw(table: str, found: Sequence[Row], folder: Path) -> list[Path]:
    """Draw a table's plots.

    Args:
        table: A key of `PLOTS`.
        found: The rows that are there.
        folder: Takes the PNG files.

    Returns:
        The files.
    """
    files = []
    for suffix, plot in PLOTS[table].items():
        figure = plot(found)
        if figure is not None:
            path = folder / f"accuracy_{table}{suffix}.png"
            figure.savefig(path, dpi=DPI)
            plt.close(figure)
            files.append(path)
    return files


def _figure(
    columns: int, rows: int = 1, size: tuple[float, float] = (3.6, 3.6)
) -> tuple[Figure, Any]:
    return plt.subplots(
        rows, columns, figsize=(size[0] * columns, size[1] * rows), squeeze=False,
        layout="constrained",
    )  # fmt: skip


def _names(found: Sequence[Row], name: str, **wanted: object) -> list[Any]:
    return list(dict.fromkeys(row[name] for row in select(found, **wanted)))


def _finish(axes: Axes, title: str, ylabel: str = "", xlabel: str = "") -> None:
    axes.set(title=title, ylabel=ylabel, xlabel=xlabel)
    axes.grid(visible=True, alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def _style(arm: str, number: int = 0) -> dict[str, Any]:
    return {
        "color": ARM_COLORS.get(arm, f"C{number}"),
        "linestyle": STYLES.get(arm, "-"),
        "linewidth": 2.0,
    }


def by_stress(found: Sequence[Row]) -> Figure | None:
    """Draw points lost against float32 by stress, a panel per task and one of their mean."""
    train = select(found, kind=TRAIN)
    tasks = [task for task in TASK_NAMES if select(train, task=task)]
    arms = [arm for arm in _names(train, "arm") if arm != BASELINE]
    if not arms:
        return None
    figure, grid = _figure(len(tasks) + (len(tasks) > 1), size=(3.0, 3.8))
    panels = list(grid.flat)
    stresses = sorted(_names(train, "stress"))
    if len(tasks) > 1:
        _lines(panels[0], stresses, arms, lambda **p: mean_of_tasks(train, tasks, percent, **p))
        _finish(
            panels[0], f"mean of {len(tasks)} tasks", "points against fp32", "injected outliers"
        )
        panels = panels[1:]
    for axes, task in zip(panels, tasks, strict=True):
        _lines(axes, stresses, arms, lambda task=task, **p: mean(train, percent, task=task, **p))
        base = [
            mean(train, percent, kind=TRAIN, arm=BASELINE, task=task, stress=s).mean
            for s in stresses
        ]
        known = [f"{value:.1f}" for value in base if value is not None]
        _finish(axes, f"{TASK_NAMES[task]}\nfp32: {', '.join(known)}", "", "injected outliers")
    low = min(axes.get_ylim()[0] for axes in grid.flat)
    high = max(axes.get_ylim()[1] for axes in grid.flat)
    for axes in grid.flat:
        axes.set_ylim(low, high)
    handles = [mpl.lines.Line2D([], [], label=arm, **_style(arm, n)) for n, arm in enumerate(arms)]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(arms), frameon=False)
    return figure


def _lines(
    axes: Axes, stresses: Sequence[float], arms: Sequence[str], value: Callable[..., Mean]
) -> None:
    axes.axhline(0, color=ARM_COLORS[BASELINE], linewidth=1.2)
    for order, arm in enumerate(arms):
        means = [value(kind=TRAIN, arm=arm, stress=stress) for stress in stresses]
        points = [
            (x + 0.05 * (order - len(arms) / 2), each.difference, each.error or 0)
            for x, each in enumerate(means)
            if each.difference is not None
        ]
        if points:
            x, y, error = zip(*points, strict=True)
            axes.errorbar(x, y, error, marker="o", ms=4, capsize=2, **_style(arm, order))
    axes.set_xticks(range(len(stresses)), [stress_name(stress) for stress in stresses])


QUANTITIES: Mapping[str, tuple[str, Value]] = {
    "points against fp32": (TRAIN, percent),
    "gradient cosine, mean of layers": (GRADIENT, number("cosine_layers")),
    "outlier columns of a call": (GRADIENT, outlier_columns),
    "time of a step / fp32's": (GRADIENT, step_time),
}


def _shown(value: Mean, kind: str) -> float | None:
    return value.difference if kind == TRAIN else value.mean


def _over_tasks(
    found: Sequence[Row], kind: str, value: Value, **place: object
) -> tuple[float, float] | None:
    """Average what a panel shows over the tasks that have it; give also its error."""
    tasks = [task for task in TASK_NAMES if select(found, kind=kind, task=task)]
    means = [mean(found, value, kind=kind, task=task, **place) for task in tasks]
    each = [(shown, m.error or 0.0) for m in means if (shown := _shown(m, kind)) is not None]
    if not each or len(each) < len(tasks):
        return None
    error = sum(e**2 for _, e in each) ** 0.5 if kind == TRAIN else 0.0
    return sum(shown for shown, _ in each) / len(each), error / len(each)


def thresholds(found: Sequence[Row]) -> Figure | None:
    """Draw each quantity by gamma, a line for each number of bits, a row for each stress."""
    stresses = sorted(_names(found, "stress"))
    arms = [
        arm.removeprefix("gamma ").split(", ") for arm in _names(found, "arm") if "gamma" in arm
    ]
    gammas = sorted({float(gamma) for gamma, _ in arms})
    bits = list(dict.fromkeys(each for _, each in arms))
    figure, grid = _figure(len(QUANTITIES), len(stresses))
    for row, stress in zip(grid, stresses, strict=True):
        for axes, (title, (kind, value)) in zip(row, QUANTITIES.items(), strict=True):
            for order, each in enumerate(bits):
                found_at = {
                    g: _over_tasks(found, kind, value, arm=f"gamma {g:g}, {each}", stress=stress)
                    for g in gammas
                }
                _gamma_line(axes, found_at, each, order)
            plain = _over_tasks(found, kind, value, arm="no split", stress=stress)
            if plain is not None:
                axes.axhline(plain[0], color="black", linestyle="--", label="no split")
            _finish(axes, f"{stress_name(stress)}: {title}", "", "gamma")
    grid[0][0].legend(frameon=False, fontsize=8)
    return figure


def _gamma_line(axes: Axes, found: Mapping[float, Any], label: str, order: int) -> None:
    known = {gamma: each for gamma, each in found.items() if each is not None}
    if known:
        y, error = zip(*known.values(), strict=True)
        axes.errorbar(
            list(known), y, error, marker="o", ms=4, capsize=2, label=label, color=f"C{order}"
        )


def bars(found: Sequence[Row]) -> Figure | None:
    """Draw each quantity as bars, an arm below the other, a column of panels for each stress."""
    stresses = sorted(_names(found, "stress"))
    arms = [arm for arm in _names(found, "arm") if arm != BASELINE]
    if not arms:
        return None
    chosen = dict(list(QUANTITIES.items())[:2])
    figure, grid = _figure(len(stresses) * len(chosen), size=(3.6, 0.8 + 0.27 * len(arms)))
    panels = iter(grid.flat)
    for title, (kind, value) in chosen.items():
        for stress in stresses:
            axes = next(panels)
            for order, arm in enumerate(arms):
                shown = _over_tasks(found, kind, value, arm=arm, stress=stress)
                if shown is not None:
                    axes.barh(order, shown[0], xerr=shown[1], color=_bar_color(arm))
            labels = arms if axes is grid.flat[0] else [""] * len(arms)
            axes.set_yticks(range(len(arms)), labels)
            axes.invert_yaxis()
            _finish(axes, stress_name(stress), "", title)
    return figure


def _bar_color(arm: str) -> str:
    return COLORS["paper-split"] if arm.startswith(("tensor", "paper")) else COLORS["int8-split"]


def gains(found: Sequence[Row]) -> Figure | None:
    """Draw each quantity by stress, a line for each arm."""
    stresses = sorted(_names(found, "stress"))
    arms = [arm for arm in _names(found, "arm") if arm != BASELINE]
    figure, grid = _figure(len(QUANTITIES))
    for axes, (title, (kind, value)) in zip(grid.flat, QUANTITIES.items(), strict=True):
        for order, arm in enumerate(arms):
            at = [_over_tasks(found, kind, value, arm=arm, stress=stress) for stress in stresses]
            points = [(x, *each) for x, each in enumerate(at) if each is not None]
            if points:
                x, y, error = zip(*points, strict=True)
                axes.errorbar(
                    x, y, error, marker="o", ms=4, capsize=2, label=arm, **_style(arm, order)
                )
        axes.set_xticks(range(len(stresses)), [stress_name(stress) for stress in stresses])
        _finish(axes, title, "", "injected outliers")
    grid.flat[0].legend(frameon=False, fontsize=8)
    return figure


def curves(name: str, title: str, logarithmic: bool) -> Callable[[Sequence[Row]], Figure | None]:
    """Make a function that draws a curve's mean over seeds, a panel for each task and stress."""

    def plot(found: Sequence[Row]) -> Figure | None:
        there = places(found)
        tasks = [task for task in TASK_NAMES if any(task == each for each, _ in there)]
        stresses = sorted({stress for _, stress in there})
        figure, grid = _figure(len(tasks), len(stresses), size=(3.2, 2.6))
        arms = _names(found, "arm", kind=TRAIN)
        for row, stress in zip(grid, stresses, strict=True):
            for axes, task in zip(row, tasks, strict=True):
                for order, arm in enumerate(arms):
                    runs = select(found, kind=TRAIN, arm=arm, task=task, stress=stress)
                    _curve(axes, [run[name] for run in runs], _style(arm, order))
                axes.set_yscale("log" if logarithmic else "linear")
                _finish(axes, f"{TASK_NAMES[task]}, {stress_name(stress)}")
        handles = [
            mpl.lines.Line2D([], [], label=arm, **_style(arm, n)) for n, arm in enumerate(arms)
        ]
        figure.legend(handles=handles, loc="outside lower center", ncols=len(arms), frameon=False)
        figure.suptitle(title)
        figure.supxlabel("step", fontsize=9)
        return figure

    return plot


def _curve(axes: Axes, each: Sequence[Sequence[float | None]], style: Mapping[str, Any]) -> None:
    """Draw the mean where every seed has a value."""
    steps = [
        (number, sum(values) / len(values))
        for number, values in enumerate(zip(*each, strict=False), 1)
        if None not in values
    ]
    if steps:
        axes.plot(*zip(*steps, strict=True), **{**style, "linewidth": 1.4})


Plot = Callable[[Sequence[Row]], Figure | None]
PLOTS: Mapping[str, Mapping[str, Plot]] = {
    "tasks": {"": by_stress},
    "fp8": {"": by_stress},
    "threshold": {"": thresholds},
    "scales": {"": bars},
    "gain": {"": gains},
    "convergence": {
        "": curves("smoothed", "training loss, mean of the last fifth of the steps", False),
        "_gradients": curves("gradient_norms", "norm of the whole gradient, not clipped", True),
    },
}
