"""Where the time of a linear layer goes: its stages one by one, with the bytes they move.

    python bench/bench_stages.py --shapes bert-base --tokens 4096 --threads 1,2 --json out.json

Stages are the raw ops, so each includes its dispatch. `sum of x` is torch's own read of the input:
what the memory gives. Start reading at `stages`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from report import environment, json_path, parsed, print_head, progress, write_json
from shapes import Layer, parse_layers, parse_numbers
from tables import print_table, seconds
from timing import Candidate, alternate

FP32, WHOLE = "fp32", "forward, split"


@dataclass(frozen=True)
class Stage:
    """One part of a forward pass.

    Args:
        run: The timed call.
        moved: Bytes read and written once each, as the stage touches them.
        operations: Multiplications and additions.
    """

    run: Callable[[], object]
    moved: int
    operations: int = 0


def stages(layer: Layer, m: int) -> dict[str, Stage]:
    """Make the stages of [m, k] x [k, n] in float32, with no outliers found."""
    ops = torch.ops.int8tile
    n, k = layer.n, layer.k
    x, w, bias = torch.randn(m, k).clamp(-4, 4), torch.randn(n, k), torch.randn(n)
    block, _, _, *scales = ops.quantize_input(x, save=False)
    packed = ops.pack_weight(w)
    product = 2 * m * n * k
    x_bytes, w_bytes, y_bytes = 4 * m * k, 4 * n * k, 4 * m * n
    return {
        FP32: Stage(
            lambda: torch.nn.functional.linear(x, w, bias), x_bytes + w_bytes + y_bytes, product
        ),
        "sum of x": Stage(x.sum, x_bytes),
        "quantize x, no split": Stage(
            lambda: ops.quantize_input(x, threshold=None, save=False), x_bytes + m * k
        ),
        "detect and quantize x": Stage(
            lambda: ops.quantize_input(x, save=False), 2 * x_bytes + m * k
        ),
        "quantize and pack w": Stage(lambda: ops.pack_weight(w), w_bytes + n * k),
        "multiply": Stage(
            lambda: ops.linear_multiply(
                block, *scales, w, bias, packed_weight=packed[0], weight_scale=packed[1]
            ),
            m * k + n * k + y_bytes,
            product,
        ),
        WHOLE: Stage(
            lambda: ops.linear_forward_only(x, w, bias),
            2 * x_bytes + w_bytes + 2 * (m * k + n * k) + y_bytes,
            product,
        ),
    }


def measure(layer: Layer, m: int, threads: int, budget: float) -> list[dict[str, Any]]:
    """Time all stages of one layer in alternation."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    parts = stages(layer, m)
    timings = alternate({name: Candidate(part.run) for name, part in parts.items()}, budget)
    whole = timings[WHOLE].spread().median
    return [
        {
            "layer": layer.name,
            "m": m,
            "n": layer.n,
            "k": layer.k,
            "threads": threads,
            "stage": name,
            "seconds": timings[name].spread().json(),
            "speed_against_fp32": timings[name].speed_against(timings[FP32]).json(),
            "share_of_forward": timings[name].spread().median / whole,
            "gb_per_s": part.moved / timings[name].spread().median / 1e9,
            "gops": part.operations / timings[name].spread().median / 1e9,
        }
        for name, part in parts.items()
    ]


def print_stages(results: list[dict[str, Any]]) -> None:
    """Print one table for each layer and thread count."""
    cases = dict.fromkeys((r["layer"], r["m"], r["n"], r["k"], r["threads"]) for r in results)
    for layer, m, n, k, threads in cases:
        rows: list[list[str] | None] = [
            [
                r["stage"],
                seconds(r["seconds"]["median"]),
                f"{r['share_of_forward'] * 100:.0f} %",
                f"{r['gb_per_s']:.0f}",
                f"{r['gops']:.0f}" if r["gops"] else "",
            ]
            for r in results
            if (r["layer"], r["m"], r["threads"]) == (layer, m, threads)
        ]
        print_table(
            f"{layer}: [{m}, {k}] x [{k}, {n}], {threads} threads",
            ("stage", "time", "of the forward", "GB/s", "GOP/s"),
            rows,
        )


def main(
    shapes: Annotated[
        str, typer.Option(help="Models, layers or NxK, comma-separated; all for all models.")
    ] = "bert-base",
    tokens: Annotated[str, typer.Option(help="Rows, comma-separated.")] = "4096",
    threads: Annotated[str, typer.Option(help="Thread counts, comma-separated.")] = "1,2",
    budget: Annotated[float, typer.Option(help="Seconds of timed rounds in each case.")] = 3.0,
    smoke: Annotated[bool, typer.Option("--smoke", help="Tiny shapes, in seconds.")] = False,
    json: Annotated[Path | None, typer.Option(help="Write all results to this file.")] = None,
) -> None:
    """Time the stages of a linear layer's forward pass, weight quantised in the call."""
    if smoke:
        shapes, tokens, threads, budget = "48x96", "33", "1", 0.05
    arguments = {name: value for name, value in locals().items() if name != "json"}
    json = json_path(json)
    cases = [
        (layer, m, count)
        for count in parsed("threads", parse_numbers, threads, 1)
        for layer in parsed("shapes", parse_layers, shapes)
        for m in parsed("tokens", parse_numbers, tokens, 1)
    ]
    facts = environment(parsed("threads", parse_numbers, threads, 1))
    results: list[dict[str, Any]] = []
    with progress(len(cases)) as step:
        for layer, m, count in cases:
            step(f"{layer}, {m} rows, {count} threads")
            results += measure(layer, m, count, budget)
    print_head(facts, {})
    print_stages(results)
    write_json(json, "stages", arguments, facts, results, {})


if __name__ == "__main__":
    typer.run(main)
