"""The figures of a report, each an image that fits into a page as a data URI."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from int8tile.analysis.results import LayerReport, Report
from int8tile.analysis.table import shared_prefix

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, which the colour-blind can tell apart.
PLAIN, SPLIT, GRAD_INPUT, MARK = "#E69F00", "#0072B2", "#009E73", "#D55E00"
GRAD_SPLIT = "#CC79A7"
WIDTH = 11.0  # inches
ROW = 0.21  # inches of a layer's row
MOST_BINS = 384  # columns of a heat map; wider inputs show the largest of several
HISTOGRAMS = 9  # of the worst layers
LEAST_DISTANCE = 1e-7  # of a cosine from 1, to be shown on a logarithmic axis


@dataclass(frozen=True)
class Image:
    """A figure as a page embeds it.

    Args:
        title: heading.
        text: what it shows and how to read it.
        uri: data URI of the picture.
    """

    title: str
    text: str
    uri: str


def draw(report: Report, order: Sequence[str]) -> list[Image]:
    """Draw all figures.

    Args:
        report: a report with at least one layer.
        order: names of its layers from top to bottom.

    Returns:
        The figures in the order of reading.
    """
    with _style():
        layers = [report.layers[name] for name in order]
        return [
            _outputs_and_gradients(layers),
            _choice_of_gamma(layers),
            *_heat_maps(layers),
            _histograms(list(report.layers.values())[:HISTOGRAMS]),
        ]


@contextmanager
def _style() -> Iterator[None]:
    import matplotlib as mpl

    style: Any = {
        "font.size": 9,
        "axes.titlesize": 10,
        "axes.titleweight": "bold",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.axisbelow": True,
        "grid.alpha": 0.25,
        "legend.frameon": False,
        "svg.hashsalt": "int8tile",  # the same file for the same report
    }
    with mpl.rc_context(style):
        yield


def _figure(height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(WIDTH, height), layout="constrained")


def _image(figure: Figure, title: str, text: str, kind: str = "svg+xml") -> Image:
    file = io.BytesIO()
    extension = kind.partition("+")[0]
    metadata = {"Date": None} if extension == "svg" else None
    figure.savefig(file, format=extension, dpi=150, metadata=metadata)
    data = base64.b64encode(file.getvalue()).decode("ascii")
    return Image(title, text, f"data:image/{kind};base64,{data}")


def _outputs_and_gradients(layers: Sequence[LayerReport]) -> Image:
    seen = any(layer.measured_gradients for layer in layers)
    figure = _figure((1.5 if seen else 1.3) + ROW * len(layers))
    axes = figure.subplots(1, 1 + seen, sharey=True, squeeze=False)[0]
    _outputs(axes[0], layers)
    if seen:
        _gradients(axes[1], layers)
    triangle = "; a triangle is what grad_split gives the weight's gradient beside it" * seen
    for each in axes:
        where: Any = {"loc": "lower center", "bbox_to_anchor": (0.5, 1.0), "borderaxespad": 0.2}
        each.legend(**where, ncols=2, columnspacing=1.0, handletextpad=0.1)
    return _image(
        figure,
        "Outputs and gradients, layer by layer",
        "Each row is a layer, in the order of the model. The distance from square to dot is what "
        f"splitting the outlier columns gains{triangle}.{_where(layers)}",
    )


def _outputs(axes: Axes, layers: Sequence[LayerReport]) -> None:
    y = np.arange(len(layers))
    plain, split = (_of(layers, f"y_{arm}") for arm in ("plain", "split"))
    axes.hlines(y, plain, split, color="#BBBBBB", linewidth=2, zorder=1)
    axes.scatter(plain, y, color=PLAIN, marker="s", s=22, label="without the split", zorder=2)
    axes.scatter(split, y, color=SPLIT, marker="o", s=26, label="with the split", zorder=3)
    _rows(axes, layers, "Output: signal-to-noise ratio", "dB, further right is better")


def _gradients(axes: Axes, layers: Sequence[LayerReport]) -> None:
    y = np.arange(len(layers))
    for what, label, color, marker in (
        ("grad_weight_plain", "weight, without the split", PLAIN, "s"),
        ("grad_weight_split", "weight, with the split", SPLIT, "o"),
        ("grad_weight_split_grad_split", "weight, grad_split too", GRAD_SPLIT, "^"),
        ("grad_input", "input", GRAD_INPUT, "D"),
    ):
        axes.scatter(_distances(layers, what), y, color=color, marker=marker, s=22, label=label)
    axes.set_xscale("log")
    axes.set_xlim(2, LEAST_DISTANCE / 2)  # all there is without data
    axes.autoscale(axis="x")
    axes.xaxis.set_inverted(True)
    _rows(axes, layers, "Gradients: int8 against float", "1 - cosine, further right is better")


def _of(layers: Sequence[LayerReport], what: str) -> npt.NDArray[np.float64]:
    values = [layer.snr_db[what] for layer in layers]
    return np.array([math.nan if v is None or math.isinf(v) else v for v in values])


def _distances(layers: Sequence[LayerReport], what: str) -> npt.NDArray[np.float64]:
    values = [layer.cosine[what] for layer in layers]
    return np.array([math.nan if c is None else max(1 - c, LEAST_DISTANCE) for c in values])


def _rows(axes: Axes, layers: Sequence[LayerReport], title: str, label: str) -> None:
    axes.set_yticks(range(len(layers)), _labels(layers), fontsize=7.5)
    axes.set_ylim(len(layers) - 0.5, -0.5)
    axes.set_title(title, pad=35 if axes.figure.axes[1:] else 22)  # legends of two rows, or one
    axes.set_xlabel(label)
    axes.grid(visible=True)


def _labels(layers: Sequence[LayerReport]) -> list[str]:
    prefix = shared_prefix(layer.name for layer in layers)
    return [layer.name.removeprefix(prefix) or "(root)" for layer in layers]


def _where(layers: Sequence[LayerReport]) -> str:
    prefix = shared_prefix(layer.name for layer in layers)
    return f" Layers without a full name are in {prefix.rstrip('.')}." if prefix else ""


def _choice_of_gamma(layers: Sequence[LayerReport]) -> Image:
    figure = _figure(3.4)
    left, right = figure.subplots(1, 2)
    by_threshold: dict[float | None, list[LayerReport]] = {}
    for layer in layers:
        for each in layer.thresholds:
            by_threshold.setdefault(each.threshold, []).append(layer)
    order = sorted(by_threshold, key=lambda t: -math.inf if t is None else -t)
    labels = ["none" if t is None else f"{t:g}" for t in order]
    x = np.arange(len(order))
    found = [[t for layer in layers for t in layer.thresholds if t.threshold == o] for o in order]
    for gains, line in ((False, "-"), (True, ":")):
        known = [
            [y for t in each if (y := t.y(gains)) is not None and y < math.inf] for each in found
        ]
        kept = [i for i, each in enumerate(known) if each]
        with_gains = ", outlier_gain" * gains
        for of, name, color, marker in (
            (np.median, "median", SPLIT, "o"),
            (min, "worst", MARK, "v"),
        ):
            values = [of(known[i]) for i in kept]
            left.plot(
                x[kept], values, line, color=color, marker=marker, label=f"{name} layer{with_gains}"
            )
    left.set_title("Output: signal-to-noise ratio")
    left.set_ylabel("dB")
    left.legend()
    right.bar(x, [np.mean([t.mean for t in each]) for each in found], color=SPLIT, width=0.6)
    over = [sum(t.overflow_calls > 0 for t in each) for each in found]
    for i, count in enumerate(over):
        if count:
            height = float(np.mean([t.mean for t in found[i]]))
            text = f"{count} layers\nover capacity"
            right.annotate(text, (i, height), ha="center", va="bottom", color=MARK, fontsize=7.5)
    right.margins(y=0.2)
    right.set_title("Outlier columns of a call, average of the layers")
    for axes in (left, right):
        axes.set_xticks(x, labels)
        axes.set_xlabel("gamma")
        axes.grid(visible=True, axis="y")
    return _image(
        figure,
        "What each gamma gives and costs",
        "Left: how exact the outputs are. Right: how many columns are multiplied twice. A good "
        "gamma is where the left curve has flattened and the right bars are still low.",
    )


def _heat_maps(layers: Sequence[LayerReport]) -> Iterator[Image]:
    by_width: dict[int, list[LayerReport]] = {}
    for layer in layers:
        by_width.setdefault(layer.in_features, []).append(layer)
    for width, group in sorted(by_width.items()):
        yield _heat_map(width, group)


def _heat_map(width: int, layers: Sequence[LayerReport]) -> Image:
    from matplotlib.colors import TwoSlopeNorm

    step = math.ceil(width / MOST_BINS)
    padding = -width % step
    padded = [np.pad(layer.absmax, (0, padding)).reshape(-1, step).max(1) for layer in layers]
    least = np.finfo(np.float32).tiny
    grid = np.log10(np.maximum(np.stack(padded), least))
    gammas = {layer.gamma for layer in layers}
    center = math.log10(min(gammas))
    low, high = float(np.percentile(grid, 1)), float(grid.max())
    low, high = min(low, center - 1), max(high, center + 0.3)
    norm = TwoSlopeNorm(center, vmin=low, vmax=high)
    figure = _figure(1.3 + ROW * len(layers))
    axes = figure.subplots()
    extent = (0, grid.shape[1] * step, len(layers) - 0.5, -0.5)
    shown = axes.imshow(
        grid, aspect="auto", cmap="PuOr_r", norm=norm, extent=extent, interpolation="nearest"
    )
    axes.set_xlim(0, width)
    axes.set_yticks(range(len(layers)), _labels(layers), fontsize=7.5)
    axes.set_xlabel(f"input feature{f' (largest of {step})' if step > 1 else ''}")
    bar = figure.colorbar(shown, ax=axes, pad=0.01, fraction=0.03, label="absmax")
    ticks = _nice_ticks(low, high, center)
    names = {center: f"{10**center:.3g} (gamma)"}
    bar.set_ticks(ticks, labels=[names.get(t, f"{10**t:.2g}") for t in ticks])
    bar.ax.axhline(center, color="black", linewidth=1.2)
    return _image(
        figure,
        f"Largest |x| of each input feature: layers with {width} inputs",
        "Orange columns exceed gamma and are split; purple ones stay int8. A vertical line is a "
        f"feature that is an outlier in layer after layer.{_where(layers)}",
        "png",
    )


def _nice_ticks(low: float, high: float, center: float) -> list[float]:
    ticks = [math.log10(m) + e for e in range(-40, 40) for m in (1, 3)]
    apart = (high - low) / 40
    return [t for t in ticks if low <= t <= high and abs(t - center) > apart] + [center]


def _histograms(layers: Sequence[LayerReport]) -> Image:
    columns = min(3, len(layers))
    rows = math.ceil(len(layers) / columns)
    figure = _figure(0.5 + 2.1 * rows)
    grid = figure.subplots(rows, columns, squeeze=False, sharex=True)
    for axes in grid.flat[len(layers) :]:
        axes.set_visible(False)
    for axes, layer in zip(grid.flat, layers, strict=False):
        _histogram(axes, layer)
    handles = _handles({"regular": SPLIT, "above gamma": MARK})
    figure.legend(handles=handles, loc="outside upper right", ncols=2)
    figure.supxlabel("|x|", fontsize=9)
    figure.supylabel("values per octave", fontsize=9)
    return _image(
        figure,
        f"Activations of the {len(layers)} worst layers",
        "How many values of the input have which magnitude, both on logarithmic scales; the dashed "
        "line is gamma.",
    )


def _histogram(axes: Axes, layer: LayerReport) -> None:
    edges, counts = layer.histogram
    # An octave's four bins are not equally wide. A single value in the widest is above 1.
    density = np.maximum(counts / np.diff(np.log2(edges)), 1)
    first = int(np.searchsorted(edges[:-1], layer.gamma))  # bin above gamma
    for part, color in ((slice(first), SPLIT), (slice(first, None), MARK)):
        if len(density[part]):
            sides = edges[part.start or 0 :][: len(density[part]) + 1]
            axes.stairs(density[part], sides, baseline=1, fill=True, color=color)
    axes.axvline(layer.gamma, color="black", linestyle="--", linewidth=1)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_ylim(bottom=1)
    axes.set_title(layer.name or "(root)", fontsize=8)
    if len(counts):
        axes.set_xlim(left=max(float(edges[0]), layer.gamma / 1e5))


def _handles(colors: Mapping[str, str]) -> list[object]:
    from matplotlib.patches import Patch

    return [Patch(color=color, label=label) for label, color in colors.items()]
