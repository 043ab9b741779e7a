"""The plots of bench_accuracy, drawn from whatever runs are finished."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from accuracy_arms import BASELINE
from accuracy_figures import (
    ARM_COLORS,
    QUANTITIES,
    TASK_NAMES,
    finish,
    legend_below,
    names,
    new_figure,
    or_nan,
    over_tasks,
    style,
)
from accuracy_runs import TRAIN
from accuracy_specs import stress_name
from accuracy_summary import (
    Mean,
    Row,
    mean,
    mean_of_tasks,
    percent,
    places,
    select,
)
from int8tile.finetune.report import COLORS

DPI = 150
PANELS_ACROSS = 3  # tasks beside each other
YLABELS = {"smoothed": "loss", "gradient_norms": "norm"}


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


def by_task(found: Sequence[Row]) -> Figure | None:
    """Draw points lost under the largest stress: a group of bars per task that has all arms."""
    train = select(found, kind=TRAIN)
    arms = [arm for arm in names(train, "arm") if arm != BASELINE]
    if not arms:
        return None
    place = {"kind": TRAIN, "stress": max(names(train, "stress"))}
    groups = {
        task: [mean(train, percent, arm=arm, task=task, **place) for arm in arms]
        for task in TASK_NAMES
    }
    whole = {t: g for t, g in groups.items() if all(m.difference is not None for m in g)}
    if not whole:
        return None
    figure, grid = new_figure(1, size=(8.0, 4.0))
    axes, width = grid[0][0], 0.8 / len(arms)
    for number, arm in enumerate(arms):
        means = [group[number] for group in whole.values()]
        at = [x + width * (number - (len(arms) - 1) / 2) for x in range(len(whole))]
        heights = [m.difference for m in means]
        errors = [or_nan(m.error) for m in means]
        bars = axes.bar(at, heights, 0.94 * width, yerr=errors, capsize=2, color=ARM_COLORS[arm])
        axes.bar_label(bars, fmt="%.1f", fontsize=8, padding=2)
    labels = []
    for task in whole:
        base = mean(train, percent, arm=BASELINE, task=task, **place)
        labels.append(f"{TASK_NAMES[task]}\nfloat32: {base.mean:.1f}\n{base.count} seeds")
    axes.set_xticks(range(len(whole)), labels)
    axes.tick_params(axis="x", length=0)
    axes.axhline(0, color=ARM_COLORS[BASELINE], linewidth=1.2)
    axes.margins(y=0.12)
    title = f"injected outliers {stress_name(place['stress'])}; error bars: standard error"
    finish(axes, title, "points against float32")
    axes.grid(visible=False, axis="x")
    handles = [Patch(color=ARM_COLORS[arm], label=arm) for arm in arms]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(arms), frameon=False)
    return figure


def by_stress(found: Sequence[Row]) -> Figure | None:
    """Draw points lost against float32 by stress, a panel per task and one of their mean."""
    train = select(found, kind=TRAIN)
    tasks = [task for task in TASK_NAMES if select(train, task=task)]
    arms = [arm for arm in names(train, "arm") if arm != BASELINE]
    if not arms:
        return None
    count = len(tasks) + (len(tasks) > 1)
    columns = min(count, PANELS_ACROSS)
    rows = math.ceil(count / columns)
    figure, grid = new_figure(columns, rows, size=(3.4 if columns > 1 else 7.0, 3.2))
    panels = list(grid.flat[:count])
    for axes in grid.flat[count:]:
        axes.set_visible(False)
    stresses = sorted(names(train, "stress"))
    if len(tasks) > 1:
        _lines(panels[0], stresses, arms, lambda **p: mean_of_tasks(train, tasks, percent, **p))
        finish(panels[0], f"mean of {len(tasks)} tasks", "points against fp32", "injected outliers")
        panels = panels[1:]
    for axes, task in zip(panels, tasks, strict=True):
        _task_panel(axes, train, task, stresses, arms)
    grid.flat[0].set_ylabel("points against fp32")
    low = min(axes.get_ylim()[0] for axes in grid.flat)
    high = max(axes.get_ylim()[1] for axes in grid.flat)
    for axes in grid.flat:
        axes.set_ylim(low, high)
    legend_below(figure, arms)
    return figure


def _task_panel(
    axes: Axes, train: Sequence[Row], task: str, stresses: Sequence[float], arms: Sequence[str]
) -> None:
    _lines(axes, stresses, arms, lambda **place: mean(train, percent, task=task, **place))
    place = {"kind": TRAIN, "arm": BASELINE, "task": task}
    base = [mean(train, percent, stress=stress, **place).mean for stress in stresses]
    known = [f"{value:.1f}" for value in base if value is not None]
    finish(axes, f"{TASK_NAMES[task]}\nfp32: {', '.join(known)}", "", "injected outliers")


def _lines(
    axes: Axes, stresses: Sequence[float], arms: Sequence[str], value: Callable[..., Mean]
) -> None:
    axes.axhline(0, color=ARM_COLORS[BASELINE], linewidth=1.2)
    for order, arm in enumerate(arms):
        means = [value(kind=TRAIN, arm=arm, stress=stress) for stress in stresses]
        points = [
            (
                x + 0.05 * (order - len(arms) / 2),
                each.difference,
                or_nan(each.error),
            )
            for x, each in enumerate(means)
            if each.difference is not None
        ]
        if points:
            x, y, error = zip(*points, strict=True)
            axes.errorbar(x, y, error, marker="o", ms=4, capsize=2, **style(arm, order))
    axes.set_xticks(range(len(stresses)), [stress_name(stress) for stress in stresses])
    axes.set_xlim(-0.3, len(stresses) - 0.7)


def thresholds(found: Sequence[Row]) -> Figure | None:
    """Draw each quantity by gamma, a line for each number of bits, a row for each stress."""
    stresses = sorted(names(found, "stress"))
    arms = [
        arm.removeprefix("gamma ").split(" ", 1) for arm in names(found, "arm") if "gamma" in arm
    ]
    gammas = sorted({float(gamma) for gamma, _ in arms})
    bits = list(dict.fromkeys(each for _, each in arms))
    figure, grid = new_figure(len(QUANTITIES), len(stresses))
    for row, stress in zip(grid, stresses, strict=True):
        for axes, (title, (kind, value)) in zip(row, QUANTITIES.items(), strict=True):
            for order, each in enumerate(bits):
                found_at = {
                    g: over_tasks(found, kind, value, arm=f"gamma {g:g} {each}", stress=stress)
                    for g in gammas
                }
                _gamma_line(axes, found_at, each, order)
            plain = over_tasks(found, kind, value, arm="no split", stress=stress)
            if plain is not None:
                axes.axhline(plain[0], color="black", linestyle="--", label="no split")
            finish(axes, f"{stress_name(stress)}: {title}", "", "gamma")
            axes.title.set_fontsize(9)
    _one_legend(figure, grid[0][0])
    return figure


def _one_legend(figure: Figure, axes: Axes) -> None:
    """Put the legend of one panel below all of them."""
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)


def _gamma_line(axes: Axes, found: Mapping[float, Any], label: str, order: int) -> None:
    known = {gamma: each for gamma, each in found.items() if each is not None}
    if known:
        y, error = zip(*known.values(), strict=True)
        axes.errorbar(
            list(known), y, error, marker="o", ms=4, capsize=2, label=label, color=f"C{order}"
        )


def bars(found: Sequence[Row]) -> Figure | None:
    """Draw each quantity as bars, an arm below the other, a column of panels for each stress."""
    stresses = sorted(names(found, "stress"))
    arms = [arm for arm in names(found, "arm") if arm != BASELINE]
    if not arms:
        return None
    chosen = dict(list(QUANTITIES.items())[:2])
    figure, grid = new_figure(len(stresses) * len(chosen), size=(3.6, 0.8 + 0.27 * len(arms)))
    panels = iter(grid.flat)
    for title, (kind, value) in chosen.items():
        for stress in stresses:
            axes = next(panels)
            for order, arm in enumerate(arms):
                shown = over_tasks(found, kind, value, arm=arm, stress=stress)
                if shown is not None:
                    axes.barh(order, shown[0], xerr=shown[1], color=_bar_color(arm))
            labels = arms if axes is grid.flat[0] else [""] * len(arms)
            axes.set_yticks(range(len(arms)), labels)
            axes.invert_yaxis()
            finish(axes, stress_name(stress), "", title)
    return figure


def _bar_color(arm: str) -> str:
    return COLORS["paper-split"] if arm.startswith(("tensor", "paper")) else COLORS["int8-split"]


def gains(found: Sequence[Row]) -> Figure | None:
    """Draw each quantity by stress, a line for each arm."""
    stresses = sorted(names(found, "stress"))
    arms = [arm for arm in names(found, "arm") if arm != BASELINE]
    figure, grid = new_figure(len(QUANTITIES))
    for axes, (title, (kind, value)) in zip(grid.flat, QUANTITIES.items(), strict=True):
        for order, arm in enumerate(arms):
            at = [over_tasks(found, kind, value, arm=arm, stress=stress) for stress in stresses]
            points = [(x, *each) for x, each in enumerate(at) if each is not None]
            if points:
                x, y, error = zip(*points, strict=True)
                axes.errorbar(
                    x, y, error, marker="o", ms=4, capsize=2, label=arm, **style(arm, order)
                )
        axes.set_xticks(range(len(stresses)), [stress_name(stress) for stress in stresses])
        finish(axes, title, "", "injected outliers")
        if axes.get_yscale() == "linear" and axes.get_ylim()[0] > 0:
            axes.set_ylim(0, 1.1 * axes.get_ylim()[1])
    _one_legend(figure, grid.flat[0])
    return figure


def curves(name: str, title: str, logarithmic: bool) -> Callable[[Sequence[Row]], Figure | None]:
    """Make a function that draws a curve's mean over seeds, a panel for each task and stress."""

    def plot(found: Sequence[Row]) -> Figure | None:
        there = places(found)
        tasks = [task for task in TASK_NAMES if any(task == each for each, _ in there)]
        stresses = sorted({stress for _, stress in there})
        wide = 7.0 if len(tasks) == 1 else 3.2
        figure, grid = new_figure(len(tasks), len(stresses), size=(wide, 2.6))
        arms = names(found, "arm", kind=TRAIN)
        for row, stress in zip(grid, stresses, strict=True):
            for axes, task in zip(row, tasks, strict=True):
                for order, arm in enumerate(arms):
                    runs = select(found, kind=TRAIN, arm=arm, task=task, stress=stress)
                    _curve(axes, [run[name] for run in runs], style(arm, order))
                axes.set_yscale("log" if logarithmic else "linear")
                task_name = TASK_NAMES[task].partition(",")[0]
                last = "step" if stress == stresses[-1] else ""
                ylabel = YLABELS[name] if task == tasks[0] else ""
                finish(axes, f"{task_name}, {stress_name(stress)}", ylabel, last)
        legend_below(figure, arms)
        figure.suptitle(title)
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
    "tasks": {"": by_stress, "_by_task": by_task},
    "fp8": {"": by_stress},
    "threshold": {"": thresholds},
    "scales": {"": bars},
    "products": {"": bars},
    "gain": {"": gains},
    "convergence": {
        "": curves("smoothed", "training loss, mean of the last fifth of the steps", False),
        "_gradients": curves("gradient_norms", "norm of the whole gradient, not clipped", True),
    },
}
