"""What finished runs say: rows for the JSON, means over seeds, differences paired by seed."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from accuracy_arms import BASELINE
from accuracy_curves import diverged, smoothed
from accuracy_runs import GRADIENT, TRAIN, Source, read
from accuracy_specs import Cell

Row = dict[str, Any]


def rows(cells: Iterable[Cell], source: Source, work: Path) -> list[Row]:
    """Read the runs that are finished, one row each.

    Returns:
        kind, arm, task, stress, seed, seconds, date, and what the run measured; for training also
        its smoothed loss and whether it diverged.
    """
    found = []
    for cell in cells:
        content = read(cell.run.file(source, work))
        if content is not None:
            run = cell.run
            head: Row = {"kind": run.kind, "arm": cell.arm, "task": run.task}
            head |= {"stress": run.stress, "seed": run.seed, "metric_name": content["metric"]}
            facts = {name: content[name] for name in ("constant_loss", "total_seconds", "date")}
            found.append(head | facts | _measured(run.kind, content))
    return found


def _measured(kind: str, content: Row) -> Row:
    results: Row = content["results"]
    if kind == GRADIENT:
        return results
    smooth = smoothed(results["losses"])
    return results | {
        "smoothed": smooth,
        "diverged": diverged(results, smooth[-1], content["constant_loss"]),
    }


@dataclass(frozen=True)
class Mean:
    """A quantity over seeds.

    Args:
        mean: None without a run.
        deviation: Standard deviation; None with fewer than two.
        count: Runs with a finite value.
        difference: Mean of the differences to fp32 with the same seed.
        error: Its standard error; None with fewer than two pairs.
        pairs: How many.
    """

    mean: float | None
    deviation: float | None
    count: int
    difference: float | None
    error: float | None
    pairs: int


Value = Callable[[Row], float | None]


def select(found: Sequence[Row], **wanted: object) -> list[Row]:
    """Give the rows that have these values."""
    return [row for row in found if all(row[name] == value for name, value in wanted.items())]


def mean(found: Sequence[Row], value: Value, **place: object) -> Mean:
    """Average a quantity of the rows of one place: kind, arm, task and stress."""
    own = _by_seed(select(found, **place), value)
    base = _by_seed(select(found, **{**place, "arm": BASELINE}), value)
    gaps = [own[seed] - base[seed] for seed in own.keys() & base.keys()]
    if place["arm"] == BASELINE:
        gaps = []
    error = _deviation(gaps)
    return Mean(
        statistics.fmean(own.values()) if own else None,
        _deviation(list(own.values())),
        len(own),
        statistics.fmean(gaps) if gaps else None,
        None if error is None else error / math.sqrt(len(gaps)),
        len(gaps),
    )


def mean_of_tasks(
    found: Sequence[Row], tasks: Sequence[str], value: Value, **place: object
) -> Mean:
    """Average over tasks whose every one is there; the error is that of independent tasks."""
    each = [mean(found, value, **place, task=task) for task in tasks]
    if any(one.difference is None for one in each):
        return Mean(None, None, 0, None, None, 0)
    errors = [one.error for one in each]
    known = [error for error in errors if error is not None]
    error = math.hypot(*known) / len(each) if len(known) == len(each) else None
    return Mean(
        statistics.fmean(one.mean for one in each if one.mean is not None),
        None,
        min(one.count for one in each),
        statistics.fmean(one.difference for one in each if one.difference is not None),
        error,
        min(one.pairs for one in each),
    )


def _by_seed(found: Sequence[Row], value: Value) -> dict[int, float]:
    values = {row["seed"]: value(row) for row in found}
    return {seed: each for seed, each in values.items() if each is not None}


def _deviation(values: Sequence[float]) -> float | None:
    return statistics.stdev(values) if len(values) > 1 else None


def percent(row: Row) -> float | None:
    """The headline metric in percent."""
    return None if row["metric"] is None else 100 * row["metric"]


def outlier_columns(row: Row) -> float | None:
    """Outlier columns that a call finds."""
    return row["outliers"]["found"] if row["outliers"] else None


def step_time(row: Row) -> float | None:
    """Time of forward and backward against float32's."""
    value: float = row["step_against_fp32"]["median"]
    return value


def number(name: str) -> Value:
    """Give a quantity by its name."""
    return lambda row: row[name]


def places(found: Sequence[Row], kind: str = TRAIN) -> list[tuple[str, float]]:
    """Give the tasks and stresses that have rows: tasks in their order, stresses ascending."""
    mine = select(found, kind=kind)
    tasks = list(dict.fromkeys(row["task"] for row in mine))
    stresses = sorted({row["stress"] for row in mine})
    return [(t, s) for t in tasks for s in stresses if select(mine, task=t, stress=s)]


def summary(found: Sequence[Row]) -> list[Row]:
    """Give the means of everything, for the JSON."""
    values: dict[str, dict[str, Value]] = {
        TRAIN: {"percent": percent, "eval_loss": number("loss"), "outliers": outlier_columns},
        GRADIENT: {
            "cosine_whole": number("cosine_whole"),
            "cosine_layers": number("cosine_layers"),
            "cosine_worst_layer": number("cosine_worst_layer"),
            "outliers": outlier_columns,
            "step_against_fp32": step_time,
        },
    }
    result = []
    for kind, quantities in values.items():
        for task, stress in places(found, kind):
            names = dict.fromkeys(
                r["arm"] for r in select(found, kind=kind, task=task, stress=stress)
            )
            for arm in names:
                place = {"kind": kind, "task": task, "stress": stress, "arm": arm}
                means = {n: asdict(mean(found, v, **place)) for n, v in quantities.items()}
                result.append(place | means)
    return result
