"""report.html: one page with figures, recommendation and a sortable table; needs no network."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from pathlib import Path

import int8tile
from int8tile.analysis.figures import Image, draw
from int8tile.analysis.results import LayerReport, Report
from int8tile.analysis.table import ARROW, COLUMNS, decibels

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
        _table(report),
        _bits(report),
        _distributions(report),
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


def _text(value: object) -> str:
    return html.escape(str(value))


def _header(report: Report) -> str:
    facts = "".join(
        f"<dt>{_text(name)}</dt><dd>{_text(value)}</dd>"
        for name, value in report.facts.items()
        if value is not None
    )
    more = f"<details><summary>Settings</summary><dl>{facts}</dl></details>" if facts else ""
    of = [str(report.facts[name]) for name in ("model", "task") if report.facts.get(name)]
    line = _text(", ".join([*of, f"int8tile {int8tile.__version__}"]))
    return f"<header><h1>int8tile analysis</h1><p>{line}</p>{more}</header>"


def _cards(report: Report) -> str:
    layers = list(report.layers.values())
    worst = layers[0]
    gammas = ", ".join(f"{g:g}" for g in sorted({layer.gamma for layer in layers}))
    with_outliers = sum(layer.most_columns > 0 for layer in layers)
    over = sum(layer.overflow_calls > 0 for layer in layers)
    mean = sum(layer.mean_columns for layer in layers) / len(layers)
    cards = [
        (str(len(layers)), f"linear layers, {worst.measured_calls} calls of each quantized"),
        (f"{decibels(worst.worst_db)} dB", f"worst layer: {worst.name or '(root)'}"),
        (f"{with_outliers}", f"layers with outlier columns at gamma {gammas}"),
        (f"{mean:.1f}", "outlier columns of a layer and call, on average"),
        (f"{over}", "layers over the capacity of the split"),
    ]
    shown = "".join(
        f'<div class="card"><strong>{_text(value)}</strong><span>{_text(label)}</span></div>'
        for value, label in cards
    )
    return f'<section class="cards">{shown}</section>'


def _recommendation(report: Report) -> str:
    advice = report.recommendation
    rows = "".join(
        f"<tr><th>{_text(names)}</th><td>{_text(why)}</td></tr>" for names, why in advice.grouped()
    )
    return (
        '<section class="advice"><h2>Recommended</h2>'
        f"<table>{rows}</table><pre>{_text(advice.code())}</pre></section>"
    )


def _figure(image: Image) -> str:
    return (
        f"<section><h2>{_text(image.title)}</h2><p>{_text(image.text)}</p>"
        f'<img src="{image.uri}" alt="{_text(image.title)}"></section>'
    )


def _table(report: Report) -> str:
    names = "".join(f"<th>{_text(name)}</th>" for name in ("layer", "in", "out", *COLUMNS))
    rows = "".join(map(_row, report.layers.values()))
    return (
        "<section><h2>All layers, the worst first</h2>"
        "<p>A click on a heading sorts. Pairs are without the split \N{RIGHTWARDS ARROW} with it. "
        "Columns: outliers of a call / capacity. Stable: share of the calls in which an outlier "
        "column is one. Ratio: largest outlier over largest regular value. dB: signal-to-noise "
        "ratio of input x, weight w, gradient g and output y. Cos: angle to the float "
        "gradient.</p>"
        f'<div class="wide"><table class="layers"><thead><tr>{names}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div></section>"
    )


def _row(layer: LayerReport) -> str:
    cells = [str(layer.in_features), str(layer.out_features)]
    cells += [cell(layer) for cell in COLUMNS.values()]
    name = _text(layer.name or "(root)")
    columns = ", ".join(
        f"{c.index} (absmax {c.absmax:.3g}, in {c.share:.0%})" for c in layer.columns[:12]
    )
    more = f" and {len(layer.columns) - 12} more" if len(layer.columns) > 12 else ""
    title = f"outlier columns: {columns}{more}" if columns else "no outlier columns"
    shown = "".join(f"<td>{_text(cell)}</td>" for cell in cells)
    return f'<tr title="{_text(title)}"><th>{name}</th>{shown}</tr>'


def _distributions(report: Report) -> str:
    names = ["outlier values", "of sum x²", "at the limit", "variance, parts", "variance, all"]
    names += ["chi²", "HCR bound", "of variance", "leverage", "sensitivity"]
    text = (
        "Values in outlier columns: their share, and their share of the sum of squares. At the "
        "limit: values that became the largest integer of their part. The variance of regular and "
        "outlier values apart, weighted, is at most that of all. Chi²: the divergence of the "
        "quantized distribution from the original, 0 if none, without the split "
        f"{ARROW.strip()} with it. HCR bound: the variance of |x| that is needed for such a "
        "change to move its mean as far as it did. Leverage: how far that is. Sensitivity: its "
        "square over the variance of |x|, at most chi². All are of counts in bins, finer towards "
        "the ends: what moves within a bin is not seen."
    )
    rows = {layer.name: _distribution(layer) for layer in report.layers.values()}
    return _section("Distribution of the inputs", text, names, rows)


def _distribution(layer: LayerReport) -> list[str]:
    variance = layer.variance
    known = [arm for arm in layer.distortion.values() if arm is not None]

    def pair(name: str) -> str:
        return ARROW.join(f"{arm[name]:.2g}" for arm in known) or "-"

    return [
        f"{variance['outlier_share']:.2%}",
        f"{layer.outlier_energy:.1%}",
        ARROW.join(f"{share:.2%}" for share in layer.saturation.values() if share is not None)
        or "-",
        f"{variance['within']:.4g}",
        f"{variance['total']:.4g}",
        pair("chi_square"),
        pair("hcr_bound"),
        f"{known[0]['variance']:.3g}" if known else "-",
        pair("leverage"),
        pair("sensitivity"),
    ]


def _bits(report: Report) -> str:
    bits = sorted({each for layer in report.layers.values() for each in layer.bits_db})
    names = ["no split", *(f"{each} bits" for each in bits), "outlier_gain"]
    text = (
        "Signal-to-noise ratio of the output y in dB at the layer's gamma, by the significant bits "
        "of an outlier value, and with outlier_gain at the configured bits. 9 to 15 bits take the "
        "same two limbs and the same time."
    )
    rows = {
        layer.name: [
            decibels(layer.snr_db["y_plain"]),
            *(decibels(layer.bits_db.get(each)) for each in bits),
            decibels(layer.snr_db["y_gain"]),
        ]
        for layer in report.layers.values()
    }
    return _section("Outlier bits and gains", text, names, rows)


def _section(title: str, text: str, names: Sequence[str], rows: Mapping[str, Sequence[str]]) -> str:
    """A table with a row of cells for each layer."""
    heads = "".join(f"<th>{_text(name)}</th>" for name in ("layer", *names))
    body = "".join(
        f"<tr><th>{_text(name or '(root)')}</th>"
        + "".join(f"<td>{_text(cell)}</td>" for cell in cells)
        + "</tr>"
        for name, cells in rows.items()
    )
    return (
        f"<section><h2>{_text(title)}</h2><p>{_text(text)}</p>"
        f'<div class="wide"><table class="layers"><thead><tr>{heads}</tr></thead>'
        f"<tbody>{body}</tbody></table></div></section>"
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
    items = "".join(f"<li>{_text(note)}</li>" for note in notes)
    return f"<section><h2>Not measured</h2><ul>{items}</ul></section>"
