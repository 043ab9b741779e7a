"""Linear layers, quantisation included: int8tile against float and against its int8 peers.

    python bench/bench_linear.py --shapes bert-base,llama-3.2-1b --tokens 128,1024 --json out.json

Start reading at `measure`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from checks import check_exact, check_peer
from peers import COLUMNS, GAIN, INT8TILE, OURS, Peer, Problem, builders, int8tile_config, names
from report import choices, environment, json_path, parsed, print_head, progress, write_json
from shapes import Layer, parse_layers, parse_numbers
from tables import linear_tables
from timing import Candidate, alternate

PASSES = ("forward", "both")
WEIGHTS = ("each", "frozen")


@dataclass(frozen=True)
class Case:
    """One row of the tables."""

    layer: Layer
    tokens: int
    outliers: int
    weight: str  # "each": trained, quantised in each call; "frozen": quantised once
    passes: str  # "forward", or "both": forward and backward
    threads: int

    def __str__(self) -> str:
        return (
            f"{self.layer}, {self.tokens} tokens, {self.outliers} outliers, weight {self.weight}, "
            f"{self.passes}, {self.threads} threads"
        )

    def problem(self) -> Problem:
        """Make the inputs."""
        frozen, backward = self.weight == "frozen", self.passes == "both"
        return Problem.random(
            self.layer.n, self.layer.k, self.tokens, self.outliers, frozen, backward
        )


def measure(
    case: Case, chosen: list[str], compiled: bool, budget: float, skipped: dict[str, str]
) -> Iterator[dict[str, Any]]:
    """Check all candidates of a case, then time them in alternation.

    Args:
        case: What to run.
        chosen: Candidates to run, "fp32" among them; empty for all.
        compiled: Whether torch.compile's variants take part.
        budget: Seconds of timed rounds.
        skipped: Takes the reasons for candidates that cannot run here.

    Returns:
        A record for each candidate.

    Raises:
        CheckError: int8tile computes something else than it should. A peer is left out instead.
    """
    torch.set_num_threads(case.threads)
    problem = case.problem()
    split = check_exact(problem, int8tile_config(problem))
    peers: dict[str, Peer] = {}
    errors: dict[str, list[float]] = {}
    wanted: tuple[torch.Tensor, ...] = ()
    for name, build in builders(problem.frozen, problem.backward, compiled).items():
        if chosen and name not in chosen:
            continue
        try:
            peer = build(problem)
            wanted = wanted or peer.run()  # float32 comes first
            errors[name] = check_peer(name, peer, problem, wanted)
            peers[name] = peer
        except (ImportError, RuntimeError, ValueError) as error:  # a CheckError among them
            if name in OURS:
                raise
            missing = isinstance(error, ImportError)
            skipped[name if missing else f"{name}: {case}"] = str(error)
    timings = alternate({name: Candidate(peer.run) for name, peer in peers.items()}, budget)
    operations = 2.0 * case.tokens * case.layer.n * case.layer.k
    gemms = 1 if not problem.backward else 2 if problem.frozen else 3
    for name, timing in timings.items():
        yield {
            "layer": case.layer.name,
            "n": case.layer.n,
            "k": case.layer.k,
            "tokens": case.tokens,
            "outliers": case.outliers,
            "outliers_split": split if name in (INT8TILE, GAIN, COLUMNS) else 0,
            "weight": case.weight,
            "pass": case.passes,
            "threads": case.threads,
            "candidate": name,
            "seconds": timing.spread().json(),
            "speed_against_fp32": timing.speed_against(timings["fp32"]).json(),
            **{
                f"speed_against_{base}": timing.speed_against(timings[base]).json()
                if base in timings
                else None
                for base in ("int8", INT8TILE)
            },
            "gops": gemms * operations / timing.spread().median / 1e9,
            "error": errors[name][0],
            "gradient_errors": errors[name][1:],
            "ran": peers[name].op,
        }
    torch.compiler.reset()


def main(
    shapes: Annotated[
        str, typer.Option(help="Models, layers or NxK, comma-separated; all for all models.")
    ] = "bert-base.attention,bert-base.intermediate",
    tokens: Annotated[str, typer.Option(help="Rows of the input, comma-separated.")] = "4096",
    outliers: Annotated[str, typer.Option(help="Outlier columns, comma-separated.")] = "0",
    weights: Annotated[
        str, typer.Option(help="each: quantised in each call; frozen: once. Comma-separated.")
    ] = "each,frozen",
    passes: Annotated[
        str, typer.Option(help="forward; both: and backward. Comma-separated.")
    ] = "forward,both",
    threads: Annotated[str, typer.Option(help="Thread counts, comma-separated.")] = "2",
    candidates: Annotated[
        str, typer.Option(help="Only these (and fp32), comma-separated; empty for all.")
    ] = "",
    compiled: Annotated[
        bool, typer.Option("--compile", help="Also run the torch peers under torch.compile.")
    ] = False,
    budget: Annotated[float, typer.Option(help="Seconds of timed rounds in each case.")] = 5.0,
    smoke: Annotated[bool, typer.Option("--smoke", help="Tiny shapes, in seconds.")] = False,
    json: Annotated[Path | None, typer.Option(help="Write all results to this file.")] = None,
) -> None:
    """Time linear layers with quantisation included; each candidate is checked first."""
    if smoke:
        shapes, tokens, outliers, threads, budget = "48x96", "33", "4", "1", 0.05
    arguments = {name: value for name, value in locals().items() if name != "json"}
    json = json_path(json)
    counts = parsed("threads", parse_numbers, threads, 1)
    cases = [
        Case(layer, m, o, weight, done, count)
        for count in counts
        for done in parsed("passes", choices, passes, PASSES)
        for weight in parsed("weights", choices, weights, WEIGHTS)
        for layer in parsed("shapes", parse_layers, shapes)
        for m in parsed("tokens", parse_numbers, tokens, 1)
        for o in parsed("outliers", parse_numbers, outliers)
        if o <= layer.k
    ]
    chosen = ["fp32", *parsed("candidates", choices, candidates, names())] if candidates else []
    facts = environment(counts)
    skipped: dict[str, str] = {}
    results: list[dict[str, Any]] = []
    with progress(len(cases)) as step:
        for case in cases:
            step(str(case))
            results += measure(case, chosen, compiled, budget, skipped)
    print_head(facts, skipped)
    linear_tables(results)
    write_json(json, "linear", arguments, facts, results, skipped)


if __name__ == "__main__":
    typer.run(main)
