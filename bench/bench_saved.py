"""What one training step keeps in memory for its backward pass, operator by operator.

    python bench/bench_saved.py --models bert-base --arms fp32,int8-shared

Start reading at `measure`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor
from torch.autograd.graph import Node

from checks import require
from int8tile.finetune.memory import release_memory, saved_bytes
from report import choices, environment, json_path, parsed, print_head, progress, write_json
from steps import ARMS, DROPOUTS, MODELS, WITHOUT_DROPOUT, Setup, as_arm, loss_of
from tables import saved_table

SAVED = "_saved_"  # how autograd's own nodes name what they keep
SUFFIX = "Backward"  # of a node's name; a digit may follow
CRUMB = 0.005  # of all: operators that keep less are counted together
ELSE = "everything else"


def nodes(loss: Tensor) -> Iterator[Node]:
    """Give each node of the graph that `loss` was computed by."""
    todo = [loss.grad_fn] if loss.grad_fn else []
    seen = set(todo)
    while todo:
        node = todo.pop()
        yield node
        following = {each for each, _ in node.next_functions if each is not None} - seen
        seen |= following
        todo += following


def kept_by(node: Node) -> Iterator[Tensor]:
    """Give the tensors that a node keeps for its backward pass."""
    values = getattr(node, "saved_tensors", None)  # of a torch.autograd.Function
    if values is None:
        values = [getattr(node, name) for name in dir(node) if name.startswith(SAVED)]
    for value in values:
        for each in value if isinstance(value, list | tuple) else (value,):
            if isinstance(each, Tensor):
                yield each


def saved_by_operator(model: torch.nn.Module, loss: Tensor) -> dict[str, int]:
    """Divide what autograd keeps among the operators that keep it.

    Args:
        model: Its parameters and buffers are left out.
        loss: The result of one forward pass.

    Returns:
        Bytes, each storage once. What several operators keep together (the output of one is the
        input of the next) stands under all their names, joined by "+".
    """
    lasting = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    owners: dict[int, set[str]] = defaultdict(set)
    sizes: dict[int, int] = {}
    for node in nodes(loss):
        for tensor in kept_by(node):
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in lasting:
                owners[storage.data_ptr()].add(node.name().split(SUFFIX)[0])
                sizes[storage.data_ptr()] = storage.nbytes()
    saved: dict[str, int] = defaultdict(int)
    for address, names in owners.items():
        saved[" + ".join(sorted(names))] += sizes[address]
    return _without_crumbs(saved)


def _without_crumbs(saved: dict[str, int]) -> dict[str, int]:
    """Count small entries together; the largest come first."""
    total = sum(saved.values())
    large = {name: size for name, size in saved.items() if size >= CRUMB * total}
    ordered = dict(sorted(large.items(), key=lambda item: -item[1]))
    return {**ordered, ELSE: total - sum(large.values())}


def measure(setup: Setup, arms: list[str]) -> Iterator[dict[str, Any]]:
    """Give what each arm keeps in one step of a model.

    Args:
        setup: The model.
        arms: Some of `steps.ARMS`, "fp32" among them.

    Returns:
        A record for each arm.

    Raises:
        CheckError: The parts are not the whole that hooks on saved tensors count.
    """
    model = setup.build()
    batch = setup.batch(model)
    totals: dict[str, int] = {}
    for arm in arms:
        with as_arm(model, arm):
            loss = partial(loss_of, model, arm, batch)
            saved = saved_by_operator(model, loss())
            totals[arm] = saved_bytes(model, loss)
            linears = saved_bytes(model, loss, within=torch.nn.Linear)
        parts = sum(saved.values())
        require(parts == totals[arm], f"{arm}: operators keep {parts} bytes, not {totals[arm]}")
        yield {
            "model": setup.model,
            "dropout": setup.dropout,
            "arm": arm,
            "tokens": batch["input_ids"].numel(),
            "saved_bytes": totals[arm],
            "saved_against_fp32": totals[arm] / totals["fp32"],
            "linear_saved_bytes": linears,
            "operators": saved,
        }


def main(
    models: Annotated[str, typer.Option(help="Comma-separated.")] = ",".join(MODELS),
    dropout: Annotated[
        str, typer.Option(help="on: the models' own rates; off. Comma-separated.")
    ] = "on,off",
    arms: Annotated[
        str, typer.Option(help=f"Comma-separated, of {','.join(ARMS)}; fp32 always runs.")
    ] = "fp32,bf16,int8-shared",
    smoke: Annotated[bool, typer.Option("--smoke", help="Tiny models, in seconds.")] = False,
    json: Annotated[Path | None, typer.Option(help="Write all results to this file.")] = None,
) -> None:
    """Name the operators whose saved tensors fill the memory of a training step."""
    if smoke:
        dropout, arms = "off", "int8-shared"
    arguments = {name: value for name, value in locals().items() if name != "json"}
    json = json_path(json)
    wanted = list(dict.fromkeys(["fp32", *parsed("arms", choices, arms, ARMS)]))
    setups = [
        Setup(model, rate, smoke)
        for model in parsed("models", choices, models, MODELS)
        for rate in parsed("dropout", choices, dropout, DROPOUTS)
        if model not in WITHOUT_DROPOUT or rate == "off"
    ]
    results: list[dict[str, Any]] = []
    with progress(len(setups)) as step:
        for setup in setups:
            step(str(setup))
            results += measure(setup, wanted)
            release_memory()
    facts = environment([torch.get_num_threads()])
    print_head(facts, {})
    saved_table(results)
    write_json(json, "saved", arguments, facts, results, {})


if __name__ == "__main__":
    typer.run(main)
