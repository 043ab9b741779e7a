"""Which examples a process trains and evaluates on, so that all together do what one would do."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Sampler
from transformers.trainer_pt_utils import get_length_grouped_indices

from int8tile.finetune.processes import Processes

EPOCH_STEP = 1_000_003  # between the seeds of two epochs


class TrainBatches(Sampler[list[int]]):
    """A process's share of each shuffled batch.

    Args:
        examples: Training examples.
        batch_size: Examples of a batch, of all processes together.
        seed: Seed of the order, which is another one in each epoch.
        processes: The processes that share a batch.
        lengths: Tokens of each example, to put those of about the same length in one batch, the
            longest batch first; None: batches at random.
    """

    def __init__(
        self,
        examples: int,
        batch_size: int,
        seed: int,
        processes: Processes,
        lengths: Sequence[int] | None = None,
    ) -> None:
        self._examples = examples
        self._batch_size = batch_size
        self._seed = seed
        self._processes = processes
        self._lengths = lengths
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of an epoch."""
        self._epoch = epoch

    def __len__(self) -> int:
        return -(-self._examples // self._batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        # No epoch of another small seed has this order.
        seed = self._seed + EPOCH_STEP * self._epoch
        order = self._order(torch.Generator().manual_seed(seed))
        for turn in range(len(self)):
            batch = self._batch(order, turn)
            yield list(self._processes.share(batch)) or list(batch[:1])  # of weight 0

    def _order(self, generator: torch.Generator) -> list[int]:
        if self._lengths is None:
            return torch.randperm(self._examples, generator=generator).tolist()
        order = get_length_grouped_indices(self._lengths, self._batch_size, generator=generator)
        # Those batches fall in length; all but the first and what is left over are shuffled.
        whole = self._examples // self._batch_size
        middle = (1 + torch.randperm(max(0, whole - 1), generator=generator)).tolist()
        turns = [*range(min(1, whole)), *middle, whole]
        return [i for turn in turns for i in self._batch(order, turn)]

    def weight(self, step: int) -> float:
        """Give the factor that makes the mean of all processes' losses that of the batch.

        Args:
            step: Optimizer steps before this one.
        """
        batch = self._batch(range(self._examples), step % len(self))
        return self._processes.count * len(self._processes.share(batch)) / len(batch)

    def _batch(self, order: Sequence[int], turn: int) -> Sequence[int]:
        return order[turn * self._batch_size : (turn + 1) * self._batch_size]


class EvalBatches(Sampler[list[int]]):
    """A process's share of the batches of an evaluation set: every so many-th batch.

    All processes get equally many; what exceeds the set is its last batch again.

    Args:
        examples: Examples of the set.
        batch_size: Examples of a batch, of one process.
        processes: The processes that share the batches.
        lengths: Tokens of each example, to put the longest ones in the first batch and so on;
            None: batches in the order of the set.

    Attributes:
        batches: The examples of each batch.
        places: [examples], where each example stands in the batches put together.
    """

    def __init__(
        self,
        examples: int,
        batch_size: int,
        processes: Processes,
        lengths: Sequence[int] | None = None,
    ) -> None:
        self._processes = processes
        order = np.arange(examples) if lengths is None else np.argsort(lengths, kind="stable")[::-1]
        starts = range(0, examples, batch_size)
        self.batches = [order[start : start + batch_size].tolist() for start in starts]
        self.places = np.argsort(order)

    def __len__(self) -> int:
        return -(-len(self.batches) // self._processes.count)

    def __iter__(self) -> Iterator[list[int]]:
        for turn in range(len(self)):
            index = turn * self._processes.count + self._processes.index
            yield self.batches[min(index, len(self.batches) - 1)]

    def in_order(self, parts: Sequence[Sequence[Any]]) -> list[Any]:
        """Put together what the processes made of their batches.

        Args:
            parts: A value for each batch, of each process.

        Returns:
            One value for each of `batches`.
        """
        return [each for turn in zip(*parts, strict=True) for each in turn][: len(self.batches)]


class Loader(DataLoader[Any]):
    """A loader that draws nothing from torch's random generator, and knows its epoch.

    Args:
        dataset: The examples.
        batches: Their indices in each batch.
        collate: Makes model inputs of examples.
    """

    def __init__(self, dataset: Any, batches: Sampler[list[int]], collate: Any) -> None:  # noqa: ANN401
        super().__init__(
            dataset, batch_sampler=batches, collate_fn=collate, generator=torch.Generator()
        )

    def set_epoch(self, epoch: int) -> None:
        """Tell the batches of training which epoch it is."""
        batches = self.batch_sampler
        assert isinstance(batches, TrainBatches)
        batches.set_epoch(epoch)
