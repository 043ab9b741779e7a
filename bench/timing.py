"""The timing harness: candidates alternate in one run, and ratios are taken round by round.

A shared machine drifts, so that two medians taken one after the other say little. Here every round
runs every candidate once, in rotating order; a ratio is computed inside a round and only then is
its median taken.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

MIN_ROUNDS = 5
MAX_ROUNDS = 200
SLOW_ROUNDS = 3  # what a candidate gets that alone would use up the budget
WARM_SECONDS = 0.5  # a first call longer than this says enough about the next
SAMPLE_SECONDS = 0.01  # shorter calls are repeated until a sample lasts this long


@dataclass(frozen=True)
class Spread:
    """Median and quartiles of a few samples."""

    median: float
    q1: float
    q3: float
    samples: int

    @classmethod
    def of(cls, values: list[float]) -> Spread:
        """Summarize at least one value."""
        if len(values) == 1:
            return cls(values[0], values[0], values[0], 1)
        q1, median, q3 = statistics.quantiles(values, n=4, method="inclusive")
        return cls(median, q1, q3, len(values))

    def json(self) -> dict[str, Any]:
        """Give the values by name."""
        return asdict(self)


@dataclass(frozen=True)
class Candidate:
    """One thing to time.

    Args:
        run: The timed call; a float that it returns is kept as a rate that it measured itself.
        setup: Called before each sample, outside the timer.
    """

    run: Callable[[], object]
    setup: Callable[[], object] | None = None


@dataclass
class Timing:
    """The samples of one candidate by round; a slow candidate has fewer rounds."""

    seconds: list[float] = field(default_factory=list)  # per call
    probes: list[float] = field(default_factory=list)  # the best of the probe around each sample
    rates: list[float] = field(default_factory=list)  # what a call that returns a rate returned

    def add(self, seconds: float, result: object) -> None:
        """Keep one sample."""
        self.seconds.append(seconds)
        if isinstance(result, float):
            self.rates.append(result)

    def spread(self) -> Spread:
        """Summarize the seconds per call."""
        return Spread.of(self.seconds)

    def speed_against(self, baseline: Timing) -> Spread:
        """Summarize how many times faster than `baseline` this is, over common rounds."""
        pairs = zip(baseline.seconds, self.seconds, strict=False)
        return Spread.of([theirs / ours for theirs, ours in pairs])

    def share_of(self, operations: float, rates: list[float]) -> Spread:
        """Summarize operations per second as a share of the rate seen in the same round."""
        rounds = zip(self.seconds, rates, strict=False)
        return Spread.of([operations / seconds / rate for seconds, rate in rounds])


def alternate(
    candidates: Mapping[str, Candidate],
    budget: float,
    probe: Callable[[], float] | None = None,
    min_rounds: int = MIN_ROUNDS,
) -> dict[str, Timing]:
    """Time candidates in alternation until the budget is spent.

    Args:
        candidates: What to time, already checked.
        budget: Seconds of timed rounds; at least `min_rounds` rounds run.
        probe: Measures the machine's rate; called before and after each sample.
        min_rounds: The fewest rounds.

    Returns:
        Samples by name. The n-th sample of each candidate is from the n-th round.
    """
    repeats = {}
    slow = set()
    for name, candidate in candidates.items():
        once, _ = _sample(candidate, 1)  # allocates and packs
        if once < WARM_SECONDS:
            once, _ = _sample(candidate, 1)
        repeats[name] = max(1, round(SAMPLE_SECONDS / once))
        if once * min_rounds > budget:
            slow.add(name)
    timings = {name: Timing() for name in candidates}
    names = list(candidates)
    start = time.perf_counter()
    collects = gc.isenabled()
    gc.collect()
    gc.freeze()  # the collection after each round then looks at that round only
    gc.disable()
    try:
        for count in range(MAX_ROUNDS):
            if count >= min_rounds and time.perf_counter() - start > budget:
                break
            turn = count % len(names)
            for name in names[turn:] + names[:turn]:
                if name in slow and count >= SLOW_ROUNDS:
                    continue
                before = probe() if probe else 0.0
                timing = timings[name]
                timing.add(*_sample(candidates[name], repeats[name]))
                if probe:
                    timing.probes.append(max(before, probe()))
            gc.collect()
    finally:
        gc.unfreeze()
        if collects:
            gc.enable()
    return timings


def _sample(candidate: Candidate, repeats: int) -> tuple[float, object]:
    if candidate.setup:
        candidate.setup()
    result: object = None
    start = time.perf_counter()
    for _ in range(repeats):
        result = candidate.run()
    return (time.perf_counter() - start) / repeats, result
