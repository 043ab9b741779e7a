"""One record of bench_gpu: the same fields for every part."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gpu_peers import BASELINE
from gpu_timing import Prepared, time_all
from shapes import Layer

ALL_INT8 = ("int8", "int_mm")  # how the names of candidates start whose products are all int8


@dataclass(frozen=True)
class Settings:
    """What holds for a whole run."""

    device: str  # "cuda" or "cpu"
    budget: float  # seconds of timed rounds in each case
    compiled: bool = False  # torch.compile's variants take part
    smoke: bool = False
    int8_peak_tops: float | None = None  # of the card; None: unknown


@dataclass(frozen=True)
class Case:
    """One group of lines in the tables."""

    layer: Layer
    tokens: int
    outliers: int
    passes: str  # "forward", "both": forward and backward, or "step": and the optimizer

    def __str__(self) -> str:
        return f"{self.layer}, {self.tokens} tokens, {self.outliers} outliers, {self.passes}"

    @property
    def operations(self) -> float:
        """Multiplications and additions of the GEMMs, outlier segments not counted."""
        gemms = 1 if self.passes == "forward" else 3
        return 2.0 * gemms * self.tokens * self.layer.n * self.layer.k


def records(
    part: str,
    case: Case,
    operations: float,
    prepared: Mapping[str, Prepared],
    errors: Mapping[str, float],
    settings: Settings,
) -> list[dict[str, Any]]:
    """Time the candidates of a case, already checked, and give a record for each.

    Args:
        part: "gemm", "linear" or "step".
        case: What they run.
        operations: Multiplications and additions of one run.
        prepared: The candidates by name, `BASELINE` among them.
        errors: Their relative errors.
        settings: How to time.
    """
    timings = time_all(prepared, settings.device, settings.budget)
    results = []
    for name, timing in timings.items():
        tops = operations / timing.spread().median / 1e12
        peak = settings.int8_peak_tops if name.startswith(ALL_INT8) else None
        results.append(
            {
                "part": part,
                "layer": case.layer.name,
                "tokens": case.tokens,
                "n": case.layer.n,
                "k": case.layer.k,
                "outliers": case.outliers,
                "pass": case.passes,
                "candidate": name,
                "timed": prepared[name].timed,
                "seconds": timing.spread().json(),
                "tops": tops,
                "share_of_int8_peak": tops / peak if peak else None,
                "speed_against_bf16": timing.speed_against(timings[BASELINE]).json(),
                "error": errors[name],
            }
        )
    return results
