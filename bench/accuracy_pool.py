"""Makes the runs of bench_accuracy that are not on disk yet, in several processes."""

from __future__ import annotations

import multiprocessing
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from accuracy_runs import TRAIN, Run, Source
from accuracy_specs import Cell
from report import console, progress


def missing(cells: Sequence[Cell], source: Source, work: Path) -> list[Cell]:
    """Give the cells whose run has no file, each run once, in their order."""
    files: dict[Path, Cell] = {}
    for cell in cells:
        files.setdefault(cell.run.file(source, work), cell)
    return [cell for file, cell in files.items() if not file.exists()]


def make(
    cells: Sequence[Cell], source: Source, work: Path, jobs: int, threads: int
) -> dict[Cell, str]:
    """Make runs, `jobs` at a time; an interrupt loses those in progress only.

    Args:
        cells: What to make, in this order.
        source: Where data and model come from.
        work: Folder of the runs' files.
        jobs: Processes.
        threads: Threads of each.

    Returns:
        What went wrong, by cell.

    Raises:
        BrokenProcessPool: a process was killed.
    """
    from accuracy_training import perform, start_worker

    failed = {}
    lines = not sys.stderr.isatty()  # where there is no bar to see
    with progress(len(cells)) as step:
        step(str(cells[0]))
        pool = ProcessPoolExecutor(
            min(jobs, len(cells)),
            multiprocessing.get_context("spawn"),
            initializer=start_worker,
            initargs=(threads,),
        )
        try:
            futures = {pool.submit(perform, cell.run, source, work): cell for cell in cells}
            for number, future in enumerate(as_completed(futures), 1):
                cell = futures[future]
                error = future.exception()
                if isinstance(error, BrokenProcessPool):
                    raise error
                if error is not None:
                    failed[cell] = f"{type(error).__name__}: {error}"
                said = failed.get(cell) or _summary(cell.run, future.result())
                step(f"{cell}: {said}")
                if lines:
                    console().print(
                        f"{number}/{len(cells)} {cell}: {said}", markup=False, highlight=False
                    )
        except BaseException:
            for process in multiprocessing.active_children():
                process.terminate()
            raise
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
    return failed


def _summary(run: Run, content: dict[str, object]) -> str:
    results = content["results"]
    assert isinstance(results, dict)
    took = f"{content['total_seconds']:.0f} s"
    if run.kind == TRAIN:
        return f"{content['metric']} {results['metric']:.4f}, {took}"
    cosine = results["cosine_whole"]
    return f"{'no cosine' if cosine is None else f'cosine {cosine:.3f}'}, {took}"
