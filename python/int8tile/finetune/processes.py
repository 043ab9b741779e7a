"""The processes of one run, as a launcher starts them: how they agree, and what each one does."""

from __future__ import annotations

import atexit
import os
import re
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from torch import distributed

from int8tile import _core
from int8tile.finetune.settings import Settings, UsageError

T = TypeVar("T")
# What the collectives say when another process is gone or silent.
LOST = re.compile(r"gloo|nccl|connection (closed|reset|refused)|timed out|timeout", re.IGNORECASE)

# What accelerate's launcher sets; on CPU accelerate itself would train whole models in silence.
SHARDED = ("ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED")


class LostProcessError(RuntimeError):
    """Another process of the run ended or did not answer in time."""


@dataclass(frozen=True)
class Processes:
    """The processes of one run; alone unless a launcher started more.

    Args:
        count: How many there are.
        index: Which of them this one is; the first one prints, draws and writes.
        local_count: How many there are on this machine.
    """

    count: int = 1
    index: int = 0
    local_count: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the process that prints, draws and writes."""
        return self.index == 0

    def share(self, items: Sequence[T]) -> Sequence[T]:
        """Give this process's part of a batch.

        Args:
            items: The batch of all processes.

        Returns:
            Neighbors, as many as any other process gets or one fewer; none if there are too few.
        """
        start, stop = (len(items) * i // self.count for i in (self.index, self.index + 1))
        return items[start:stop]

    def sum(self, values: Sequence[float]) -> list[float]:
        """Add up numbers over the processes."""
        if self.count == 1:
            return list(values)
        total = torch.tensor(values, dtype=torch.float64)
        distributed.all_reduce(total)
        return cast("list[float]", total.tolist())

    def any(self, flag: bool) -> bool:
        """Tell whether a flag is set in any process."""
        return self.sum([float(flag)])[0] > 0

    def wait(self) -> None:
        """Wait until every process has come this far."""
        self.any(False)

    def gather(self, value: T) -> list[T] | None:
        """Give the first process the value of every process, in order; others get None."""
        if self.count == 1:
            return [value]
        values: list[Any] | None = [None] * self.count if self.first else None
        distributed.gather_object(value, values)
        return values

    def from_first(self, make: Callable[[], T]) -> T:
        """Run a function in the first process only.

        Args:
            make: Its value must be one that pickle takes.

        Returns:
            The value, in every process.

        Raises:
            Exception: What the function raised, in every process.
        """
        if self.count == 1:
            return make()
        message: list[Any] = [None, None]
        if self.first:
            try:
                message[0] = make()
            except Exception as error:
                message[1] = error
        distributed.broadcast_object_list(message)
        value, failure = message
        if failure is not None:
            raise failure
        return cast("T", value)

    def threads(self, asked: int | None) -> int:
        """Choose the threads of this process.

        Args:
            asked: The setting; None gives each process its share of the machine's cores, and a
                process that is alone torch's choice.
        """
        if asked is not None:
            return asked
        if self.count == 1:
            return torch.get_num_threads()
        return max(1, len(os.sched_getaffinity(0)) // self.local_count)


def launched() -> Processes:
    """Give the processes that the environment names, on one machine unless it says otherwise."""
    count, index = (int(os.environ.get(n, d)) for n, d in (("WORLD_SIZE", 1), ("RANK", 0)))
    return Processes(count, index, int(os.environ.get("LOCAL_WORLD_SIZE", count)))


def is_first() -> bool:
    """Tell whether this process is the first one, before or after they have found each other."""
    return launched().first


def resume_command(argv: Sequence[str]) -> str:
    """Give the command that goes on with this run.

    Args:
        argv: That of this process.
    """
    processes = launched()
    count, here = processes.count, processes.local_count
    command = [] if Path(argv[0]).name == "int8tile" else ["python", "-m"]
    if count > 1:
        if here != count:
            return "the same launch, with --resume"  # it has addresses that are not known here
        command = ["torchrun", "--nproc-per-node", str(count), "-m"]
    return shlex.join([*command, "int8tile", *(a for a in argv[1:] if a != "--resume"), "--resume"])


def on_cuda() -> bool:
    """Tell whether to train on a CUDA device: this build has the backend, and there is one."""
    return bool(_core.cuda_compiled and not _core.cuda_unavailable() and torch.cuda.is_available())


def check_gpu(settings: Settings) -> None:
    """Raise UsageError for what runs on CPU only, where the run would be on a GPU."""
    if settings.fsdp and on_cuda():
        raise UsageError(
            "int8tile finetune: --fsdp runs on CPU; a GPU was found "
            "(CUDA_VISIBLE_DEVICES= hides it)"
        )


def leave(code: int | str | None) -> None:
    """End a process that was connected to others, when all it had to do is done.

    Gloo's threads outlive their group, and one that frees its last tensor while the interpreter
    ends aborts the process (seen on a busy machine; torch alone does it too). So the interpreter
    does not end here: what was registered for the exit runs, and then the process is gone.

    Args:
        code: That of SystemExit.
    """
    if not (distributed.is_available() and distributed.is_initialized()):
        return
    if isinstance(code, str):
        print(code, file=sys.stderr)
    atexit._run_exitfuncs()  # it has no other name
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else int(code is not None))


@contextmanager
def together(settings: Settings) -> Iterator[Processes]:
    """Connect the processes that the environment names, as torchrun and accelerate set it.

    Args:
        settings: Give the batch, which the processes must be able to share, and the longest wait.

    Yields:
        The processes.

    Raises:
        UsageError: The batch cannot be shared evenly, or the model is to be sharded.
        LostProcessError: Another process ended, or did not answer within `timeout` seconds.
    """
    processes = launched()
    count = processes.count
    if count == 1:
        if settings.fsdp:
            raise UsageError(
                "int8tile finetune: --fsdp needs several processes, as of torchrun "
                "--nproc-per-node 2 -m int8tile finetune ...; got one"
            )
        yield processes
        return
    for name in SHARDED:
        if os.environ.get(name, "false").lower() == "true":
            raise UsageError(
                f"int8tile finetune: needs a launch that leaves the model whole in each process; "
                f"got {name}=true (--fsdp shards it)"
            )
    if settings.batch_size % count:
        raise UsageError(
            f"int8tile finetune: --batch-size must be a multiple of the {count} processes, which "
            f"share it; got {settings.batch_size}"
        )
    # Accelerate would choose, and warn of it, where it is unset.
    os.environ.setdefault("OMP_NUM_THREADS", str(processes.threads(settings.threads)))
    backend = "cpu:gloo,cuda:nccl" if on_cuda() else "gloo"
    try:
        if not distributed.is_initialized():  # once: a launcher's address serves one group
            distributed.init_process_group(backend, timeout=timedelta(seconds=settings.timeout))
            atexit.register(distributed.destroy_process_group)
        yield processes
        processes.wait()
    except RuntimeError as error:
        if not LOST.search(str(error)):
            raise
        reason = str(error).split("] ", 1)[-1].split(". ")[0].splitlines()[0]
        raise LostProcessError(
            f"int8tile finetune: another of the {count} processes ended, or did not answer within "
            f"{settings.timeout:g} s ({reason}); if a checkpoint was saved, the same command with "
            f"--resume goes on from it"
        ) from error
