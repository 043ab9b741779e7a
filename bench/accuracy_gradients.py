"""Compares an arm's gradients and the time of a step with float32's, without training."""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

import int8tile
from accuracy_runs import Run
from int8tile.analysis import Cosine
from int8tile.finetune import outliers
from int8tile.finetune.stress import Stress
from int8tile.finetune.tasks import Task

BATCHES = 4  # compared, spread over the training data
ROUNDS = 6  # timed, after one that is not

Gradients = dict[str, torch.Tensor]
Batch = Mapping[str, Any]


def measure(run: Run, task: Task) -> dict[str, Any]:
    """Measure on one checkpoint and the same batches, without dropout.

    Returns:
        cosine_whole: of all parameters' gradients as one vector; cosine_layers and
        cosine_worst_layer: mean and least over the weights of the layers that int8tile converts;
        outliers: columns found in a call; step_against_fp32: time of forward and backward, each
        the ratio of two that follow each other.
    """
    chosen = outliers.spread(task.train, run.recipe.batch_size)[:BATCHES]
    batches = [task.collate(rows) for rows in chosen]
    exact = task.load_model().eval()
    layers = _converted_layers(exact)
    arm = copy.deepcopy(exact)
    run.arm.convert(arm)
    if run.stress != 1:  # after the conversion, as in training
        for model in (exact, arm):
            Stress(model, run.stress)
    whole, each = Cosine(), {name: Cosine() for name in layers}
    torch.manual_seed(run.seed)  # of stochastic rounding
    for batch in batches:
        _compare(_gradients(exact, batch), _gradients(arm, batch), whole, each)
    cosines = [cosine.value or 0.0 for cosine in each.values()]
    found = outliers.count(arm, batches)
    return {
        "cosine_whole": whole.value,
        "cosine_layers": statistics.fmean(cosines),
        "cosine_worst_layer": min(cosines),
        "layers": len(cosines),
        "outliers": found and {"found": found.found, "overflow": found.overflow},
        "step_against_fp32": _time_ratio(exact, arm, batches[0]),
    }


def _converted_layers(model: nn.Module) -> list[str]:
    """Name the weights of the layers that int8tile converts, so that all arms have the same."""
    report = int8tile.convert_(model)
    int8tile.revert_(model)
    return [f"{name}.weight" for name in report.converted]


def _gradients(model: nn.Module, batch: Batch) -> Gradients:
    model.zero_grad(set_to_none=True)
    model(**batch).loss.backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def _compare(exact: Gradients, arm: Gradients, whole: Cosine, each: Mapping[str, Cosine]) -> None:
    assert exact.keys() == arm.keys()
    for name, gradient in exact.items():
        whole.add(gradient, arm[name])
        if name in each:
            each[name].add(gradient, arm[name])


def _time_ratio(exact: nn.Module, arm: nn.Module, batch: Batch) -> dict[str, Any]:
    """Time both in turn, in training mode."""
    ratios = []
    for model in (exact, arm):
        model.train()
    for number in range(ROUNDS + 1):
        seconds = []
        for model in (exact, arm) if number % 2 else (arm, exact):
            started = time.perf_counter()
            _gradients(model, batch)
            seconds.append((model is arm, time.perf_counter() - started))
        times = dict(seconds)
        ratios.append(times[True] / times[False])
    first, median, third = statistics.quantiles(ratios[1:], n=4)
    return {"median": median, "q1": first, "q3": third, "samples": ROUNDS}
