"""The int8 GEMM alone, on ready operands: against torch._int_mm, float32 and the CPU's own peak.

    python bench/bench_gemm.py --shapes bert-base --tokens 1024 --threads 1,2 --json out.json

The library has no such call, since quantising is part of the work: `_core.GemmBench` holds packed
operands for this benchmark. Start reading at `measure`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

import int8tile
from checks import require
from int8tile import _core
from report import environment, json_path, parsed, print_head, progress, write_json
from shapes import Layer, parse_layers, parse_numbers
from tables import gemm_table
from timing import Candidate, Spread, Timing, alternate

HOOKS = ("GemmBench", "peak_gops", "tile_gops")
COPY_BYTES, COPY_SECONDS = 256 * 2**20, 0.5
DEPTH_ALIGN = 16  # of the kernels' inner loop
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


def check(case: Case, a: torch.Tensor, b: torch.Tensor) -> None:
    """Compare the integers of the case's kernel with torch._int_mm; all must be equal.

    Args:
        case: The shape and the kernel.
        a: [m, k] int8.
        b: [n, k] int8.

    Raises:
        CheckError: Some differ.
    """
    high_a, high_b = a[:, : case.outliers].contiguous(), b[:, : case.outliers].contiguous()
    got = torch.empty(case.m, case.layer.n, dtype=torch.int32)
    _core.gemm(
        a.data_ptr(),
        case.m,
        case.layer.k,
        b.data_ptr(),
        case.layer.n,
        high_a.data_ptr() if case.outliers else 0,
        high_b.data_ptr() if case.outliers else 0,
        case.outliers,
        got.data_ptr(),
        case.threads,
        case.isa,
    )
    wanted = torch._int_mm(a, b.t())
    if case.outliers:
        wanted += torch._int_mm(high_a, high_b.t()) << 7
    require(torch.equal(got, wanted), f"{case}: integers differ from torch._int_mm's")


def measure(case: Case, budget: float) -> Iterator[dict[str, Any]]:
    """Check that all integers agree, then time the candidates in alternation.

    Args:
        case: What to run.
        budget: Seconds of timed rounds.

    Returns:
        A record for each candidate.

    Raises:
        CheckError: The integers differ.
    """
    torch.set_num_threads(case.threads)
    torch.manual_seed(0)
    m, n, k = case.m, case.layer.n, case.layer.k
    a = torch.randint(-127, 128, (m, k), dtype=torch.int8)
    b = torch.randint(-127, 128, (n, k), dtype=torch.int8)
    check(case, a, b)
    a_float, b_float = a.float(), b.float()
    out, out_float = torch.empty(m, n, dtype=torch.int32), torch.empty(m, n)
    candidates = {
        FP32: Candidate(lambda: torch.mm(a_float, b_float.t(), out=out_float)),
        INT_MM: Candidate(lambda: torch._int_mm(a, b.t(), out=out)),
    }
    if available():
        gemm = _core.GemmBench(m, n, k, case.outliers, case.threads, case.isa)
        depth = tile_depth(case)
        candidates[INT8TILE] = Candidate(gemm.run)
        candidates[TILE] = Candidate(lambda: _core.tile_gops(depth, case.threads, case.isa))
    timings = alternate(candidates, budget, peak_probe(case))
    tile = timings.pop(TILE, None)
    for name in timings:
        yield _record(case, name, timings, tile)


def copy_bandwidth(threads: int) -> float:
    """Measure the GB/s that a copy of more than the caches hold reads and writes."""
    torch.set_num_threads(threads)
    source = torch.zeros(COPY_BYTES // 4)
    target = torch.empty_like(source)
    timings = alternate({"copy": Candidate(lambda: target.copy_(source))}, COPY_SECONDS)
    return 2 * COPY_BYTES / min(timings["copy"].seconds) / 1e9


def available() -> bool:
    """Whether this build of int8tile can run its GEMM on ready operands."""
    return all(hasattr(_core, name) for name in HOOKS)


def peak_probe(case: Case) -> Callable[[], float] | None:
    """Give what measures the dot-product instruction's peak, where the kernel has one."""
    if not available():
        return None
    try:
        _core.peak_gops(case.threads, case.isa)
    except int8tile.UnsupportedError:
        return None
    return lambda: _core.peak_gops(case.threads, case.isa)


def tile_depth(case: Case) -> int:
    """Choose the depth at which both operands of one register tile stay in L1."""
    rows, columns = _core.plan(1, 1, case.layer.k, 0, 12, 1, case.isa).tile
    l1, _ = _core.cache_bytes()
    return max(DEPTH_ALIGN, min(case.layer.k, l1 // (rows + columns)) // DEPTH_ALIGN * DEPTH_ALIGN)


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
    if timing.probes and name != FP32:
        record["share_of_peak"] = timing.share_of(giga, timing.probes).json()
        record["peak_gops"] = Spread.of(timing.probes).median
    if tile is not None and name != FP32:
        record["share_of_tile"] = timing.share_of(giga, tile.rates).json()
        record["tile_gops"] = Spread.of(tile.rates).median
    return record


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
        shapes, tokens, threads, budget = "48x96", "33", "1", 0.05
    arguments = {name: value for name, value in locals().items() if name != "json"}
    json = json_path(json)
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
    skipped = {} if available() else {INT8TILE: f"this build has no {', '.join(HOOKS)}"}
    facts = environment(counts)
    facts["copy_gb_per_s"] = {str(count): copy_bandwidth(count) for count in counts}
    results: list[dict[str, Any]] = []
    with progress(len(cases)) as step:
        for case in cases:
            step(str(case))
            results += measure(case, budget)
    print_head(facts, skipped)
    gemm_table(results)
    write_json(json, "gemm", arguments, facts, results, skipped)


if __name__ == "__main__":
    typer.run(main)
