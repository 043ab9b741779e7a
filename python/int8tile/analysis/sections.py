"""The tables of report.html, a section each: every layer with its numbers."""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from int8tile.analysis.results import LayerReport, Report, ThresholdResult
from int8tile.analysis.table import ARROW, COLUMNS, Cell, cosine, decibels, pair
from int8tile.config import Int8TileConfig, config_for


def tables(report: Report) -> list[str]:
    """Lay all layers out, the worst first.

    Args:
        report: a report with at least one layer.

    Returns:
        HTML sections in the order of reading.
    """
    made = [_layers(report), _gammas(report), _bits(report)]
    if any(layer.measured_gradients for layer in report.layers.values()):
        made.append(_gradients(report))
    return [*made, _distributions(report)]


def text(value: object) -> str:
    """Escape a value for HTML."""
    return html.escape(str(value))


def _layers(report: Report) -> str:
    note = (
        "A click on a heading sorts. Worst: the least of output and gradients, a cosine taken as "
        f"dB. Pairs are without the split {ARROW.strip()} with it. Columns: outliers of a call / "
        "capacity. Stable: share of the calls in which an outlier column is one. Ratio: largest "
        "outlier over largest regular value. dB: signal-to-noise ratio of input x, weight w, "
        "gradient g and output y. Cos: angle to the float gradient. Of y and grad_w as configured: "
        "with outlier_gain and grad_split where these are on."
    )
    names = ["in", "out", *COLUMNS]
    rows = {
        layer.name: [
            Cell(str(layer.in_features), layer.in_features),
            Cell(str(layer.out_features), layer.out_features),
            *(cell(layer) for cell in COLUMNS.values()),
        ]
        for layer in report.layers.values()
    }
    titles = {layer.name: _listed(layer) for layer in report.layers.values()}
    return _section("All layers, the worst first", note, names, rows, titles)


def _listed(layer: LayerReport) -> str:
    columns = ", ".join(
        f"{c.index} (absmax {c.absmax:.3g}, in {c.share:.0%})" for c in layer.columns[:12]
    )
    more = f" and {len(layer.columns) - 12} more" if len(layer.columns) > 12 else ""
    return f"outlier columns: {columns}{more}" if columns else "no outlier columns"


def _gammas(report: Report) -> str:
    layers = list(report.layers.values())
    advised = report.recommendation.config
    thresholds = list(dict.fromkeys(t.threshold for layer in layers for t in layer.thresholds))
    thresholds.sort(key=lambda t: -math.inf if t is None else t)
    names = ["recommended", *("no split" if t is None else f"{t:g}" for t in thresholds)]
    rows = {}
    for layer in layers:
        config = config_for(layer.name, advised)
        gains = config is not None and config.outlier_gain
        at = {each.threshold: each for each in layer.thresholds}
        cells = [_at_gamma(at[t], gains) if t in at else Cell("-", None) for t in thresholds]
        rows[layer.name] = [_recommended(config), *cells]
    measured = {layer.gamma for layer in layers}
    chosen = {config.threshold for config in advised.values() if config is not None}
    note = (
        "Signal-to-noise ratio of the output y in dB at each gamma, with outlier_gain where it is "
        "recommended; in brackets the outlier columns of a call, ! where they exceeded the "
        "capacity."
    )
    for gamma in sorted(chosen - measured - {None}, key=lambda t: t or 0.0):
        note += (
            f" Gradients and bits were measured at another gamma than {gamma:g}: --gamma {gamma:g} "
            "shows them there."
        )
    return _section("Every gamma, layer by layer", note, names, rows)


def _at_gamma(at: ThresholdResult, gains: bool) -> Cell:
    value = at.y(gains)
    columns = f" ({at.mean:.1f}{'!' * (at.overflow_calls > 0)})" if at.threshold else ""
    return Cell(f"{decibels(value)}{columns}", value)


def _recommended(config: Int8TileConfig | None) -> Cell:
    if config is None:
        return Cell("float", None)
    if not config.threshold:
        return Cell("no split", math.inf)
    return Cell(f"gamma {config.threshold:g}", config.threshold)


def _bits(report: Report) -> str:
    layers = list(report.layers.values())
    bits = sorted({each for layer in layers for each in layer.bits_db})
    gains = any(layer.config.outlier_gain for layer in layers)
    columns: dict[str, Callable[[LayerReport], float | None]] = {
        "no split": lambda layer: layer.snr_db["y_plain"],
        "split": lambda layer: layer.snr_db["y_split"],
        "split, outlier_gain": lambda layer: layer.snr_db["y_gain"],
    }
    columns |= {f"{each} bits": partial(_at_bits, each) for each in bits}
    note = (
        "Signal-to-noise ratio of the output y in dB at the layer's gamma: with the configured "
        "bits without and with outlier_gain, and by the significant bits of an outlier value"
        f"{', with outlier_gain' * gains}. 9 to 15 bits take the same two limbs and the same time."
    )
    rows = {
        layer.name: [Cell(decibels(of(layer)), of(layer)) for of in columns.values()]
        for layer in layers
    }
    return _section("Gains and outlier bits", note, list(columns), rows)


def _at_bits(bits: int, layer: LayerReport) -> float | None:
    return layer.bits_db.get(bits)


def _gradients(report: Report) -> str:
    columns: dict[str, Callable[[LayerReport], float | None]] = {
        "grad_x": lambda layer: layer.cosine["grad_input"],
        "grad_w, no split": lambda layer: layer.grad_weight(False, False),
        "split": lambda layer: layer.grad_weight(True, False),
        "grad_split": lambda layer: layer.grad_weight(False, True),
        "both": lambda layer: layer.grad_weight(True, True),
    }
    note = (
        "Cosine of the angle to the float gradient: that of the input, and that of the weight "
        "without any split, with outlier columns of the input split, with outlier tokens of the "
        "gradient split (grad_split), and with both. 0.995 is as 20 dB of an output."
    )
    rows = {
        layer.name: [Cell(cosine(of(layer)), of(layer)) for of in columns.values()]
        for layer in report.layers.values()
    }
    return _section("Gradients", note, list(columns), rows)


def _distributions(report: Report) -> str:
    names = ["outlier values", "of sum x²", "clipped", "variance, parts", "variance, all"]
    names += ["chi²", "HCR bound", "leverage", "sensitivity"]
    note = (
        "Values in outlier columns: their share, and their share of the sum of squares. Clipped: "
        "values that rounding took beyond the largest integer. The variance of regular and outlier "
        "values apart, weighted, is at most that of all. Chi²: the divergence of the quantized "
        f"distribution from the original, 0 if none, without the split {ARROW.strip()} with it, of "
        "counts in bins no narrower than a step with the split. HCR bound: the variance of |x| "
        "over these bins that lets its mean move as far as the counts say, as a share of the "
        "variance there is. Leverage: how far the mean of |x| moved, of the values themselves; "
        "sensitivity: its square over their variance."
    )
    rows = {layer.name: _distribution(layer) for layer in report.layers.values()}
    return _section("Distribution of the inputs", note, names, rows)


def _distribution(layer: LayerReport) -> list[Cell]:
    variance = layer.variance
    arms = [layer.distortion[arm] for arm in ("plain", "split")]

    def both(of: Callable[[dict[str, float]], float], form: str = ".2g") -> Cell:
        known = [of(arm) for arm in arms if arm is not None]
        if len(known) < 2:
            return Cell("-", None)
        return pair(Cell(format(value, form), value) for value in known)

    share = variance["outlier_share"]
    return [
        Cell(f"{share:.2%}", share),
        Cell(f"{layer.outlier_energy:.1%}", layer.outlier_energy),
        Cell("-" if layer.clipped is None else f"{layer.clipped:.2g}", layer.clipped),
        Cell(f"{variance['within']:.4g}", variance["within"]),
        Cell(f"{variance['total']:.4g}", variance["total"]),
        both(lambda arm: arm["chi_square"]),
        both(lambda arm: arm["hcr_bound"] / (arm["binned_variance"] or 1), ".1%"),
        both(lambda arm: arm["leverage"], "+.1e"),
        both(lambda arm: arm["sensitivity"], ".1e"),
    ]


def _section(
    title: str,
    note: str,
    names: Sequence[str],
    rows: Mapping[str, Sequence[Cell]],
    titles: Mapping[str, str] | None = None,
) -> str:
    """A table with a row of cells for each layer; `titles` show where the pointer rests."""
    heads = "".join(f"<th>{text(name)}</th>" for name in ("layer", *names))
    body = "".join(
        f'<tr title="{text((titles or {}).get(name, ""))}"><th>{text(name or "(root)")}</th>'
        + "".join(map(_cell, cells))
        + "</tr>"
        for name, cells in rows.items()
    )
    return (
        f"<section><h2>{text(title)}</h2><p>{text(note)}</p>"
        f'<div class="wide"><table class="layers"><thead><tr>{heads}</tr></thead>'
        f"<tbody>{body}</tbody></table></div></section>"
    )


def _cell(cell: Cell) -> str:
    key = "" if cell.key is None else f"{cell.key:.17g}"
    return f'<td data-key="{key}">{text(cell.text)}</td>'
