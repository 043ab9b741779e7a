"""Whether a sentence's result depends on its batch mates and padding, and by how much.

    python bench/accuracy_mates.py --task sst2 --data path/to/SST-2 --json out.json

The split finds outlier columns per call, so whoever shares the call has a say in them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import torch
import typer
from torch import Tensor, nn

import formats
from plots_formats import draw_mates
from report import environment, json_path, print_head, progress, write_json
from tables import print_table
from text_model import TextModel

ARMS = ("fp32", "int8", "int8-split")
CASES = ("same length", "padding", "batch")
BATCH = 32
GROUP = 8
PADDED = 64  # tokens
MOST_TOKENS = 48  # of a sentence that is looked at
Row = dict[str, Any]
Seen = tuple[Tensor, list[Tensor]]  # logits, and y of every linear for the real tokens


def sentences(text: TextModel, count: int) -> list[Row]:
    """Choose sentences in groups of one length, so that each has mates without padding."""
    rows = [r for r in text.evaluation if len(r["input_ids"]) <= MOST_TOKENS]
    chosen: list[Row] = []
    for _, group in groupby(rows, lambda r: len(r["input_ids"])):  # sorted by length
        members = list(group)[:GROUP]
        chosen += members if len(members) > 1 else []
    generator = torch.Generator().manual_seed(0)
    lengths = list(dict.fromkeys(len(r["input_ids"]) for r in chosen))
    order = torch.randperm(len(lengths), generator=generator).tolist()
    picked = [r for i in order for r in chosen if len(r["input_ids"]) == lengths[i]]
    return picked[:count]


def look(model: nn.Module, batch: Row, rows: Sequence[Row]) -> list[Seen]:
    """Run a batch; give each sentence's logits and outputs of linears on its real tokens."""
    seen: list[Tensor] = []
    linears = [m for m in model.modules() if isinstance(m, nn.Linear)]
    keep = [m.register_forward_hook(lambda m, args, y: seen.append(y)) for m in linears]
    with torch.no_grad():
        logits = model(**batch).logits
    for handle in keep:
        handle.remove()
    by_token = [y for y in seen if y.dim() == 3]
    return [
        (logits[i], [y[i, : len(row["input_ids"])] for y in by_token]) for i, row in enumerate(rows)
    ]


def in_company(text: TextModel, rows: Sequence[Row], case: str) -> Iterator[Seen]:
    """Run every sentence alone, or in the company that the case says; in the order of `rows`."""
    for batch in _batches(rows, case):
        length = PADDED if case == "padding" else None
        yield from look(text.model, text.collate(batch, length), batch)


def _batches(rows: Sequence[Row], case: str) -> Iterator[list[Row]]:
    if case == "same length":
        yield from (list(g) for _, g in groupby(rows, lambda r: len(r["input_ids"])))
        return
    size = BATCH if case == "batch" else 1
    yield from (list(rows[i : i + size]) for i in range(0, len(rows), size))


def difference(value: Tensor, wanted: Tensor) -> float:
    """Compute |value - wanted| / |wanted| by Euclidean norm."""
    return float((value - wanted).norm() / wanted.norm())


def compare(got: Seen, wanted: Seen) -> tuple[float, list[float]]:
    """Compare logits, and the linears one by one."""
    layers = [difference(a, b) for a, b in zip(got[1], wanted[1], strict=True)]
    return difference(got[0], wanted[0]), layers


def one_layer(text: TextModel, rows: Sequence[Row]) -> dict[str, dict[str, float]]:
    """Compare a sentence's rows of single layers, on the same x, alone and among the batch's."""
    batch = text.collate(rows)
    linears = [m for m in text.model.modules() if isinstance(m, nn.Linear)]
    kept: list[tuple[nn.Linear, Tensor]] = []
    hooks = [m.register_forward_hook(lambda m, args, y: kept.append((m, args[0]))) for m in linears]
    with torch.no_grad():
        text.model(**batch)
    for hook in hooks:
        hook.remove()
    found = {}
    for arm, threshold in (("int8", None), ("int8-split", 5.0)):
        differences, errors = [], []
        for layer, x in kept:
            if x.dim() == 3 and min(layer.weight.shape) >= formats.LEAST_FEATURES:
                pairs = _rows_alone(layer.weight.detach(), x, rows, threshold)
                differences += [p[0] for p in pairs]
                errors += [p[1] for p in pairs]
        changed = sum(d > 0 for d in differences) / len(differences)
        found[arm] = {
            "pairs": len(differences),
            "changed": changed,
            **spread(differences),
            "error_median": median(errors),
        }
    return found


def _rows_alone(
    weight: Tensor, x: Tensor, rows: Sequence[Row], threshold: float | None
) -> list[tuple[float, float]]:
    """Give, for each sentence, the effect of its mates and its own quantisation error."""

    def multiply(matrix: Tensor) -> Tensor:
        y: Tensor = torch.ops.int8tile.linear_forward_only(matrix, weight, None, threshold)
        return y

    together = multiply(x.reshape(-1, x.shape[-1])).reshape(*x.shape[:2], -1)
    pairs = []
    for i, row in enumerate(rows):
        mine = x[i, : len(row["input_ids"])].contiguous()
        alone = multiply(mine)
        moved = difference(together[i, : len(mine)], alone)
        pairs.append((moved, difference(alone, mine @ weight.t())))
    return pairs


def spread(values: Sequence[float]) -> dict[str, float]:
    """Give median and largest."""
    return {"median": median(values), "max": max(values)}


def run(text: TextModel, rows: Sequence[Row], step: Callable[[str], None]) -> dict[str, Any]:
    """Run all sentences in every arm and company."""
    alone: dict[str, list[Seen]] = {}
    results, errors = [], {}
    for arm in ARMS:
        step(arm)
        with formats.as_arm(text.model, arm):
            alone[arm] = list(in_company(text, rows, "alone"))
            for case in CASES:
                pairs = zip(in_company(text, rows, case), alone[arm], strict=True)
                found = [compare(a, b) for a, b in pairs]
                layers = [value for _, each in found for value in each]
                logits = [value for value, _ in found]
                results.append(
                    {"arm": arm, "case": case, "logits": logits}
                    | {"logits_spread": spread(logits), "layers_spread": spread(layers)}
                )
        errors[arm] = [compare(a, b) for a, b in zip(alone[arm], alone["fp32"], strict=True)]
    return {
        "results": results,
        "errors": {arm: [logits for logits, _ in each] for arm, each in errors.items()},
        "layer_errors": {a: spread([v for _, y in e for v in y]) for a, e in errors.items()},
    }


def table(found: Mapping[str, Any], single: Mapping[str, Mapping[str, float]], count: int) -> None:
    """Print the differences, and the quantisation errors to hold them against."""
    rows: list[list[str] | None] = []
    for r in found["results"]:
        spreads = (r["logits_spread"], r["layers_spread"])
        rows.append([r["arm"], r["case"], *(f"{s[w]:.2g}" for s in spreads for w in s)])
    rows.append(None)
    for arm in ARMS[1:]:
        spreads = (spread(found["errors"][arm]), found["layer_errors"][arm])
        cells = [f"{s[w]:.2g}" for s in spreads for w in s]
        rows.append([arm, "alone, against fp32", *cells])
    columns = [
        "format",
        "company",
        *(f"{w}, {s}" for w in ("logits", "y") for s in ("median", "max")),
    ]
    print_table(f"{count} sentences: relative difference from the sentence alone", columns, rows)
    rows = [
        [arm, *(f"{s[name]:.2g}" for name in ("changed", "median", "max", "error_median"))]
        for arm, s in single.items()
    ]
    columns = ["format", "share changed", "median", "max", "quantisation error (median)"]
    print_table("single layers on the same x, in a batch against alone", columns, rows)


def main(
    task: Annotated[str, typer.Option(help="docstrings, or a task of GLUE.")] = "docstrings",
    data: Annotated[Path | None, typer.Option(help="Folder of the task's .tsv files.")] = None,
    count: Annotated[int, typer.Option(min=2, help="Sentences.")] = 128,
    steps: Annotated[int, typer.Option(help="Float32 training steps first.")] = 30,
    threads: Annotated[int, typer.Option(min=1)] = 2,
    quick: Annotated[bool, typer.Option("--quick", help="32 sentences.")] = False,
    smoke: Annotated[bool, typer.Option("--smoke", help="A few sentences.")] = False,
    json: Annotated[
        Path | None, typer.Option(help="Write all results to this file, and a plot beside it.")
    ] = None,
) -> None:
    """Run sentences alone, with mates of one length, padded, and in a mixed batch."""
    if quick or smoke:
        count, steps = (4, 0) if smoke else (32, 5)
    arguments = {name: value for name, value in locals().items() if name != "json"}
    arguments["data"] = data and data.name  # not where it lies
    json = json_path(json)
    torch.set_num_threads(threads)
    facts = environment([threads])
    with progress(1 + len(ARMS)) as step:
        step("training in float32")
        text = TextModel(task, data, steps)
        rows = sentences(text, count)
        found = run(text, rows, step)
    single = one_layer(text, rows[:BATCH])
    print_head(facts, {})
    table(found, single, len(rows))
    facts |= {"errors": found["errors"], "layer_errors": found["layer_errors"], "single": single}
    write_json(json, "accuracy_mates", arguments, facts, found["results"], {})
    if json is not None:
        draw_mates(found["results"], found["errors"], json.with_suffix(".png"))


if __name__ == "__main__":
    typer.run(main)
