"""The plots of the comparisons of number formats, drawn from their results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

from accuracy_figures import ARM_COLORS
from formats import INT8_NOISE_DB, PRODUCTS
from plots import DPI

mpl.use("Agg")

Result = Mapping[str, Any]
FORMAT_COLORS = {
    **ARM_COLORS,
    "int8-tensor": ARM_COLORS["paper-int8"],  # its kind of scale
    "fp8-e4m3": "#BBBBBB",
}
LABELS = {"y": "output y", "grad_x": "gradient of x", "grad_w": "gradient of w"}
OPERANDS = {"x": ("o", "x"), "weight": ("s", "w"), "g": ("^", "g")}


def draw_layers(results: Sequence[Result], arms: Sequence[str], path: Path) -> None:
    """Draw every layer's dB by product and format, and why: operands against their crest factor."""
    factors = list(dict.fromkeys(r["stress"] for r in results))
    size = (4.6 * len(factors), 8.6)
    figure, axes = plt.subplots(
        2, len(factors), figsize=size, squeeze=False, sharey="row", layout="constrained"
    )
    for column, factor in enumerate(factors):
        layers = [r for r in results if r["stress"] == factor]
        _strips(axes[0, column], layers, arms)
        _crest(axes[1, column], layers)
        stress = "as is" if factor == 1 else f"4 features x{factor:g}"
        axes[0, column].set_title(f"{stress}: {len(layers)} layers and their median")
    axes[0, 0].set_ylabel("signal to noise, dB")
    axes[1, 0].set_ylabel("operand's signal to noise, dB")
    axes[0, 0].legend(fontsize=8, loc="lower left")
    axes[1, 0].legend(fontsize=8, loc="upper right")
    figure.suptitle("8-bit float against int8, layer by layer")
    figure.savefig(path, dpi=DPI)
    plt.close(figure)


def _strips(axes: Axes, layers: Sequence[Result], arms: Sequence[str]) -> None:
    width = 0.84 / len(arms)
    for place, product in enumerate(PRODUCTS):
        for number, arm in enumerate(arms):
            values = [r["arms"][arm][f"{product}_db"] for r in layers]
            at = place + width * (number - (len(arms) - 1) / 2)
            spread = at + np.linspace(-0.3, 0.3, len(values)) * width
            color = FORMAT_COLORS[arm]
            label = arm if place == 0 else None
            axes.scatter(spread, values, s=7, color=color, alpha=0.75, label=label)
            axes.plot([at - width / 2, at + width / 2], [median(values)] * 2, color="black", lw=1.2)
    axes.set_xticks(range(len(PRODUCTS)), [LABELS[p] for p in PRODUCTS])
    axes.grid(visible=True, axis="y", alpha=0.25)


def _crest(axes: Axes, layers: Sequence[Result]) -> None:
    for name, (marker, label) in OPERANDS.items():
        crest = [r["operands"][name]["crest_db"] for r in layers]
        for kind in ("int8", "fp8"):
            values = [r["operands"][name][f"{kind}_db"] for r in layers]
            axes.scatter(
                crest, values, s=13, marker=marker, color=FORMAT_COLORS[kind],
                edgecolor="black", linewidth=0.3, label=f"{label} in {kind}",
            )  # fmt: skip
    low, high = axes.get_xlim()
    line = np.array([low, high])
    axes.plot(line, INT8_NOISE_DB - line, ":", color="black", lw=1, label="52.9 dB - crest factor")
    axes.set(xlim=(low, high), xlabel="crest factor of rows (absmax / rms), dB")
    axes.grid(visible=True, alpha=0.25)


def draw_decoders(results: Sequence[Result], arms: Sequence[str], path: Path) -> None:
    """Draw every linear of every model and case: the massive token's part and the others'."""
    groups = list(dict.fromkeys((r["model"], r["case"]) for r in results))
    figure, axes = plt.subplots(
        4, len(groups), figsize=(3.3 * len(groups), 11), squeeze=False, sharey="row",
        layout="constrained",
    )  # fmt: skip
    panels = {
        "y_others_db": "y of the other tokens, dB",
        "y_massive_db": "y of the massive token, dB",
        "grad_w_regular_db": "gradient of w, regular columns, dB",
        "grad_w_db": "gradient of w, all columns, dB",
    }
    for column, group in enumerate(groups):
        rows = [r for r in results if (r["model"], r["case"]) == group]
        names = [r["layer"].rsplit(".", 1)[-1].removesuffix("_proj") for r in rows]
        for row, (what, label) in enumerate(panels.items()):
            panel = axes[row, column]
            for arm in arms:
                values = [r["arms"][arm][what] for r in rows]
                panel.plot(names, values, "o-", ms=4, lw=1, color=FORMAT_COLORS[arm], label=arm)
            panel.grid(visible=True, alpha=0.25)
            if column == 0:
                panel.set_ylabel(label)
        axes[0, column].set_title("\n".join(group), fontsize=9)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(arms))
    figure.suptitle("one token with massive activations, signal to noise by linear layer")
    figure.savefig(path, dpi=DPI)
    plt.close(figure)


def draw_mates(
    results: Sequence[Result], errors: Mapping[str, Sequence[float]], path: Path
) -> None:
    """Draw how far a sentence's logits move with its company, beside the quantisation error."""
    arms = list(dict.fromkeys(r["arm"] for r in results))
    cases = list(dict.fromkeys(r["case"] for r in results))
    figure, axes = plt.subplots(figsize=(9, 4.6), layout="constrained")
    width = 0.84 / len(arms)
    for place, case in enumerate([*cases, "quantisation error"]):
        for number, arm in enumerate(arms):
            found = [r["logits"] for r in results if (r["arm"], r["case"]) == (arm, case)]
            values = np.maximum(found[0] if found else errors[arm], 1e-9)
            at = place + width * (number - (len(arms) - 1) / 2)
            spread = at + np.linspace(-0.35, 0.35, len(values)) * width
            label = arm if place == 0 else None
            axes.scatter(spread, values, s=9, color=FORMAT_COLORS[arm], label=label, alpha=0.8)
            axes.plot([at - width / 2, at + width / 2], [median(values)] * 2, color="black", lw=1.2)
    axes.set_xticks(range(len(cases) + 1), [*cases, "alone, against fp32"])
    axes.set(yscale="log", ylabel="relative difference of logits (1e-9: none)")
    axes.set_title("the same sentence alone and in company: one dot a sentence, and the median")
    axes.grid(visible=True, axis="y", alpha=0.25)
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=DPI)
    plt.close(figure)
