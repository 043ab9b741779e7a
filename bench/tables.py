"""The benchmarks' tables on standard output."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby, zip_longest
from typing import Any

from rich.table import Table

from report import console

Result = Mapping[str, Any]
MEBI = 2**20
GPU_TITLES = {
    ("gemm", "forward"): "GEMM on ready operands",
    ("linear", "forward"): "linear layer, weight quantised in each call: forward",
    ("linear", "both"): "linear layer, weight quantised in each call: forward + backward",
    ("step", "step"): "training step of a decoder block: forward, backward, AdamW",
}
WEIGHTS = {"each": "in each call", "frozen": "once"}


def seconds(value: float) -> str:
    """Write a duration with three digits and its unit."""
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value * 1e9:.3g} ns"


def times(spread: Mapping[str, float]) -> str:
    """Write a ratio with its quartiles."""
    return f"{spread['median']:.2f} [dim]({spread['q1']:.2f}-{spread['q3']:.2f})[/]"


def percent(spread: Mapping[str, float] | None) -> str:
    """Write a share; nothing where it was not measured."""
    return "" if spread is None else f"{spread['median'] * 100:.0f} %"


def print_table(title: str, columns: Sequence[str], rows: Sequence[list[str] | None]) -> None:
    """Print one table, its first column to the left; None draws a line."""
    table = Table(title=title, title_justify="left")
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left", overflow="fold")
    for row in rows:
        if row is None:
            table.add_section()
        else:
            table.add_row(*row)
    console().print(table)


def linear_tables(results: Sequence[Result]) -> None:
    """Print a table for each pass, weight and thread count; a line for each candidate."""

    def group(r: Result) -> tuple[Any, ...]:
        return r["pass"], r["weight"], r["threads"]

    def case(r: Result) -> tuple[Any, ...]:
        return r["layer"], r["n"], r["k"], r["tokens"], r["outliers"]

    for (done, weight, threads), chosen in groupby(results, group):
        rows: list[list[str] | None] = []
        for (layer, n, k, tokens, outliers), members in groupby(chosen, case):
            labels = [layer, f"\\[{tokens}, {k}] x \\[{k}, {n}]", f"{outliers} outliers"]
            for label, r in zip_longest(labels, members, fillvalue=None):
                rows.append([label or "", *(_linear_cells(r) if r else [])])
            rows.append(None)
        names = {"forward": "forward", "both": "forward + backward"}
        title = f"{names[done]}, weight quantised: {WEIGHTS[weight]}, threads {threads}"
        print_table(title, ["", "candidate", "time", "x fp32 (quartiles)", "error"], rows)


def _linear_cells(result: Result) -> list[str]:
    error = max([result["error"], *result["gradient_errors"]])
    shown = "" if result["candidate"] == "fp32" else f"{error * 100:.2g} %"
    speed = times(result["speed_against_fp32"])
    return [result["candidate"], seconds(result["seconds"]["median"]), speed, shown]


def gemm_table(results: Sequence[Result]) -> None:
    """Print a line for each shape and candidate."""
    rows: list[list[str] | None] = []
    for r in results:
        shape = f"\\[{r['m']}, {r['k']}] x \\[{r['k']}, {r['n']}]"
        ratios = [times(r[f"speed_against_{name}"]) for name in ("fp32", "int_mm")]
        shares = [percent(r[f"share_of_{name}"]) for name in ("peak", "tile")]
        first = [r["layer"], shape, str(r["outliers"]), str(r["threads"]), r["candidate"]]
        rows.append([*first, f"{r['gops']:.0f}", *shares, *ratios])
    columns = ["layer", "shape", "outliers", "threads", "candidate", "GOP/s", "of peak", "of tile"]
    print_table("int8 GEMM on ready operands", [*columns, "x fp32", "x int_mm"], rows)


def step_table(results: Sequence[Result]) -> None:
    """Print a line for each model and arm."""
    rows: list[list[str] | None] = []
    for r in results:
        memory = "" if r["peak_bytes"] is None else f"{r['peak_bytes'] / MEBI:.0f}"
        model = f"{r['model']}, dropout {r['dropout']}, threads {r['threads']}"
        speed = times(r["speed_against_fp32"])
        saved = [
            f"{r[f'{what}bytes'] / MEBI:.0f} ({r[f'{what}against_fp32']:.2f}x)"
            for what in ("saved_", "linear_saved_")
        ]
        time = seconds(r["seconds"]["median"])
        cells = [time, f"{r['tokens_per_second']:.0f}", speed, memory, *saved]
        rows.append([model, r["arm"], *cells, f"{r['loss']:.4f}", f"{r['gradient_error']:.2g}"])
    columns = ["model", "arm", "step", "tokens/s", "x fp32", "peak MiB", "saved MiB", "by linears"]
    print_table("training step", [*columns, "loss", "gradient error"], rows)


def saved_table(results: Sequence[Result]) -> None:
    """Print a line for each operator of each model, a column for each arm."""
    arms = list(dict.fromkeys(r["arm"] for r in results))
    rows: list[list[str] | None] = []
    for (model, dropout), members in groupby(results, lambda r: (r["model"], r["dropout"])):
        found = {r["arm"]: r for r in members}
        label = f"{model}, dropout {dropout}"
        for name in dict.fromkeys(name for r in found.values() for name in r["operators"]):
            sizes = [found[arm]["operators"].get(name) for arm in arms]
            rows.append([label, name, *("" if s is None else f"{s / MEBI:.1f}" for s in sizes)])
            label = ""
        totals = [
            f"{r['saved_bytes'] / MEBI:.1f} ({r['saved_against_fp32']:.2f}x)"
            for r in (found[arm] for arm in arms)
        ]
        rows += [["", "together", *totals], None]
    print_table("MiB saved for backward", ["model", "kept by", *arms], rows)


def gpu_tables(results: Sequence[Result]) -> None:
    """Print a table for each part and pass; a line for each candidate."""

    def group(r: Result) -> tuple[Any, ...]:
        return r["part"], r["pass"]

    def case(r: Result) -> tuple[Any, ...]:
        return r["layer"], r["n"], r["k"], r["tokens"], r["outliers"]

    for kind, chosen in groupby(results, group):
        rows: list[list[str] | None] = []
        for (layer, n, k, tokens, outliers), members in groupby(chosen, case):
            shape = f"\\[{tokens}, {k}] x \\[{k}, {n}]"
            labels = [layer, f"{tokens} tokens" if kind[1] == "step" else shape]
            labels.append(f"{outliers} outliers")
            for label, r in zip_longest(labels, members, fillvalue=None):
                rows.append([label or "", *(_gpu_cells(r) if r else [])])
            rows.append(None)
        columns = ["", "candidate", "time", "TOPS", "of int8 peak", "x bf16 (quartiles)", "error"]
        print_table(GPU_TITLES[kind], [*columns, "timed by"], rows)


def _gpu_cells(result: Result) -> list[str]:
    share = result["share_of_int8_peak"]
    return [
        result["candidate"],
        seconds(result["seconds"]["median"]),
        f"{result['tops']:.3g}",
        "" if share is None else f"{share * 100:.0f} %",
        times(result["speed_against_bf16"]),
        f"{result['error'] * 100:.2g} %",
        result["timed"],
    ]
