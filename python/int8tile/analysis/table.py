"""A report as a table for the console and as text, the worst layers first."""

from __future__ import annotations

import io
import math
from collections import Counter
from collections.abc import Callable, Iterable

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from int8tile.analysis.recommend import Recommendation
from int8tile.analysis.results import LayerReport, Report

ARROW = " \N{RIGHTWARDS ARROW} "  # from without the split to with it
WIDE = 150  # characters of a console that all columns fit in
MOST_ROWS = 60
TEXT_WIDTH = 160


def decibels(value: float | None) -> str:
    """A ratio in dB; - where there is none, and exact where there is no noise."""
    if value is None:
        return "-"
    return "exact" if value == math.inf else f"{value:.1f}"


def cosine(value: float | None) -> str:
    """A cosine with five digits, - where there is none."""
    return "-" if value is None else f"{value:.5f}"


def _pair(layer: LayerReport, name: str) -> str:
    return ARROW.join(decibels(layer.snr_db[f"{name}_{arm}"]) for arm in ("plain", "split"))


def _weight_cosines(layer: LayerReport) -> str:
    return ARROW.join(cosine(layer.cosine[f"grad_weight_{arm}"]) for arm in ("plain", "split"))


def _columns(layer: LayerReport) -> str:
    return f"{layer.mean_columns:.1f}/{layer.capacity}{'!' * (layer.overflow_calls > 0)}"


def _stability(layer: LayerReport) -> str:
    return "-" if layer.stability is None else f"{layer.stability:.0%}"


def _ratio(layer: LayerReport) -> str:
    return "-" if layer.largest_ratio is None else f"{layer.largest_ratio:.1f}x"


COLUMNS: dict[str, Callable[[LayerReport], str]] = {
    "columns": _columns,
    "stable": _stability,
    "ratio": _ratio,
    "x dB": lambda layer: _pair(layer, "x"),
    "w dB": lambda layer: decibels(layer.snr_db["weight"]),
    "g dB": lambda layer: decibels(layer.snr_db["gradient"]),
    "y dB": lambda layer: _pair(layer, "y"),
    "grad_x cos": lambda layer: cosine(layer.cosine["grad_input"]),
    "grad_w cos": _weight_cosines,
}
NARROW = ("columns", "y dB", "grad_w cos")


def shared_prefix(names: Iterable[str]) -> str:
    """The longest dotted beginning that two thirds of the names have; "" for none."""
    names = list(names)
    count: Counter[str] = Counter()
    for name in names:
        parts = name.split(".")
        count.update(".".join(parts[:n]) + "." for n in range(1, len(parts)))
    return max((p for p, n in count.items() if 3 * n >= 2 * len(names)), key=len, default="")


def table(report: Report, width: int = TEXT_WIDTH) -> Table:
    """Lay the layers out as a table, the worst first.

    Args:
        report: the report.
        width: characters that there is room for; below `WIDE` some columns are left out.

    Returns:
        A table with one row per layer, at most `MOST_ROWS`.
    """
    prefix = shared_prefix(report.layers)
    rest = len(report.layers) - MOST_ROWS
    captions = ["columns: outliers of a call / capacity (! exceeded)", f"a{ARROW}b: with the split"]
    captions += [f"layers: in {prefix.rstrip('.')} unless in full"] * bool(prefix)
    captions += [f"{rest} more layers are in the report"] * (rest > 0)
    shown = Table(title=_title(report), caption="; ".join(captions), box=box.SIMPLE)
    shown.add_column("layer", style="bold", no_wrap=True)
    cells = [name for name in COLUMNS if width >= WIDE or name in NARROW]
    for name in cells:
        shown.add_column(name, justify="right", no_wrap=True)
    in_float = [n for n, config in report.recommendation.config.items() if config is None]
    for layer in list(report.layers.values())[:MOST_ROWS]:
        row = [COLUMNS[name](layer) for name in cells]
        name = escape(layer.name.removeprefix(prefix) or "(root)")
        shown.add_row(name, *row, style="yellow" * (layer.name in in_float))
    return shown


def advice(recommendation: Recommendation) -> Table:
    """Lay the reasons of a recommendation out as a table.

    Args:
        recommendation: the recommendation.
    """
    shown = Table(
        title="recommended", box=None, show_header=False, title_justify="left", expand=True
    )
    shown.add_column(style="bold", ratio=1)
    shown.add_column(ratio=1)
    for names, why in recommendation.grouped():
        shown.add_row(escape(names), escape(why))
    return shown


def _title(report: Report) -> str:
    gammas = sorted({layer.gamma for layer in report.layers.values()})
    listed = ", ".join(f"{gamma:g}" for gamma in gammas)
    return f"{len(report.layers)} linear layers at gamma {listed}, the worst first"


def as_text(report: Report) -> str:
    """The table and the recommendation as plain text.

    Args:
        report: the report.
    """
    if not report.layers:
        return "no linear layer was called"
    file = io.StringIO()
    console = Console(file=file, width=TEXT_WIDTH, color_system=None)
    console.print(table(report))
    console.print(advice(report.recommendation))
    return "\n".join(line.rstrip() for line in file.getvalue().splitlines())
