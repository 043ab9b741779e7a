"""What training curves say: smoothed losses, runs that diverged, steps to a goal."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from accuracy_arms import BASELINE

Row = dict[str, Any]
SMOOTHING = 0.2  # of the steps: the loss is the mean over so many of the last ones
DIVERGED = 1.2  # times the loss of a constant prediction


def smoothed(losses: Sequence[float | None]) -> list[float | None]:
    """Average each step's loss with those before it, a fifth of all; None before and at NaN."""
    window = max(1, round(SMOOTHING * len(losses)))
    means: list[float | None] = []
    for stop in range(1, len(losses) + 1):
        part = losses[max(0, stop - window) : stop]
        known = [each for each in part if each is not None]
        means.append(statistics.fmean(known) if len(known) == window else None)
    return means


def diverged(results: Row, final: float | None, constant_loss: float) -> bool:
    """Whether something was not finite, or the final smoothed loss is that of no model at all.

    No model at all: more than `DIVERGED` times the loss of a constant prediction.
    """
    numbers = [*results["losses"], *results["gradient_norms"], results["loss"], final]
    return None in numbers or (final or 0) > DIVERGED * constant_loss


def steps_to_reach(losses: Sequence[float | None], goal: float | None) -> int | None:
    """Give the first step whose smoothed loss is at most `goal`; None: none."""
    if goal is None:
        return None
    return next((n for n, loss in enumerate(losses, 1) if loss is not None and loss <= goal), None)


def goal(runs: Sequence[Row], run: Row) -> float | None:
    """Give float32's final smoothed loss with the seed of a run of the same task and stress."""
    base = [r for r in runs if r["arm"] == BASELINE and r["seed"] == run["seed"]]
    value: float | None = base[0]["smoothed"][-1] if base else None
    return value


def reach(runs: Sequence[Row], run: Row) -> int | None:
    """Give the first step at which a run reached that loss."""
    return steps_to_reach(run["smoothed"], goal(runs, run))
