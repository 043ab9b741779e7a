"""The tables of bench_accuracy: which arms, tasks and stresses each one has."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from accuracy_arms import Arm, chosen, product_grid, scale_grid, threshold_grid
from accuracy_runs import GRADIENT, RECIPES, TRAIN, Recipe, Run

ALL_TASKS = ("sst2", "mrpc", "qnli", "rte", "squad")
GAMMAS = (2.0, 3.0, 4.0, 5.0, 6.0, 8.0, None)
BITS = (8, 10, 12, 15)


@dataclass(frozen=True)
class Spec:
    """One table.

    Args:
        arms: By their names in the table; fp32 is one.
        tasks: Keys of `RECIPES`, the most telling first.
        stresses: Factors, the most telling first; 1: as is.
        gradients: Whether gradients and the time of a step are measured too.
        shows: What it is for.
    """

    arms: Mapping[str, Arm]
    tasks: Sequence[str]
    stresses: Sequence[float]
    gradients: bool
    shows: str


_METHODS = chosen("fp32", "paper-int8", "paper-split", "int8", "int8-split")

SPECS = {
    "tasks": Spec(
        _METHODS, ALL_TASKS, (60, 1, 20), False, "what int8 loses on five tasks, and the split"
    ),
    "threshold": Spec(
        threshold_grid(GAMMAS, BITS),
        ("sst2", "mrpc"),
        (60, 1),
        True,
        "which gamma and how many outlier bits",
    ),
    "convergence": Spec(
        _METHODS, ALL_TASKS, (60, 1, 20), False, "loss and gradient norm, from the runs of tasks"
    ),
    "fp8": Spec(
        chosen("fp32", "fp8", "int8", "int8-split"),
        ALL_TASKS,
        (60, 1, 20),
        False,
        "emulated fp8 on the same tasks",
    ),
    "scales": Spec(
        scale_grid(BITS),
        ("sst2", "mrpc"),
        (60, 1),
        True,
        "granularity, kind of scale, rounding, outlier bits",
    ),
    "products": Spec(
        product_grid(),
        ("squad", "sst2"),
        (60, 1),
        True,
        "which of a layer's three products loses",
    ),
    "gain": Spec(
        chosen("fp32", "int8", "columns", "columns-gain"),
        ("sst2", "mrpc"),
        (60, 1, 20, 200),
        True,
        "the option outlier_gain",
    ),
}


@dataclass(frozen=True)
class Cell:
    """A run, and where it stands in a table."""

    arm: str
    run: Run

    def __str__(self) -> str:
        run = self.run
        where = f"{run.task} {stress_name(run.stress)} seed {run.seed} {self.arm}"
        return where if run.kind == TRAIN else f"{run.kind} {where}"


def stress_name(stress: float) -> str:
    """Name a stress."""
    return "as is" if stress == 1 else f"x{stress:g}"


@dataclass(frozen=True)
class Plan:
    """What of a table is to be made.

    Args:
        spec: The table.
        seeds: How many.
        steps: Optimizer steps; None: the recipe's.
        max_eval: The most examples to evaluate; None: the recipe's.
    """

    spec: Spec
    seeds: int
    steps: int | None = None
    max_eval: int | None = None

    def recipe(self, task: str) -> Recipe:
        """Give a task's recipe with this plan's changes."""
        recipe = RECIPES[task]
        steps = recipe.steps if self.steps is None else self.steps
        known = [each for each in (recipe.max_eval, self.max_eval) if each is not None]
        return replace(recipe, steps=steps, max_eval=min(known, default=None))

    def cells(self) -> list[Cell]:
        """Give all runs: gradients first, then seed by seed, one task after the other."""
        kinds = [GRADIENT, TRAIN] if self.spec.gradients else [TRAIN]
        return [cell for kind in kinds for cell in self._cells(kind)]

    def _cells(self, kind: str) -> Iterator[Cell]:
        for seed in range(self.seeds):
            for stress in self.spec.stresses:
                for task in self.spec.tasks:
                    for name, arm in self.spec.arms.items():
                        yield Cell(name, Run(kind, arm, task, stress, seed, self.recipe(task)))
