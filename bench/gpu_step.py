"""The training step of bench_gpu: forward, backward and AdamW of one Llama-3-8B decoder block."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch

from bench_step import GRADIENT_TOLERANCE, INT8_OPS, LOSS_TOLERANCE
from checks import CheckError, op_counts, require
from gpu_block import Training
from gpu_peers import BASELINE, OURS, Arm, arms
from gpu_results import Case, Settings, records
from gpu_timing import Prepared, prepare, replay, shared_pool

CONVERTED = ("int8", "int8-split", "int8-shared", "int8-columns")  # by int8tile.convert_


def check(
    training: Training, name: str, arm: Arm | str, wanted: tuple[float, torch.Tensor]
) -> tuple[float, float]:
    """Compare an arm with float32 on the same weights, and prove that its operators ran.

    Returns:
        The loss and the relative error of the gradients.

    Raises:
        CheckError: They are too far off, or something else ran.
    """
    loss, grads = training.gradients(training.block, arm)
    error = float((grads - wanted[1]).norm() / wanted[1].norm())
    off = abs(loss - wanted[0]) / abs(wanted[0])
    require(off <= LOSS_TOLERANCE, f"{name}: loss {loss}, not {wanted[0]}")
    require(0 < error <= GRADIENT_TOLERANCE, f"{name}: gradients {error} off float32's")
    ops = op_counts(lambda: training.gradients(training.block, arm))
    layers = len(training.block.linears())
    for names in [(arm.op,)] if isinstance(arm, Arm) else INT8_OPS:
        count = sum(ops.get(each, 0) for each in names)
        require(count >= layers, f"{name}: {names} ran {count} times for {layers} layers")
    return loss, error


def operations(training: Training) -> float:
    """Count the operations of the linear layers' GEMMs in one step."""
    tokens = training.x.numel() // training.block.width
    return 6.0 * tokens * sum(linear.weight.numel() for linear in training.block.linears())


def measure(case: Case, settings: Settings, skipped: dict[str, str]) -> Iterator[dict[str, Any]]:
    """Check the arms on float32, then time their steps on one block.

    Args:
        case: Tokens and outlier features; the layer is not looked at.
        settings: How.
        skipped: Takes the reasons for arms that cannot run here.

    Raises:
        CheckError: int8tile is wrong. Another arm is left out instead.
    """
    training = Training(case, settings)
    peers = arms(None, None, settings.compiled, True)
    everything: dict[str, Arm | str] = {BASELINE: peers.pop(BASELINE)}
    everything |= {name: name for name in CONVERTED}
    everything |= {name: arm for name, arm in peers.items() if name not in CONVERTED}
    reference = copy.deepcopy(training.block).float()
    wanted = training.gradients(reference, everything[BASELINE])
    del reference
    pool = shared_pool(settings.device)
    prepared: dict[str, Prepared] = {}
    errors: dict[str, float] = {}
    for name, arm in everything.items():
        try:
            loss, errors[name] = check(training, name, arm, wanted)
            waits = isinstance(arm, Arm) and arm.waits
            ready = prepare(partial(training.step, arm), settings.device, pool, waits)
            (got,) = replay(ready)
            require(abs(float(got) - loss) <= LOSS_TOLERANCE * loss, f"{name}: loss {float(got)}")
            prepared[name] = ready
        except Exception as error:  # whatever it is, the others still run
            if name in (*OURS, *CONVERTED):
                raise CheckError(f"{name}: {type(error).__name__}: {error}") from error
            skipped[f"{name}: {case}"] = f"{type(error).__name__}: {error}"
    found = training.outliers_found()
    for result in records("step", case, operations(training), prepared, errors, settings):
        yield {**result, "outliers_found": found}
