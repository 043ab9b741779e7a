"""The tables of bench_accuracy on the terminal, of whatever runs are finished."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence

from rich import box
from rich.table import Table

from accuracy_curves import goal, reach
from accuracy_runs import GRADIENT, TRAIN
from accuracy_specs import stress_name
from accuracy_summary import (
    Mean,
    Row,
    mean,
    number,
    outlier_columns,
    percent,
    places,
    select,
    step_time,
)

MOST_COLUMNS = 6  # arms beside each other; more stand below each other
CURVES = ("losses", "gradient_norms", "smoothed", "train_curve", "eval_curve", "conversion")
CURVE_STEPS = 5  # from one point of a curve in the JSON to the next

Place = tuple[str, float]


def tables(table: str, found: Sequence[Row]) -> list[Table]:
    """Lay out what is finished of a table."""
    if table == "convergence":
        return [convergence(found)]
    shown = [
        _grid(
            found, TRAIN, "headline metric in percent, mean ± standard deviation over seeds; in "
            "brackets against fp32 with the same seed, ± standard error",
            lambda **place: _accuracy(mean(found, percent, **place)),
        )
    ]  # fmt: skip
    if select(found, kind=GRADIENT):
        shown += [
            _grid(
                found, GRADIENT, "cosine of the gradient with fp32's: mean over layers' weights / "
                "worst layer / whole; outlier columns of a call; time of a step against fp32's",
                lambda **place: _gradient(found, **place),
            )
        ]  # fmt: skip
    return shown


def _grid(found: Sequence[Row], kind: str, title: str, cell: Callable[..., str]) -> Table:
    """Tasks and stresses one way, arms the other way."""
    arms = list(dict.fromkeys(row["arm"] for row in select(found, kind=kind)))
    across = len(arms) > MOST_COLUMNS
    there = places(found, kind)
    table = _table(title)
    table.add_column("arm" if across else "task")
    for column in there if across else arms:
        name = _name(column) if isinstance(column, tuple) else column
        table.add_column(name, justify="right", no_wrap=not across)
    for row in arms if across else there:
        pairs = [(row, place) for place in there] if across else [(arm, row) for arm in arms]
        cells = [cell(kind=kind, arm=a, task=task, stress=s) for a, (task, s) in pairs]
        table.add_row(row if isinstance(row, str) else _name(row), *cells)
    return table


def _table(title: str) -> Table:
    return Table(title=title, box=box.SIMPLE_HEAVY, show_edge=False, title_justify="left")


def _name(place: Place) -> str:
    task, stress = place
    return f"{task} {stress_name(stress)}"


def _accuracy(value: Mean) -> str:
    if value.mean is None:
        return "-"
    text = f"{value.mean:.1f}"
    if value.deviation is not None:
        text += f" ± {value.deviation:.1f}"
    if value.difference is not None:
        error = "" if value.error is None else f" ± {value.error:.1f}"
        text += f" ({value.difference:+.1f}{error})"
    return text


def _gradient(found: Sequence[Row], **place: object) -> str:
    names = ("cosine_layers", "cosine_worst_layer", "cosine_whole")
    cosines = [mean(found, number(name), **place).mean for name in names]
    if None in cosines:
        return "-"
    text = " / ".join(f"{cosine:.3f}" for cosine in cosines if cosine is not None)
    columns = mean(found, outlier_columns, **place).mean
    seconds = mean(found, step_time, **place).mean
    return f"{text}; {'-' if columns is None else f'{columns:.1f}'}; {seconds:.2f}x"


def convergence(found: Sequence[Row]) -> Table:
    """Final losses, steps to reach float32's, and runs that diverged."""
    table = _table(
        "smoothed over the last fifth of the steps; goal: fp32's final loss with the same seed"
    )
    for column in (
        *("task", "arm", "final loss", "eval loss", "goal reached", "at step (median)"),
        *("largest gradient norm", "diverged"),
    ):
        table.add_column(column, justify="left" if column in ("task", "arm") else "right")
    for task, stress in places(found):
        runs = select(found, kind=TRAIN, task=task, stress=stress)
        for arm in dict.fromkeys(run["arm"] for run in runs):
            table.add_row(_name((task, stress)), arm, *_convergence_cells(runs, arm))
        table.add_section()
    return table


def _convergence_cells(runs: Sequence[Row], arm: str) -> list[str]:
    own = select(runs, arm=arm)
    reached = [step for step in (reach(runs, run) for run in own) if step is not None]
    norms = [n for run in own for n in run["gradient_norms"] if n is not None]
    return [
        _plain([run["smoothed"][-1] for run in own]),
        _plain([run["loss"] for run in own]),
        f"{len(reached)} of {sum(goal(runs, run) is not None for run in own)}",
        f"{statistics.median(reached):.0f}" if reached else "-",
        f"{max(norms):.1f}" if norms else "-",
        f"{sum(run['diverged'] for run in own)} of {len(own)}",
    ]


def _plain(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return "-"
    spread = f" ± {statistics.stdev(known):.3f}" if len(known) > 1 else ""
    return f"{statistics.fmean(known):.3f}{spread}"


def compact(table: str, found: Sequence[Row], row: Row) -> Row:
    """Give a row for the JSON, without curves but for a few points of those of convergence."""
    kept = {name: value for name, value in row.items() if name not in CURVES}
    if table == "convergence":
        runs = select(found, task=row["task"], stress=row["stress"])
        points = range(CURVE_STEPS - 1, len(row["smoothed"]), CURVE_STEPS)
        for name in ("smoothed", "gradient_norms"):
            kept[name] = [(step + 1, row[name][step]) for step in points]
        kept |= {"goal": goal(runs, row), "reached_at": reach(runs, row)}
    return kept
