"""8-bit float against int8 with and without the split, layer by layer, on real text.

python bench/accuracy_fp8.py --task mrpc --data path/to/MRPC --json out.json
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import torch
import typer

import formats
from formats import PRODUCTS, Call
from fp8 import E4M3, E5M2
from plots_formats import draw_layers
from report import choices, environment, json_path, parsed, print_head, progress, write_json
from tables import print_table
from text_model import TextModel, gradients

ARMS = ("bf16", "int8", "int8-split", "int8-gain", "fp8", "fp8-e4m3")
SMOKE_BATCH = 4
Result = Mapping[str, Any]


def measure(name: str, call: Call, arms: Sequence[str]) -> dict[str, Any]:
    """Compare one layer's products in every format with float32's."""
    exact = formats.products(call, "fp32")
    found: dict[str, Any] = {}
    for arm in arms:
        got = formats.products(call, arm)
        found[arm] = {f"{p}_db": formats.snr_db(exact[p], got[p]) for p in PRODUCTS}
        for p in PRODUCTS[1:]:
            found[arm][f"{p}_cosine"] = formats.cosine(exact[p], got[p])
    return {
        "layer": name,
        "shape": [len(call.x), *call.weight.shape],
        "outliers": formats.outliers(call.x),
        "operands": operands(call),
        "arms": found,
    }


def operands(call: Call) -> dict[str, dict[str, float | None]]:
    """Give crest factor and signal-to-noise ratio of what the products multiply."""
    rows = {"x": call.x, "weight": call.weight, "g": call.g}
    return {
        name: {
            "crest_db": formats.crest_db(t),
            "int8_db": formats.operand_db(t, "int8"),
            "fp8_db": formats.operand_db(t, "fp8", E5M2 if name == "g" else E4M3),
        }
        for name, t in rows.items()
    }


def model_cosines(text: TextModel, arms: Sequence[str]) -> dict[str, float | None]:
    """Give the cosine of all gradients of the model with float32's, errors of layers added up."""
    exact = gradients(text.model, text.batch)
    found = {}
    for arm in arms:
        precision = torch.autocast("cpu", torch.bfloat16, enabled=arm == "bf16")
        with formats.as_arm(text.model, arm), precision:
            found[arm] = formats.cosine(exact, gradients(text.model, text.batch))
    return found


def run(
    text: TextModel, factors: Sequence[float], arms: Sequence[str]
) -> Iterator[tuple[list[dict[str, Any]], dict[str, Any]]]:
    """Measure under each stress; give the layers and the whole model's gradients."""
    for factor in factors:
        stress = text.stress(factor) if factor != 1 else None
        with formats.recorded(text.model) as calls:
            gradients(text.model, text.batch)
        layers = [{"stress": factor, **measure(n, c, arms)} for n, c in calls.items()]
        yield layers, {"stress": factor, "cosine": model_cosines(text, arms)}
        if stress is not None:
            stress.remove()


def summary(results: Sequence[Result], models: Sequence[Result]) -> None:
    """Print a line for each stress and format: median (worst) of the layers."""
    rows: list[list[str] | None] = []
    for model in models:
        layers = [r for r in results if r["stress"] == model["stress"]]
        for arm in model["cosine"]:
            cells = [_median_and_worst(layers, arm, f"{p}_db") for p in PRODUCTS]
            cosines = [r["arms"][arm]["grad_w_cosine"] for r in layers]
            cells.append(f"{median(cosines):.5f} ({min(cosines):.4f})")
            wins = "" if arm == "fp8" or "fp8" not in model["cosine"] else _wins(layers, arm)
            label = f"x{model['stress']:g}, {len(layers)} layers"
            rows.append([label, arm, *cells, f"{model['cosine'][arm]:.4f}", wins])
        rows.append(None)
    columns = ["stress", "format", *(f"{p} dB" for p in PRODUCTS), "grad_w cosine"]
    title = "median (worst) of the layers"
    print_table(title, [*columns, "model's gradient", "better than fp8: y, grad_x, grad_w"], rows)


def _median_and_worst(layers: Sequence[Result], arm: str, what: str) -> str:
    values = [r["arms"][arm][what] for r in layers]
    return f"{median(values):.1f} ({min(values):.1f})"


def _wins(layers: Sequence[Result], arm: str) -> str:
    counts = [
        sum(r["arms"][arm][f"{p}_db"] > r["arms"]["fp8"][f"{p}_db"] for r in layers)
        for p in PRODUCTS
    ]
    return ", ".join(map(str, counts))


def main(
    task: Annotated[str, typer.Option(help="docstrings, or a task of GLUE.")] = "docstrings",
    data: Annotated[Path | None, typer.Option(help="Folder of the task's .tsv files.")] = None,
    stress: Annotated[str, typer.Option(help="Factors of injected outliers.")] = "1,20,60",
    arms: Annotated[str, typer.Option(help="Comma-separated.")] = ",".join(ARMS),
    steps: Annotated[int, typer.Option(help="Float32 training steps first.")] = 30,
    threads: Annotated[int, typer.Option(min=1)] = 2,
    quick: Annotated[bool, typer.Option("--quick", help="Fewer steps: under a minute.")] = False,
    smoke: Annotated[bool, typer.Option("--smoke", help="Four texts, in seconds.")] = False,
    json: Annotated[
        Path | None, typer.Option(help="Write all results to this file, and a plot beside it.")
    ] = None,
) -> None:
    """Signal-to-noise ratios of outputs and gradients in int8 and in emulated 8-bit floats.

    Each layer of MiniLM is multiplied on its own, on what it sees in one training step.
    """
    if quick or smoke:
        steps = 0 if smoke else 5
    stress = "1,60" if smoke else stress
    arguments = {name: value for name, value in locals().items() if name != "json"}
    arguments["data"] = data and data.name  # not where it lies
    json = json_path(json)
    chosen = parsed("arms", choices, arms, tuple(formats.ARMS))
    factors = parsed("stress", lambda: [float(factor) for factor in stress.split(",")])
    torch.set_num_threads(threads)
    facts = environment([threads])
    results: list[dict[str, Any]] = []
    models: list[dict[str, Any]] = []
    with progress(1 + len(factors)) as step:
        step("training in float32")
        text = TextModel(task, data, steps, **({"batch": SMOKE_BATCH} if smoke else {}))
        step(f"stress {factors[0]:g}")
        for number, (layers, model) in enumerate(run(text, factors, chosen), 2):
            results += layers
            models.append(model)
            if number <= len(factors):
                step(f"stress {factors[number - 1]:g}")
    print_head(facts, {})
    summary(results, models)
    write_json(json, "accuracy_fp8", arguments, facts | {"models": models}, results, {})
    if json is not None:
        draw_layers(results, chosen, json.with_suffix(".png"))


if __name__ == "__main__":
    typer.run(main)
