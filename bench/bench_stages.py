"""Where the time of a linear layer goes: its stages one by one, with the bytes they move.

    python bench/bench_stages.py --shapes bert-base --tokens 4096 --threads 1,2 --json out.json

Stages are the raw ops, so each includes its dispatch; `GEMM alone` has its operands packed. `sum`
is torch's own read of the input: what the memory gives. Start reading at `stages`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from int8tile import _core
from report import environment, json_path, parsed, print_head, progress, write_json
from shapes import Layer, parse_layers, parse_numbers
from tables import print_table, seconds
from timing import Candidate, alternate

FP32, FORWARD, BACKWARD = "fp32", "forward", "backward"
WHOLE = "the whole pass"


@dataclass(frozen=True)
class Stage:
    """One part of a pass.

    Args:
        run: Makes the timed call for a number of threads, which torch is set to already.
        moved: Bytes read and written once each, as the stage touches them.
        operations: Multiplications and additions.
    """

    run: Callable[[int], Callable[[], object]]
    moved: int
    operations: int = 0


def _op(run: Callable[[], object], moved: int, operations: int = 0) -> Stage:
    return Stage(lambda _: run, moved, operations)


def _gemm_alone(m: int, n: int, k: int) -> Stage:
    moved = m * k + n * k + 4 * m * n
    return Stage(lambda threads: _core.GemmBench(m, n, k, 0, threads).run, moved, 2 * m * n * k)


def forward_stages(x: torch.Tensor, w: torch.Tensor, bias: torch.Tensor) -> dict[str, Stage]:
    """Make the stages of y[m, n] = x[m, k] w.T, the weight quantised in the call."""
    ops = torch.ops.int8tile
    (m, k), n = x.shape, w.shape[0]
    block, _, _, *scales = ops.quantize_input(x, save=False)
    packed = ops.pack_weight(w)
    product = 2 * m * n * k
    x_bytes, w_bytes, y_bytes = 4 * m * k, 4 * n * k, 4 * m * n
    return {
        FP32: _op(
            lambda: torch.nn.functional.linear(x, w, bias), x_bytes + w_bytes + y_bytes, product
        ),
        "sum of x": _op(x.sum, x_bytes),
        "quantize x, no split": _op(
            lambda: ops.quantize_input(x, threshold=None, save=False), x_bytes + m * k
        ),
        "detect and quantize x": _op(
            lambda: ops.quantize_input(x, save=False), 2 * x_bytes + m * k
        ),
        "quantize and pack w": _op(lambda: ops.pack_weight(w), w_bytes + n * k),
        "multiply": _op(
            lambda: ops.linear_multiply(
                block, *scales, w, bias, packed_weight=packed[0], weight_scale=packed[1]
            ),
            m * k + n * k + y_bytes,
            product,
        ),
        "GEMM alone": _gemm_alone(m, n, k),
        WHOLE: _op(
            lambda: ops.linear_forward_only(x, w, bias),
            2 * x_bytes + w_bytes + 2 * (m * k + n * k) + y_bytes,
            product,
        ),
    }


def backward_stages(x: torch.Tensor, w: torch.Tensor, bias: torch.Tensor) -> dict[str, Stage]:
    """Make the stages of the gradients of x[m, k], w[n, k] and bias[n] from g[m, n]."""
    ops = torch.ops.int8tile
    (m, k), n = x.shape, w.shape[0]
    g = torch.randn(m, n) / n
    _, *saved = ops.linear_forward(x, w, bias)
    packed = ops.pack_weight(w, transpose=True)
    product = 2 * m * n * k
    x_bytes, w_bytes, g_bytes = 4 * m * k, 4 * n * k, 4 * m * n
    int8_bytes = m * k + n * k + m * n
    return {
        FP32: _op(
            lambda: (g @ w, g.t() @ x, g.sum(0)), 2 * (x_bytes + w_bytes) + 3 * g_bytes, 2 * product
        ),
        "sum of g": _op(g.sum, g_bytes),
        "quantize g by rows": _op(lambda: ops.quantize(g), g_bytes + m * n),
        "quantize and pack w": _op(lambda: ops.pack_weight(w, transpose=True), w_bytes + n * k),
        "grad_input, w packed": _op(
            lambda: ops.linear_grad_input(g, w, packed_weight=packed[0], weight_scale=packed[1]),
            g_bytes + 2 * m * n + n * k + x_bytes,
            product,
        ),
        "grad_weight and grad_bias": _op(
            lambda: ops.linear_grad_weight(g, *saved, k),
            2 * g_bytes + 2 * m * n + m * k + w_bytes,
            product,
        ),
        "GEMM alone, grad_input": _gemm_alone(m, k, n),
        "GEMM alone, grad_weight": _gemm_alone(n, k, m),
        WHOLE: _op(
            lambda: ops.linear_backward(g, w, *saved),
            2 * g_bytes + w_bytes + 2 * int8_bytes + x_bytes + w_bytes,
            2 * product,
        ),
    }


def stages(layer: Layer, m: int) -> dict[tuple[str, str], Stage]:
    """Make the stages of both passes of [m, k] x [k, n] in float32, with no outliers found."""
    x, bias = torch.randn(m, layer.k).clamp(-4, 4), torch.randn(layer.n)
    w = torch.randn(layer.n, layer.k)
    parts = {FORWARD: forward_stages(x, w, bias), BACKWARD: backward_stages(x, w, bias)}
    return {(done, name): part for done, each in parts.items() for name, part in each.items()}


def measure(layer: Layer, m: int, threads: Sequence[int], budget: float) -> list[dict[str, Any]]:
    """Time all stages of one layer, with all thread counts, in alternation."""
    torch.manual_seed(0)
    parts = stages(layer, m)
    candidates = {}
    for count in threads:
        torch.set_num_threads(count)
        for (done, name), part in parts.items():
            candidates[f"{done} {name} {count}"] = Candidate(
                part.run(count), lambda count=count: torch.set_num_threads(count)
            )
    timings = alternate(candidates, budget * len(threads))
    results = []
    for count in threads:
        for (done, name), part in parts.items():
            timing = timings[f"{done} {name} {count}"]
            median = timing.spread().median
            results.append(
                {
                    "layer": layer.name,
                    "m": m,
                    "n": layer.n,
                    "k": layer.k,
                    "threads": count,
                    "pass": done,
                    "stage": name,
                    "seconds": timing.spread().json(),
                    "speed_against_fp32": timing.speed_against(
                        timings[f"{done} {FP32} {count}"]
                    ).json(),
                    "speed_against_fewest_threads": timing.speed_against(
                        timings[f"{done} {name} {min(threads)}"]
                    ).json(),
                    "share_of_pass": median / timings[f"{done} {WHOLE} {count}"].spread().median,
                    "gb_per_s": part.moved / median / 1e9,
                    "gops": part.operations / median / 1e9,
                }
            )
    return results


def print_stages(results: list[dict[str, Any]]) -> None:
    """Print one table for each layer, pass and thread count."""
    keys = ("layer", "m", "n", "k", "pass", "threads")
    for case in dict.fromkeys(tuple(r[key] for key in keys) for r in results):
        layer, m, n, k, done, threads = case
        rows: list[list[str] | None] = [
            [
                r["stage"],
                seconds(r["seconds"]["median"]),
                f"{r['share_of_pass'] * 100:.0f} %",
                f"{r['gb_per_s']:.0f}",
                f"{r['gops']:.0f}" if r["gops"] else "",
                f"{r['speed_against_fp32']['median']:.2f}",
                f"{r['speed_against_fewest_threads']['median']:.2f}",
            ]
            for r in results
            if tuple(r[key] for key in keys) == case
        ]
        print_table(
            f"{layer}: \\[{m}, {k}] x \\[{k}, {n}], {done}, threads {threads}",
            ("stage", "time", "of the pass", "GB/s", "GOP/s", "x fp32", "x fewest threads"),
            rows,
        )


def main(
    shapes: Annotated[
        str, typer.Option(help="Models, layers or NxK, comma-separated; all for all models.")
    ] = "bert-base",
    tokens: Annotated[str, typer.Option(help="Rows, comma-separated.")] = "4096",
    threads: Annotated[str, typer.Option(help="Thread counts, comma-separated.")] = "1,2",
    budget: Annotated[
        float, typer.Option(help="Seconds of timed rounds in each case and thread count.")
    ] = 6.0,
    smoke: Annotated[bool, typer.Option("--smoke", help="Tiny shapes, in seconds.")] = False,
    json: Annotated[Path | None, typer.Option(help="Write all results to this file.")] = None,
) -> None:
    """Time the stages of a linear layer forward and backward, weight quantised in the call."""
    if smoke:
        shapes, tokens, threads, budget = "48x96", "33", "1", 0.05
    arguments = {name: value for name, value in locals().items() if name != "json"}
    json = json_path(json)
    counts = parsed("threads", parse_numbers, threads, 1)
    cases = [
        (layer, m)
        for layer in parsed("shapes", parse_layers, shapes)
        for m in parsed("tokens", parse_numbers, tokens, 1)
    ]
    facts = environment(counts)
    results: list[dict[str, Any]] = []
    with progress(len(cases)) as step:
        for layer, m in cases:
            step(f"{layer}, {m} rows")
            results += measure(layer, m, counts, budget)
    print_head(facts, {})
    print_stages(results)
    write_json(json, "stages", arguments, facts, results, {})


if __name__ == "__main__":
    typer.run(main)
