"""The int8 GEMM alone, on ready operands: against torch._int_mm, float32 and the CPU's own peak.

    python bench/bench_gemm.py --shapes bert-base --tokens 1024 --threads 1,2 --json out.json

The library has no such call, since quantising is part of the work: `_core.GemmBench` holds packed
operands for this benchmark. Start reading at `measure`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from checks import require
from int8tile import _core
from report import environment, parsed, print_head, progress, write_json
from shapes import Layer, parse_layers, parse_numbers
from tables import gemm_table
from timing import Candidate, Timing, alternate

HOOKS = ("GemmBench", "peak_gops", "tile_gops")
INT8TILE, INT_MM, FP32, TILE = "int8tile", "int_mm", "fp32", "tile"


@dataclass(frozen=True)
class Case:
    """out[m, n] = a[m, k] @ b[n, k].T."""

    layer: Layer
    m: int
    outliers: int
    threads: int
    isa: str

    def __str__(self) -> str:
        return f"{self.layer}, {self.m} rows, {self.outliers} outliers, {self.threads} threads"

    @property
    def operations(self) -> float:
        """Multiplications and additions, outlier segments not counted."""
        return 2.0 * self.m * self.layer.n * self.layer.k

    def intensity(self, operand_bytes: int) -> float:
        """Give operations per byte, each operand and the 4-byte output moved once."""
        m, n, k = self.m, self.layer.n, self.layer.k
        return self.operations / (operand_bytes * (m + n) * k + 4 * m * n)


def measure(case: Case, hooks: bool, budget: float) -> Iterator[dict[str, Any]]:
    """Check that all integers agree, then time the candidates in alternation.

    Args:
        case: What to run.
        hooks: Whether this build of int8tile can run its GEMM on ready operands.
        budget: Seconds of timed rounds.

    Returns:
        A record for each candidate.

    Raises:
        CheckError: The integers differ.
    """
    torch.set_num_threads(case.threads)
    torch.manual_seed(0)
    a = torch.randint(-127, 128, (case.m, case.layer.k), dtype=torch.int8)
    b = torch.randint(-127, 128, (case.layer.n, case.layer.k), dtype=torch.int8)
    a_float, b_float = a.float(), b.float()
    out = torch.empty(case.m, case.layer.n, dtype=torch.int32)
    out_float = torch.empty(case.m, case.layer.n)
    torch._int_mm(a, b.t(), out=out)
    require(torch.equal(torch.ops.int8tile.gemm(a, b), out), f"{case}: differs from torch._int_mm")
    candidates = {
        FP32: Candidate(lambda: torch.mm(a_float, b_float.t(), out=out_float)),
        INT_MM: Candidate(lambda: torch._int_mm(a, b.t(), out=out)),
    }
    probe = None
    if hooks:
        threads, isa = case.threads, case.isa
        gemm = _core.GemmBench(case.m, case.layer.n, case.layer.k, case.outliers, threads, isa)
        gemm.run()
        require(gemm.mismatches() == 0, f"{case}: differs from the portable kernel")
        candidates[INT8TILE] = Candidate(gemm.run)
        candidates[TILE] = Candidate(lambda: float(_core.tile_gops(case.layer.k, threads, isa)))

        def probe() -> float:
            return float(_core.peak_gops(threads, isa))

    timings = alternate(candidates, budget, probe)
    tile = timings.pop(TILE, None)
    for name in timings:
        yield _record(case, name, timings, tile)


def _record(
    case: Case, name: str, timings: dict[str, Timing], tile: Timing | None
) -> dict[str, Any]:
    timing, giga = timings[name], case.operations / 1e9
    record: dict[str, Any] = {
        "layer": case.layer.name,
        "m": case.m,
        "n": case.layer.n,
        "k": case.layer.k,
        "outliers": case.outliers if name == INT8TILE else 0,
        "threads": case.threads,
        "isa": case.isa or _core.default_isa(),
        "candidate": name,
        "seconds": timing.spread().json(),
        "gops": giga / timing.spread().median,
        "intensity": case.intensity(4 if name == FP32 else 1),
        "speed_against_fp32": timing.speed_against(timings[FP32]).json(),
        "speed_against_int_mm": timing.speed_against(timings[INT_MM]).json(),
        "share_of_peak": None,
        "share_of_tile": None,
        "peak_gops": None,
        "tile_gops": None,
    }
    if tile is not None and name != FP32:
        record["share_of_peak"] = timing.share_of(giga, timing.probes).json()
        record["share_of_tile"] = timing.share_of(giga, tile.rates).json()
        record["peak_gops"] = _median(timing.probes)
        record["tile_gops"] = _median(tile.rates)
    return record


def _median(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]


def main(
    shapes: Annotated[
        str, typer.Option(help="Models, layers or NxK, comma-separated; all for all models.")
    ] = "bert-base,llama-3.2-1b",
    tokens: Annotated[str, typer.Option(help="Rows, comma-separated.")] = "128,1024,4096",
    outliers: Annotated[str, typer.Option(help="Outlier columns, comma-separated.")] = "0",
    threads: Annotated[str, typer.Option(help="Thread counts, comma-separated.")] = "2",
    isa: Annotated[str, typer.Option(help="Kernel of int8tile; empty for the default.")] = "",
    budget: Annotated[float, typer.Option(help="Seconds of timed rounds in each case.")] = 3.0,
    smoke: Annotated[bool, typer.Option("--smoke", help="Tiny shapes, in seconds.")] = False,
    json: Annotated[Path | None, typer.Option(help="Write all results to this file.")] = None,
) -> None:
    """Time the int8 GEMM on ready operands; integers are checked for equality first."""
    if smoke:
        shapes, tokens, budget = "48x96", "33", 0.05
    arguments = {name: value for name, value in locals().items() if name != "json"}
    counts = parsed("threads", parse_numbers, threads, 1)
    if isa and isa not in _core.supported_isas():
        known = ", ".join(_core.supported_isas())
        raise typer.BadParameter(f"this CPU runs {known}; got {isa!r}", param_hint="--isa")
    cases = [
        Case(layer, m, o, count, isa)
        for count in counts
        for layer in parsed("shapes", parse_layers, shapes)
        for m in parsed("tokens", parse_numbers, tokens, 1)
        for o in parsed("outliers", parse_numbers, outliers)
        if o <= layer.k
    ]
    missing = [name for name in HOOKS if not hasattr(_core, name)]
    skipped = {}
    if missing:
        skipped[INT8TILE] = f"this build of int8tile._core has no {', '.join(missing)}"
    facts = environment(counts)
    results: list[dict[str, Any]] = []
    with progress(len(cases)) as step:
        for case in cases:
            step(str(case))
            results += measure(case, not missing, budget)
    print_head(facts, skipped)
    gemm_table(results)
    write_json(json, "gemm", arguments, facts, results, skipped)


if __name__ == "__main__":
    typer.run(main)
