"""A report as a table for the console and as text, the worst layers first."""

from __future__ import annotations

import io
import math
from collections import Counter
from collections.abc import Callable, Iterable
from typing import NamedTuple

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from int8tile.analysis.recommend import Recommendation
from int8tile.analysis.results import LayerReport, Report
from int8tile.config import config_for

ARROW = " \N{RIGHTWARDS ARROW} "  # from without the split to with it
WIDE = 165  # characters of a console that all columns fit in
MOST_ROWS = 60
TEXT_WIDTH = 175


def decibels(value: float | None) -> str:
    """A ratio in dB; - where there is none, and exact where there is no noise."""
    if value is None:
        return "-"
    return "exact" if value == math.inf else f"{value:.1f}"


def cosine(value: float | None) -> str:
    """A cosine with five digits, - where there is none."""
    return "-" if value is None else f"{value:.5f}"


class Cell(NamedTuple):
    """What a table shows of a layer, and the number by which it sorts; None: unknown."""

    text: str
    key: float | None


def _db(value: float | None) -> Cell:
    return Cell(decibels(value), value)


def pair(cells: Iterable[Cell]) -> Cell:
    """Two cells as one, from without the split to with it; the latter sorts."""
    plain, split = cells
    return Cell(f"{plain.text}{ARROW}{split.text}", split.key)


def _cosine(value: float | None) -> Cell:
    return Cell(cosine(value), value)


def _weight_cosines(layer: LayerReport) -> Cell:
    return pair(_cosine(layer.grad_weight(split)) for split in (False, True))


def worst(layer: LayerReport) -> Cell:
    """The least ratio of a layer in dB and what has it."""
    value, name = layer.worst
    return Cell(f"{decibels(value)} {name}", value) if name else Cell("-", None)


def _columns(layer: LayerReport) -> Cell:
    over = "!" * (layer.overflow_calls > 0)
    return Cell(f"{layer.mean_columns:.1f}/{layer.capacity}{over}", layer.mean_columns)


def _stability(layer: LayerReport) -> Cell:
    return Cell("-" if layer.stability is None else f"{layer.stability:.0%}", layer.stability)


def _ratio(layer: LayerReport) -> Cell:
    ratio = layer.largest_ratio
    return Cell("-" if ratio is None else f"{ratio:.1f}x", ratio)


COLUMNS: dict[str, Callable[[LayerReport], Cell]] = {
    "worst dB": worst,
    "columns": _columns,
    "stable": _stability,
    "ratio": _ratio,
    "x dB": lambda layer: pair(_db(layer.snr_db[f"x_{arm}"]) for arm in ("plain", "split")),
    "w dB": lambda layer: _db(layer.snr_db["weight"]),
    "g dB": lambda layer: _db(layer.snr_db["gradient"]),
    "y dB": lambda layer: pair((_db(layer.snr_db["y_plain"]), _db(layer.y_db))),
    "grad_x cos": lambda layer: _cosine(layer.cosine["grad_input"]),
    "grad_w cos": _weight_cosines,
}
NARROW = ("worst dB", "columns", "y dB")


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
    captions = ["worst dB: least of output and gradients (a cosine as dB)"]
    captions += [
        "columns: outliers of a call / capacity (! exceeded)",
        f"a{ARROW}b: with the split",
    ]
    captions += ["yellow: better in float"]
    captions += [f"layers: in {prefix.rstrip('.')} unless in full"] * bool(prefix)
    captions += [f"{rest} more layers are in the report"] * (rest > 0)
    shown = Table(title=_title(report), caption="; ".join(captions), box=box.SIMPLE)
    shown.add_column("layer", style="bold", no_wrap=True)
    cells = [name for name in COLUMNS if width >= WIDE or name in NARROW]
    for name in cells:
        shown.add_column(name, justify="right", no_wrap=True)
    advised = report.recommendation.config
    for layer in list(report.layers.values())[:MOST_ROWS]:
        row = [COLUMNS[name](layer).text for name in cells]
        name = escape(layer.name.removeprefix(prefix) or "(root)")
        shown.add_row(name, *row, style="yellow" * (config_for(layer.name, advised) is None))
    return shown


def advice(recommendation: Recommendation) -> Table:
    """Lay the reasons of a recommendation out as a table.

    Args:
        recommendation: the recommendation.
    """
    shown = Table(
        title="recommended", box=None, show_header=False, title_justify="left", expand=True
    )
    shown.add_column(style="bold", ratio=1, overflow="fold")
    shown.add_column(ratio=1)
    for names, why in recommendation.grouped():
        shown.add_row(escape(names), escape(why))
    return shown


def _title(report: Report) -> str:
    gammas = sorted({layer.gamma for layer in report.layers.values()})
    listed = ", ".join(f"{gamma:g}" for gamma in gammas)
    tokens = max(layer.tokens for layer in report.layers.values())
    what = f"{len(report.layers)} linear layers at gamma {listed}, {tokens} tokens a call"
    return f"{what}, the worst first"


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
