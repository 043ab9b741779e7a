"""Peak memory of one arm's training steps, in a process of its own."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import torch

from steps import Setup, Training

STEPS = 2  # the second step meets the optimizer's state
KIBI = 1024


def peak_bytes(setup: Setup, arm: str, threads: int) -> int:
    """Measure the largest resident memory of a fresh process that trains one arm.

    Args:
        setup: The model.
        arm: One of `steps.ARMS`.
        threads: CPU threads.

    Returns:
        Bytes, the interpreter and the libraries included.
    """
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(_train, setup, arm, threads).result()


def _train(setup: Setup, arm: str, threads: int) -> int:
    torch.set_num_threads(threads)
    training = Training(setup)
    training.become(arm)
    for _ in range(STEPS):
        training.step(arm)
    return high_water_mark()


def high_water_mark() -> int:
    """Read the largest resident memory so far of this process.

    getrusage would also count the process that started this one.
    """
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * KIBI
    raise OSError("/proc/self/status has no VmHWM")
