"""int8tile on a GPU: the GEMM, linear layers and a training step, against bf16, int8 and fp8 peers.

    python bench/bench_gpu.py --parts linear --outliers 0,64 --json out.json

On a machine without a GPU, `--device cpu` runs the same checks and tables on tiny shapes; its times
say nothing of a GPU. Start reading at `PARTS`.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import typer

import gpu_gemm
import gpu_linear
import gpu_step
from cards import device_facts, unavailable
from gpu_block import decoder_case
from gpu_results import Case, Settings
from report import as_json, choices, console, json_path, parsed, progress, write_part
from shapes import Layer, parse_layers, parse_numbers
from tables import gpu_tables

Measure = Callable[[Case, Settings, dict[str, str]], Iterator[dict[str, Any]]]
PARTS: dict[str, Measure] = {
    "gemm": gpu_gemm.measure,
    "linear": gpu_linear.measure,
    "step": gpu_step.measure,
}
DEVICES = ("cuda", "cpu")
PASSES = ("forward", "both")


@dataclass
class Outcome:
    """What a part gave: records, what was left out and why, and int8tile's failures."""

    results: list[dict[str, Any]] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)


def cases_of(
    part: str,
    layers: list[Layer],
    tokens: list[int],
    outliers: list[int],
    passes: list[str],
    smoke: bool,
) -> list[Case]:
    """List the cases of one part in the order of its tables."""
    if part == "step":
        return [decoder_case(m, o, smoke) for m in tokens for o in outliers]
    return [
        Case(layer, m, o, done)
        for done in (passes if part == "linear" else ["forward"])
        for layer in layers
        for m in tokens
        for o in outliers
        if o <= layer.k
    ]


def run_part(
    part: str, cases: list[Case], settings: Settings, deadline: float
) -> Iterator[Outcome]:
    """Measure the cases of one part.

    Args:
        part: One of `PARTS`.
        cases: What to run.
        settings: How.
        deadline: No case starts after this time of `time.monotonic`.

    Returns:
        What there is so far, after each case.
    """
    outcome = Outcome()
    with progress(len(cases)) as step:
        for case in cases:
            step(f"{part}: {case}")
            if time.monotonic() > deadline:
                outcome.skipped[f"{part}: {case}"] = "the time limit was reached"
            else:
                try:
                    outcome.results += PARTS[part](case, settings, outcome.skipped)
                except Exception as error:  # the other cases still run; the status tells
                    outcome.failed[f"{part}: {case}"] = f"{type(error).__name__}: {error}"
            yield outcome


def print_report(facts: dict[str, Any], outcomes: list[Outcome]) -> None:
    """Print the device, what was left out or failed, and the tables."""
    out = console()
    peak = facts["int8_peak_tops"]
    known = f"int8 peak {peak:.0f} TOPS (published)" if peak else "int8 peak unknown"
    cuda = f", CUDA {facts['cuda_of_torch']}, driver {facts['driver']}" if "driver" in facts else ""
    out.print(
        f"{facts['device']}, {known}, torch {facts['torch']}{cuda}, {facts['date']}",
        highlight=False,
    )
    for outcome in outcomes:
        for word, named in (("left out", outcome.skipped), ("FAILED", outcome.failed)):
            for name, why in named.items():
                out.print(f"{word} {name}: {why}", highlight=False, markup=False)
    gpu_tables([result for outcome in outcomes for result in outcome.results])


def main(
    parts: Annotated[str, typer.Option(help="Comma-separated.")] = ",".join(PARTS),
    shapes: Annotated[
        str, typer.Option(help="Models, layers or NxK, comma-separated; not for step.")
    ] = "llama-3-8b",
    tokens: Annotated[str, typer.Option(help="Rows of the input, comma-separated.")] = "8192",
    outliers: Annotated[str, typer.Option(help="Outlier columns, comma-separated.")] = "0,16,64",
    passes: Annotated[
        str, typer.Option(help="Of linear. forward; both: and backward. Comma-separated.")
    ] = "forward,both",
    compiled: Annotated[
        bool, typer.Option("--compile", help="Also run the torch peers under torch.compile.")
    ] = False,
    budget: Annotated[float, typer.Option(help="Seconds of timed rounds in each case.")] = 1.0,
    limit: Annotated[float, typer.Option(help="No case starts after so many seconds.")] = 3600.0,
    device: Annotated[
        str, typer.Option(help="cuda or cpu; without it cuda, or what --smoke finds.")
    ] = "",
    smoke: Annotated[bool, typer.Option("--smoke", help="Tiny shapes, in seconds.")] = False,
    json: Annotated[
        Path | None, typer.Option(help="Put the parts into this file; it keeps others.")
    ] = None,
) -> None:
    """Time int8tile on a GPU; each candidate is checked first."""
    deadline = time.monotonic() + limit
    if smoke:
        shapes, tokens, outliers, budget = "48x96", "64", "0,4", 0.05
    device = device or ("cpu" if smoke and unavailable() else "cuda")
    arguments = {
        name: value for name, value in locals().items() if name not in ("json", "deadline")
    }
    json = json_path(json)
    layers = parsed("shapes", parse_layers, shapes)
    numbers = (
        parsed("tokens", parse_numbers, tokens, 1),
        parsed("outliers", parse_numbers, outliers),
    )
    done = parsed("passes", choices, passes, PASSES)
    chosen = parsed("parts", choices, parts, tuple(PARTS))
    parsed("device", choices, device, DEVICES)
    if device == "cuda" and (why := unavailable()):
        print(f"bench_gpu: needs a GPU, but {why}; --device cpu needs none", file=sys.stderr)
        raise typer.Exit(1)
    facts = device_facts(device)
    settings = Settings(device, budget, compiled, smoke, facts["int8_peak_tops"])
    outcomes: list[Outcome] = []
    for part in chosen:
        cases = cases_of(part, layers, *numbers, done, smoke)
        outcome = Outcome()
        for outcome in run_part(part, cases, settings, deadline):
            content = as_json("gpu", arguments, facts, outcome.results, outcome.skipped)
            write_part(json, part, {**content, "failed": outcome.failed})
        outcomes.append(outcome)
    print_report(facts, outcomes)
    if any(outcome.failed for outcome in outcomes):
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
