"""report.html: one page with figures, recommendation and a sortable table; needs no network."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import int8tile
from int8tile.analysis import sections
from int8tile.analysis.figures import Image, draw
from int8tile.analysis.results import LayerReport, Report
from int8tile.analysis.sections import text
from int8tile.analysis.table import decibels

_FOLDER = Path(__file__).parent


def write(report: Report, file: Path, order: Sequence[str]) -> None:
    """Write the page.

    Args:
        report: a report with at least one layer.
        file: the .html file to write.
        order: names of the layers in the figures, from top to bottom.

    Raises:
        ValueError: the report has no layer.
    """
    if not report.layers:
        raise ValueError("int8tile.analysis.page.write: report must have a layer; it has none")
    parts = [
        _header(report),
        _cards(report),
        _recommendation(report),
        *map(_figure, draw(report, order)),
        *sections.tables(report),
        _notes(report),
    ]
    style, script = ((_FOLDER / name).read_text("utf-8") for name in ("page.css", "page.js"))
    file.write_text(
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>int8tile analysis</title>\n<style>\n{style}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(parts)
        + f"\n</main>\n<script>\n{script}</script>\n</body>\n</html>\n",
        encoding="utf-8",
    )


def _header(report: Report) -> str:
    facts = "".join(
        f"<dt>{text(name)}</dt><dd>{text(value)}</dd>"
        for name, value in report.facts.items()
        if value is not None
    )
    more = f"<details><summary>Settings</summary><dl>{facts}</dl></details>" if facts else ""
    of = [str(report.facts[name]) for name in ("model", "task") if report.facts.get(name)]
    line = text(", ".join([*of, f"int8tile {int8tile.__version__}"]))
    return f"<header><h1>int8tile analysis</h1><p>{line}</p>{more}</header>"


def _cards(report: Report) -> str:
    layers = list(report.layers.values())
    worst = layers[0]
    gammas = ", ".join(f"{g:g}" for g in sorted({layer.gamma for layer in layers}))
    with_outliers = sum(layer.most_columns > 0 for layer in layers)
    over = sum(layer.overflow_calls > 0 for layer in layers)
    mean = sum(layer.mean_columns for layer in layers) / len(layers)
    most_tokens = max(layer.tokens for layer in layers)
    cards = [
        (str(len(layers)), f"linear layers, {worst.measured_calls} calls of each quantized"),
        (str(most_tokens), "tokens of a call, on average: whether int8 is faster depends on them"),
        _worst_card(worst),
        (f"{with_outliers}", f"layers with outlier columns at gamma {gammas}"),
        (f"{mean:.1f}", "outlier columns of a layer and call, on average"),
        (f"{over}", "layers over the capacity of the split"),
    ]
    shown = "".join(
        f'<div class="card"><strong>{text(value)}</strong><span>{text(label)}</span></div>'
        for value, label in cards
    )
    return f'<section class="cards">{shown}</section>'


def _worst_card(layer: LayerReport) -> tuple[str, str]:
    value, what = layer.worst
    if not what:
        return "-", "worst layer: nothing was measured"
    return f"{decibels(value)} dB", f"worst: {what} of {layer.name or '(root)'}"


def _recommendation(report: Report) -> str:
    advice = report.recommendation
    rows = "".join(
        f"<tr><th>{text(names)}</th><td>{text(why)}</td></tr>" for names, why in advice.grouped()
    )
    return (
        '<section class="advice"><h2>Recommended</h2>'
        f"<table>{rows}</table><pre>{text(advice.code())}</pre></section>"
    )


def _figure(image: Image) -> str:
    return (
        f"<section><h2>{text(image.title)}</h2><p>{text(image.text)}</p>"
        f'<img src="{image.uri}" alt="{text(image.title)}"></section>'
    )


def _notes(report: Report) -> str:
    notes = [f"{name}: never called" for name in report.unseen]
    notes += [f"{name}: {why}" for name, why in report.skipped.items()]
    notes += [
        f"{layer.name}: {layer.nonfinite_calls} calls with values that are not finite, left out"
        for layer in report.layers.values()
        if layer.nonfinite_calls
    ]
    if not notes:
        return ""
    items = "".join(f"<li>{text(note)}</li>" for note in notes)
    return f"<section><h2>Not measured</h2><ul>{items}</ul></section>"
