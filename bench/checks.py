"""What is checked before anything is timed."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from int8tile import Int8TileConfig, reference
from peers import Peer, Problem

# Relative errors by norm. Rounding to int8 costs about 1 %; an outlier that stretches the scale of
# its whole row costs a way without a split much more.
SPLIT_TOLERANCE = 0.05
PLAIN_TOLERANCE = 1.0
EXACT_ROWS, EXACT_COLUMNS = 4, 64


class CheckError(RuntimeError):
    """A candidate computes something else than it should."""


def require(holds: bool, message: str) -> None:
    """Raise CheckError unless a condition holds."""
    if not holds:
        raise CheckError(message)


def relative_error(value: Tensor, wanted: Tensor) -> float:
    """Compute |value - wanted| / |wanted| by Euclidean norm."""
    wanted = wanted.float()
    return float((value.float() - wanted).norm() / wanted.norm())


def op_counts(run: Callable[[], object]) -> dict[str, int]:
    """Count the operators that a call really runs, nested ones too."""
    cpu = [torch.profiler.ProfilerActivity.CPU]
    with _silent_stderr(), torch.profiler.profile(activities=cpu) as profile:
        run()
    return {event.key: int(event.count) for event in profile.key_averages()}


@contextmanager
def _silent_stderr() -> Iterator[None]:
    """Keep the profiler's own messages, which no log level silences, off the terminal."""
    kept, null = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(null)


def check_peer(name: str, peer: Peer, problem: Problem, wanted: tuple[Tensor, ...]) -> list[float]:
    """Check one candidate against float32.

    Args:
        name: For messages.
        peer: The candidate.
        problem: What it runs.
        wanted: The float32 results.

    Returns:
        The relative error of y and of each gradient.

    Raises:
        CheckError: An error is too large, or there is none where there must be one, or the
            operator that should run did not.
    """
    errors = check_errors(name, peer.run(), peer, problem, wanted)
    ops = op_counts(peer.run)
    require(peer.op in ops, f"{name}: {peer.op} did not run; seen {sorted(ops)}")
    return errors


def check_errors(
    name: str, got: tuple[Tensor, ...], peer: Peer, problem: Problem, wanted: tuple[Tensor, ...]
) -> list[float]:
    """Compare one candidate's results with float32's; see `check_peer`."""
    require(len(got) == len(wanted), f"{name}: {len(got)} results, not {len(wanted)}")
    errors = [relative_error(a, b) for a, b in zip(got, wanted, strict=True)]
    tolerance = PLAIN_TOLERANCE if problem.outliers and not peer.split else SPLIT_TOLERANCE
    shown = ", ".join(f"{error:.2g}" for error in errors)
    within = all(error <= tolerance for error in errors)  # unlike max, false for NaN
    require(within, f"{name}: an error of {shown} is above {tolerance}")
    if name != "fp32":
        # With an error of exactly zero a float path ran in silence.
        require(errors[0] > 0, f"{name}: equals float32, so the int8 path did not run")
    return errors


def check_exact(problem: Problem, config: Int8TileConfig) -> int:
    """Compare a corner of int8tile's output with the numpy reference, bit for bit.

    Args:
        problem: Its input and weight.
        config: The default scales and roundings.

    Returns:
        The outlier columns found.

    Raises:
        CheckError: A bit differs, or other columns than the injected ones were split.
    """
    split = (config.threshold, config.outlier_bits, config.outlier_capacity)
    with torch.no_grad():
        weight, bias = problem.linear.weight, problem.linear.bias
        y, *_, index, count = torch.ops.int8tile.linear_forward(problem.x, weight, bias, *split)
    found = int(count[0])
    require(found == problem.outliers, f"{found} outlier columns, not {problem.outliers}")
    q = reference.quantize_split(
        problem.x[:EXACT_ROWS].numpy(),
        index[:found].numpy().astype(np.int64),
        outlier_bits=config.outlier_bits,
    )
    w8, w_scale = reference.quantize(weight.detach()[:EXACT_COLUMNS].numpy())
    w_outlier = w8[:, q.index]
    a, b = np.concatenate([q.low, q.q], axis=1), np.concatenate([w_outlier, w8], axis=1)
    acc = reference.gemm(a, b, q.high, w_outlier)
    wanted = reference.dequantize(acc, q.scale, w_scale)
    wanted += bias.detach()[:EXACT_COLUMNS].numpy()
    got = y[:EXACT_ROWS, :EXACT_COLUMNS].numpy()
    require(np.array_equal(got, wanted), "int8tile differs from its reference")
    return found
