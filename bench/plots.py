"""The plots of run_cpu.py, drawn from what cpu.json holds."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

mpl.use("Agg")

Result = Mapping[str, Any]
Parts = Mapping[str, Mapping[str, Any]]
DPI = 150
COLORS = {
    "fp32": "#7f7f7f",
    "bf16": "#bcbd22",
    "int8": "#9ecae1",
    "int8-split": "#08519c",
    "int8-gain": "#e377c2",
    "int8-shared": "#4292c6",
    "int8-columns": "#009e73",
    "int8tile": "#08519c",
    "int_mm": "#fd8d3c",
    "int_mm compiled": "#d94801",
    "torchao training": "#74c476",
    "torchao training compiled": "#238b45",
    "torchao dynamic": "#c7e9c0",
    "torchao dynamic compiled": "#41ab5d",
    "fbgemm": "#9e9ac8",
    "bitsandbytes": "#de2d26",
}
PANELS = (
    ("forward", "each", "forward, weight quantised each call"),
    ("forward", "frozen", "forward, weight frozen"),
    ("both", "each", "forward + backward, weight trained"),
    ("both", "frozen", "forward + backward, weight frozen"),
)


def draw(parts: Parts, folder: Path) -> list[Path]:
    """Draw a plot for each part that was run.

    Args:
        parts: The content of cpu.json by part.
        folder: Takes the PNG files.

    Returns:
        The files.
    """
    files = []
    for name, plot in PLOTS.items():
        results = parts.get(name, {}).get("results", [])
        if results:
            figure = plot(results, parts[name]["environment"])
            path = folder / f"{name}.png"
            figure.savefig(path, dpi=DPI)
            plt.close(figure)
            files.append(path)
    return files


def _figure(rows: int, columns: int, size: tuple[float, float]) -> tuple[Figure, list[Axes]]:
    figure, axes = plt.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained")
    return figure, list(axes.flat)


def _geometric_mean(values: Iterable[float]) -> float:
    logs = [math.log(value) for value in values]
    return math.exp(sum(logs) / len(logs))


def _names(results: Sequence[Result], key: str = "candidate") -> list[str]:
    return list(dict.fromkeys(r[key] for r in results))


def _color(name: str) -> str | None:
    return COLORS.get(name)


def roofline(results: Sequence[Result], environment: Mapping[str, Any]) -> Figure:
    """Draw GOP/s against operations per byte, under the measured peaks."""
    threads = max(r["threads"] for r in results)
    chosen = [r for r in results if r["threads"] == threads]
    figure, (axes,) = _figure(1, 1, (8, 5))
    for name in _names(chosen):
        rows = [r for r in chosen if r["candidate"] == name]
        x, y = [r["intensity"] for r in rows], [r["gops"] for r in rows]
        axes.scatter(x, y, s=18, label=name, color=_color(name), zorder=3)
    low, high = min(r["intensity"] for r in chosen) / 2, max(r["intensity"] for r in chosen) * 2
    bandwidth = environment["copy_gb_per_s"][str(threads)]
    peaks = sorted(r["peak_gops"] for r in chosen if r["peak_gops"])
    if peaks:
        peak = peaks[len(peaks) // 2]
        knee = peak / bandwidth
        axes.plot([low, knee, high], [low * bandwidth, peak, peak], color="black", lw=1)
        axes.annotate(f"dot product {peak:.0f} GOP/s", (high, peak), ha="right", va="bottom")
    else:
        axes.plot([low, high], [low * bandwidth, high * bandwidth], color="black", lw=1)
    axes.annotate(f"copy {bandwidth:.0f} GB/s", (low, low * bandwidth), va="bottom")
    axes.set(xscale="log", yscale="log", xlabel="operations per byte", ylabel="GOP/s")
    axes.set_title(f"GEMM on ready operands, threads {threads}")
    axes.legend()
    return figure


def peers(results: Sequence[Result], environment: Mapping[str, Any]) -> Figure:
    """Draw the speed of every candidate against float32, a panel for each kind of work."""
    figure, panels = _figure(2, 2, (12, 8))
    for axes, (done, weight, title) in zip(panels, PANELS, strict=True):
        rows = [r for r in results if (r["pass"], r["weight"]) == (done, weight)]
        labels = _names(rows, "layer")
        for number, label in enumerate(labels):
            for place, name in enumerate(_names(rows)):
                found = [r for r in rows if r["layer"] == label and r["candidate"] == name]
                if not found:
                    continue  # left out of this shape
                speed = _geometric_mean(r["speed_against_fp32"]["median"] for r in found)
                width = 0.8 / len(labels)
                at = place + width * (number - (len(labels) - 1) / 2)
                axes.barh(at, speed, width, color=_color(name), alpha=0.65**number)
                axes.annotate(f" {speed:.2f}", (speed, at), va="center", fontsize=7)
        axes.axvline(1, color="black", lw=0.8)
        axes.set_yticks(range(len(_names(rows))), _names(rows))
        axes.invert_yaxis()
        axes.margins(x=0.12)
        axes.set(title=title, xlabel="times float32's speed")
    figure.suptitle(f"from dark to light: {', '.join(labels)}; {environment['cpu']}")
    return figure


def tokens(results: Sequence[Result], environment: Mapping[str, Any]) -> Figure:
    """Draw the speed against float32 by tokens, the mean over layers."""
    figure, panels = _figure(2, 2, (12, 8))
    for axes, (done, weight, title) in zip(panels, PANELS, strict=True):
        rows = [r for r in results if (r["pass"], r["weight"]) == (done, weight)]
        for name in _names(rows):
            speeds: dict[int, list[float]] = {}
            for r in rows:
                if r["candidate"] == name:
                    speeds.setdefault(r["tokens"], []).append(r["speed_against_fp32"]["median"])
            means = [_geometric_mean(values) for values in speeds.values()]
            axes.plot(list(speeds), means, marker="o", ms=4, label=name, color=_color(name))
        axes.set(xscale="log", title=title, xlabel="tokens", ylabel="times float32's speed")
        axes.legend(fontsize=7)
    figure.suptitle(f"mean over {', '.join(_names(results, 'layer'))}; {environment['cpu']}")
    return figure


def outliers(results: Sequence[Result], environment: Mapping[str, Any]) -> Figure:
    """Draw the time of a split against the same call without one, by outlier columns."""
    figure, panels = _figure(2, 2, (12, 8))
    columns = sorted({r["outliers"] for r in results})
    for axes, (done, weight, title) in zip(panels, PANELS, strict=True):
        rows = [r for r in results if (r["pass"], r["weight"]) == (done, weight)]
        for style, label in zip(("-", "--"), _names(rows, "layer"), strict=False):
            for name in [name for name in _names(rows) if name not in ("fp32", "int8")]:
                line = [r for r in rows if (r["layer"], r["candidate"]) == (label, name)]
                x = [r["outliers"] for r in line]
                cost = [1 / r["speed_against_int8"]["median"] for r in line]
                legend = f"{name}, {label}"
                axes.plot(x, cost, style, marker="o", ms=4, label=legend, color=_color(name))
        if done == "forward":  # the high limb's product; the low limb stands in place
            extra = [1 + count / results[0]["k"] for count in columns]
            axes.plot(columns, extra, ":", color="black", label="its multiplications alone")
        axes.set(title=title, xlabel="outlier columns", ylabel="time / int8 without a split")
        axes.set_xscale("symlog", linthresh=4)
        axes.set_xticks(columns, [str(count) for count in columns])
        axes.legend(fontsize=7)
    figure.suptitle(f"the cost of keeping outliers apart; {environment['cpu']}")
    return figure


def steps(results: Sequence[Result], environment: Mapping[str, Any]) -> Figure:
    """Draw speed and bytes saved for backward of whole training steps."""
    figure, panels = _figure(1, 3, (15, 4.5))
    groups = list(dict.fromkeys((r["model"], r["dropout"]) for r in results))
    arms = _names(results, "arm")
    for r in results:
        at = groups.index((r["model"], r["dropout"])) + 0.8 / len(arms) * arms.index(r["arm"])
        speed = r["speed_against_fp32"]["median"]
        first = r["arm"] if groups[0] == (r["model"], r["dropout"]) else None
        panels[0].bar(at, speed, 0.8 / len(arms), color=_color(r["arm"]), label=first)
        for axes, what in zip(panels[1:], ("saved", "linear_saved"), strict=True):
            axes.bar(at, r[f"{what}_against_fp32"], 0.8 / len(arms), color=_color(r["arm"]))
    titles = ("speed", "bytes saved for backward", "those saved by linear layers")
    for axes, title in zip(panels, titles, strict=True):
        names = [f"{model}\ndropout {dropout}" for model, dropout in groups]
        axes.set_xticks([number + 0.3 for number in range(len(groups))], names, fontsize=8)
        axes.axhline(1, color="black", lw=0.8)
        axes.set(title=f"{title}, float32 = 1")
    figure.legend(loc="outside lower center", ncols=len(arms))
    figure.suptitle(f"training steps, {results[0]['tokens']} tokens; {environment['cpu']}")
    return figure


PLOTS: dict[str, Callable[[Sequence[Result], Mapping[str, Any]], Figure]] = {
    "gemm": roofline,
    "peers": peers,
    "tokens": tokens,
    "outliers": outliers,
    "step": steps,
}
