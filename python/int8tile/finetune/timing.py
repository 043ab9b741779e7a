"""Times the training steps of a Trainer, leaving evaluation out."""

from __future__ import annotations

import time
from collections.abc import Sequence

from transformers import TrainerCallback

WARMUP_STEPS = 5  # the first steps allocate and load code; they do not count as speed


class StepTimer(TrainerCallback):
    """Records the wall time of each training step.

    A step lasts from the end of the one before to its own end, so that fetching its batch
    counts; an evaluation or a checkpoint between the two does not.

    Args:
        seconds: The steps that a run made before it was cut.
        starts: The steps at which it began or went on.
    """

    def __init__(self, seconds: Sequence[float] = (), starts: Sequence[int] = ()) -> None:
        self.seconds = list(seconds)
        self.starts = [*starts, len(self.seconds)]
        self._mark = 0.0

    def on_train_begin(self, *args: object, **kwargs: object) -> None:
        """Start the first step."""
        self._mark = time.perf_counter()

    def on_step_end(self, *args: object, **kwargs: object) -> None:
        """End a step and start the next."""
        now = time.perf_counter()
        self.seconds.append(now - self._mark)
        self._mark = now

    def on_evaluate(self, *args: object, **kwargs: object) -> None:
        """Start the next step after an evaluation."""
        self._mark = time.perf_counter()

    def on_save(self, *args: object, **kwargs: object) -> None:
        """Start the next step after a checkpoint."""
        self._mark = time.perf_counter()

    def examples_per_second(self, examples: int, batch_size: int) -> float:
        """Compute the speed over all steps but the first few after each start.

        Args:
            examples: Training examples in one epoch, whose last batch may be smaller.
            batch_size: Examples in every other batch.

        Returns:
            Training examples per second.
        """
        per_epoch = -(-examples // batch_size)
        sizes = [
            min(batch_size, examples - step % per_epoch * batch_size)
            for step in range(len(self.seconds))
        ]
        warm = [
            step
            for step in range(len(sizes))
            if step - max(start for start in self.starts if start <= step) >= WARMUP_STEPS
        ] or [len(sizes) - 1]
        return sum(sizes[step] for step in warm) / sum(self.seconds[step] for step in warm)
