"""Linear layers of bench_gpu, quantisation included: forward, and forward with backward."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from checks import CheckError, check_errors, check_peer, require
from gpu_peers import INT8TILE, OURS, Arm, arms
from gpu_results import Case, Settings, records
from gpu_timing import Prepared, prepare, replay, shared_pool
from peers import Peer, Problem, int8tile_config, runner

EXACT_ROWS = 16


def wanted_of(problem: Problem) -> tuple[Tensor, ...]:
    """Compute y and, with backward, the gradients of x and of the weight in float64."""
    x, weight = problem.x.double(), problem.linear.weight.detach().double()
    if not problem.backward:
        return (x @ weight.t(),)
    g = problem.grad_output.double()
    return x @ weight.t(), g @ weight, g.t() @ x


def peer_of(arm: Arm, problem: Problem) -> Peer:
    """Bind a candidate to a problem."""
    weight = problem.linear.weight
    run = runner(lambda x: arm.layer(x, weight), problem, (weight,), problem.x.dtype)
    return Peer(run, arm.op, arm.split)


def check_rows(name: str, arm: Arm, problem: Problem, y: Tensor) -> None:
    """Compare the first rows of int8tile's output with those of the CPU, bit for bit.

    The first row holds every outlier column, so that a few rows are split as all of them are.

    Raises:
        CheckError: A bit differs.
    """
    with torch.no_grad():
        wanted = arm.layer(problem.x[:EXACT_ROWS].cpu(), problem.linear.weight.cpu())
    require(torch.equal(y[:EXACT_ROWS].cpu(), wanted), f"{name}: differs from the CPU")


def measure(case: Case, settings: Settings, skipped: dict[str, str]) -> Iterator[dict[str, Any]]:
    """Check the candidates on float64 and on the CPU, then time them.

    Args:
        case: What to run.
        settings: How.
        skipped: Takes the reasons for candidates that cannot run here.

    Raises:
        CheckError: int8tile is wrong. Another candidate is left out instead.
    """
    device = settings.device
    bf16 = {"device": device, "dtype": torch.bfloat16}
    n, k, backward = case.layer.n, case.layer.k, case.passes == "both"
    problem = Problem.random(n, k, case.tokens, case.outliers, False, backward, bias=False, **bf16)
    wanted = wanted_of(problem)
    config = int8tile_config(problem)
    pool = shared_pool(device)
    prepared: dict[str, Prepared] = {}
    errors: dict[str, float] = {}
    split = config.threshold, config.outlier_capacity
    for name, arm in arms(*split, settings.compiled, backward).items():
        peer = peer_of(arm, problem)
        try:
            check_peer(name, peer, problem, wanted)
            ready = prepare(peer.run, device, pool, arm.waits)
            errors[name] = max(check_errors(name, replay(ready), peer, problem, wanted))
            if name in ("int8", INT8TILE):
                check_rows(name, arm, problem, ready.outputs[0])
            prepared[name] = ready
        except Exception as error:  # whatever it is, the others still run
            if name in OURS:
                raise CheckError(f"{name}: {type(error).__name__}: {error}") from error
            skipped[f"{name}: {case}"] = f"{type(error).__name__}: {error}"
    yield from records("linear", case, case.operations, prepared, errors, settings)
