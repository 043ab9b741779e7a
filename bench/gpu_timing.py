"""Timing on a GPU: graph replays between events, in alternation, with cold caches.

On a CPU the same candidates run under the host's clock, so that the benchmarks can be tested.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from timing import MAX_ROUNDS, Candidate, Timing, alternate

MIN_ROUNDS = 10
WARM_RUNS = 3
FLUSH_CACHES = 4  # so many times the L2 cache is written before each sample
FLUSH_BYTES = 64 * 2**20  # at least
# The device idles this long before the first event, so that all launches are queued by then.
HOLD_CYCLES = 2_000_000

Pool = Any  # what torch.cuda.graph_pool_handle gives
Run = Callable[[], tuple[Tensor, ...]]


@dataclass(frozen=True)
class Prepared:
    """A candidate ready to be timed.

    Args:
        run: Does the work again; results go to `outputs`.
        outputs: What one run gave.
        timed: "graph", "events" (it waits for the device, so no graph holds it) or "host".
    """

    run: Callable[[], object]
    outputs: tuple[Tensor, ...]
    timed: str


def shared_pool(device: str) -> Pool | None:
    """Make a pool in which the graphs of one case may reuse each other's memory.

    They run one after the other, and what one leaves there nobody reads after the next has run.
    """
    return torch.cuda.graph_pool_handle() if device == "cuda" else None


def prepare(run: Run, device: str, pool: Pool | None, waits: bool = False) -> Prepared:
    """Capture a candidate in a CUDA graph where one can hold it.

    Args:
        run: Enqueues the work and gives its results.
        device: "cuda" or "cpu".
        pool: Where the graph allocates.
        waits: Whether `run` waits for the device.
    """
    if device == "cpu":
        return Prepared(run, run(), "host")
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(WARM_RUNS):
            outputs = run()
    torch.cuda.current_stream().wait_stream(side)
    torch.cuda.synchronize()
    if waits:
        return Prepared(run, outputs, "events")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=pool):
        outputs = run()
    return Prepared(graph.replay, outputs, "graph")


def replay(prepared: Prepared) -> tuple[Tensor, ...]:
    """Run a graph over poisoned results, to see that the timed work writes them all."""
    if prepared.timed == "graph":
        for output in prepared.outputs:
            output.fill_(float("nan") if output.is_floating_point() else -1)
        prepared.run()
        torch.cuda.synchronize()
    return prepared.outputs


def time_all(prepared: Mapping[str, Prepared], device: str, budget: float) -> dict[str, Timing]:
    """Time candidates in alternation until the budget is spent.

    Args:
        prepared: What to time, already checked.
        device: "cuda" or "cpu".
        budget: Seconds of timed rounds; at least `MIN_ROUNDS` rounds run.

    Returns:
        Samples by name. The n-th sample of each candidate is from the n-th round.
    """
    if device == "cpu":
        return alternate({name: Candidate(each.run) for name, each in prepared.items()}, budget)
    l2_bytes = torch.cuda.get_device_properties(0).L2_cache_size
    flush = torch.empty(max(FLUSH_CACHES * l2_bytes, FLUSH_BYTES), dtype=torch.int8, device=device)
    timings = {name: Timing() for name in prepared}
    names = list(prepared)
    _round(prepared, names, flush)
    start = time.perf_counter()
    for count in range(MAX_ROUNDS):
        if count >= MIN_ROUNDS and time.perf_counter() - start > budget:
            break
        turn = count % len(names)
        for name, seconds in _round(prepared, names[turn:] + names[:turn], flush).items():
            timings[name].add(seconds, None)
    return timings


def _round(prepared: Mapping[str, Prepared], names: list[str], flush: Tensor) -> dict[str, float]:
    """Run each candidate once; give seconds by name."""
    marks = {}
    for name in names:
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        flush.zero_()
        torch.cuda._sleep(HOLD_CYCLES)
        begin.record()
        prepared[name].run()
        end.record()
        marks[name] = begin, end
    torch.cuda.synchronize()
    return {name: begin.elapsed_time(end) / 1e3 for name, (begin, end) in marks.items()}
