"""What the number formats do to fine-tuning: one command for each table of the evidence.

    python bench/bench_accuracy.py tasks --data path/to/data    # hours; finished runs are kept
    python bench/bench_accuracy.py tasks --quick                # minutes, without data
    python bench/bench_accuracy.py tasks --show                 # what is finished

Start reading at `main`; the tables are in accuracy_specs.py.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

import accuracy_plots
import accuracy_pool
import accuracy_smoke
import accuracy_summary
import accuracy_tables
from accuracy_runs import DOCSTRINGS, RECIPES, Source, finite, kept
from accuracy_specs import SPECS, Cell, Plan, Spec
from int8tile.finetune import UsageError
from report import as_json, choices, console, environment, parsed, print_head

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
WORK = RESULTS / "accuracy"
SCRATCH = HERE.parent / "build" / "accuracy"
SEEDS = 3
QUICK_STEPS, QUICK_EVAL = 20, 200

Table = StrEnum("Table", {name: name for name in SPECS})
TABLES = "\n\n    ".join(f"{name}: {spec.shows}." for name, spec in SPECS.items())


def main(
    table: Annotated[Table, typer.Argument(help="What to measure.")],
    data: Annotated[
        Path | None,
        typer.Option(
            help="Folder with the tasks' folders (sst2, mrpc, ..., squad; those of GLUE also in "
            "glue/); without it from the Hugging Face hub.",
            exists=True,
            file_okay=False,
        ),
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Directory or hub id; the packaged MiniLM without it.")
    ] = None,
    seeds: Annotated[int, typer.Option(help="How many seeds, from 0 on.", min=1)] = SEEDS,
    tasks: Annotated[
        str | None, typer.Option(help=f"Comma-separated, of {', '.join(RECIPES)}.")
    ] = None,
    stress: Annotated[
        str | None, typer.Option(help="Factors of injected outliers, comma-separated; 1: as is.")
    ] = None,
    arms: Annotated[
        str | None,
        typer.Option(help="Some of the table's arms, as its columns are named; fp32 stays."),
    ] = None,
    steps: Annotated[
        int | None, typer.Option(help="Optimizer steps; the recipe's without it.", min=1)
    ] = None,
    jobs: Annotated[
        int | None,
        typer.Option(help="Runs at a time.", show_default="(cores / threads)", min=1),
    ] = None,
    threads: Annotated[int, typer.Option(help="Threads of a run.", min=1)] = 1,
    work: Annotated[
        Path | None,
        typer.Option(
            help="Folder of the runs' files: a run that has one is not repeated; "
            "results/accuracy without it, with --quick and --smoke build/accuracy."
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            help="Folder of the table's JSON and PNG; without it bench/results for a whole table, "
            "and none for a part of one."
        ),
    ] = None,
    quick: Annotated[
        bool,
        typer.Option(
            "--quick",
            help="Minutes: one seed, 20 steps, one stress, less to evaluate; without --data on "
            "docstrings of the standard library.",
        ),
    ] = False,
    smoke: Annotated[
        bool, typer.Option("--smoke", help="Seconds: a tiny model on made-up text.")
    ] = False,
    show: Annotated[
        bool,
        typer.Option(
            "--show",
            help="Make no run: show those that are finished; without --data those of the data that "
            "most runs of a task have.",
        ),
    ] = False,
) -> None:
    """Fine-tune a real model in several number formats and compare them with float32.

    Tables, each with a JSON and a plot named accuracy_TABLE:

    TABLES

    Every run leaves a file in --work, so that an interrupted command goes on where it was when
    it is given again, and tables share their runs. Whatever is finished gives a table.
    """
    if (smoke or quick) and output == RESULTS:
        raise typer.BadParameter(
            "--smoke and --quick must not replace real results", param_hint="--output"
        )
    whole = not (smoke or quick or tasks or stress or arms or steps) and seeds >= SEEDS
    output = output or (RESULTS if whole else None)
    work = work or (SCRATCH if smoke or quick else WORK)
    spec = _narrowed(SPECS[table], tasks, stress, arms)
    source = kept(work, model) if show and data is None else Source(data, model)
    plan = Plan(spec, seeds, steps)
    if quick:
        few = spec if tasks else replace(spec, tasks=spec.tasks[:2] if data else (DOCSTRINGS,))
        few = few if stress else replace(few, stresses=few.stresses[:1])
        plan = Plan(few, 1, steps or QUICK_STEPS, QUICK_EVAL)
    if smoke:
        source = accuracy_smoke.source(work)
        plan = accuracy_smoke.plan(spec)
    failed: dict[Cell, str] = {}
    cells = plan.cells()
    todo = accuracy_pool.missing(cells, source, work)
    if todo and not show:
        jobs = jobs or max(1, (os.cpu_count() or 1) // threads)
        failed = _made(todo, source, work, jobs, threads)
    arguments = {
        "table": table.value, "seeds": plan.seeds, "tasks": list(plan.spec.tasks),
        "stress": list(plan.spec.stresses), "steps": plan.steps, "jobs": jobs,
        "smoke": smoke, "quick": quick,
    }  # fmt: skip
    _report(table.value, cells, source, work, output, arguments, threads)
    for why in dict.fromkeys(failed.values()):
        some = [str(cell) for cell, reason in failed.items() if reason == why]
        text = f"failed: {len(some)} runs, the first {some[0]}: {why}"
        console().print(text, style="red", highlight=False, markup=False)
    if failed:
        raise typer.Exit(1)


main.__doc__ = (main.__doc__ or "").replace("TABLES", TABLES, 1)


def _narrowed(spec: Spec, tasks: str | None, stress: str | None, arms: str | None) -> Spec:
    """Apply the options that leave parts of a table out."""
    if tasks is not None:
        spec = replace(spec, tasks=parsed("tasks", choices, tasks, tuple(RECIPES)))
    if stress is not None:
        spec = replace(spec, stresses=parsed("stress", _factors, stress))
    if arms is not None:
        names = parsed("arms", choices, arms, tuple(spec.arms))
        chosen = {n: arm for n, arm in spec.arms.items() if n in names or n == "fp32"}
        spec = replace(spec, arms=chosen)
    return spec


def _factors(text: str) -> list[float]:
    try:
        factors = [float(word) for word in text.split(",")]
    except ValueError:
        factors = []
    if not factors or min(factors) <= 0:
        raise ValueError(f"must be comma-separated numbers above 0; got {text!r}")
    return factors


def _made(
    todo: Sequence[Cell], source: Source, work: Path, jobs: int, threads: int
) -> dict[Cell, str]:
    console().print(f"{len(todo)} runs to make, {jobs} at a time; kept in {work}", highlight=False)
    try:
        return accuracy_pool.make(todo, source, work, jobs, threads)
    except KeyboardInterrupt:
        left = len(accuracy_pool.missing(todo, source, work))
        console().print(f"interrupted: {left} runs are left; the same command goes on")
        raise typer.Exit(130) from None
    except BrokenProcessPool:
        console().print("a process was killed, for memory perhaps; the same command goes on")
        raise typer.Exit(1) from None


def _report(
    table: str,
    cells: Sequence[Cell],
    source: Source,
    work: Path,
    output: Path | None,
    arguments: dict[str, Any],
    threads: int,
) -> None:
    """Print the table of what is finished, and write its JSON and plot."""
    found = accuracy_summary.rows(cells, source, work)
    facts = environment([threads])
    print_head(facts, {})
    if len(found) < len(cells):
        missing = f"{len(cells) - len(found)} of {len(cells)} runs are missing"
        text = f"{missing}: the command without --show makes them"
        console().print(f"[yellow]{text}[/]", highlight=False)
    if not found:
        return
    for each in accuracy_tables.tables(table, found):
        console().print(each)
    if output is None:
        text = "a part of the table: --output FOLDER writes its JSON and plot"
        console().print(text, highlight=False)
        return
    output.mkdir(parents=True, exist_ok=True)
    results = [accuracy_tables.compact(table, found, row) for row in found]
    content = as_json(f"accuracy {table}", arguments, facts, results, {})
    content["missing"] = len(cells) - len(found)
    content["summary"] = accuracy_summary.summary(found)
    file = output / f"accuracy_{table}.json"
    file.write_text(json.dumps(finite(content), allow_nan=False, default=str) + "\n")
    for path in accuracy_plots.draw(table, found, output):
        console().print(f"wrote {path}", highlight=False)
    console().print(f"wrote {file}", highlight=False)


if __name__ == "__main__":
    try:
        typer.run(main)
    except UsageError as error:
        console().print(f"error: {error}", highlight=False)
        raise SystemExit(2) from None
