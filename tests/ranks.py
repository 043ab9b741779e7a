"""Processes in a gloo group, which run functions of the tests and return their results."""

import io
import traceback
from contextlib import suppress
from multiprocessing import get_context
from multiprocessing.connection import Connection

import pytest
import torch

PATIENCE = 900  # seconds until a function counts as stuck; a busy machine compiles for minutes


def _serve(rank: int, world: int, store: str, connection: Connection) -> None:
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world)
    while (task := connection.recv()) is not None:
        function, arguments = task
        torch.manual_seed(0)
        try:
            buffer = io.BytesIO()
            torch.save(function(rank, *arguments), buffer)
        except BaseException:  # the test shows it
            connection.send((False, traceback.format_exc()))
        else:
            connection.send((True, buffer.getvalue()))
    dist.destroy_process_group()


class Ranks:
    """Runs a function of a test module in every rank."""

    def __init__(self, world, store):
        context = get_context("spawn")
        self.connections, self.processes = [], []
        for rank in range(world):
            ours, theirs = context.Pipe()
            process = context.Process(
                target=_serve, args=(rank, world, str(store), theirs), daemon=True
            )
            process.start()
            theirs.close()
            self.connections.append(ours)
            self.processes.append(process)

    def __call__(self, function, *arguments):
        """What `function(rank, *arguments)` returns in each rank."""
        for connection in self.connections:
            connection.send((function, arguments))
        results = []
        for rank, connection in enumerate(self.connections):
            if not connection.poll(PATIENCE):
                self.close()
                pytest.fail(f"rank {rank} is stuck in {function.__name__}")
            results.append(connection.recv())
        for rank, (passed, result) in enumerate(results):
            if not passed:
                pytest.fail(f"rank {rank}: {result}")
        return [torch.load(io.BytesIO(r), weights_only=False) for _, r in results]

    def close(self):
        for connection in self.connections:
            with suppress(OSError):  # a rank that died
                connection.send(None)
        for process in self.processes:
            process.join(5)
            process.kill()


def _started(world, folder):
    if not (torch.distributed.is_available() and torch.distributed.is_gloo_available()):
        pytest.skip("this torch has no gloo")
    group = Ranks(world, folder / "store")
    yield group
    group.close()


@pytest.fixture(scope="session")
def ranks(tmp_path_factory):
    """Two, started once for all tests that ask for them, since that takes seconds."""
    yield from _started(2, tmp_path_factory.mktemp("ranks"))


@pytest.fixture(scope="module")
def four_ranks(tmp_path_factory):
    yield from _started(4, tmp_path_factory.mktemp("ranks"))


# `int8tile finetune` on several processes.


@pytest.fixture(scope="module")
def undropped(tmp_path_factory):
    """A model without dropout, whose losses do not depend on who draws random numbers."""
    from runs import save_bert, save_task

    folder = tmp_path_factory.mktemp("undropped")
    save_bert(folder / "bert", dropout=0.0)
    save_task(folder / "sst2")
    return folder


@pytest.fixture(scope="module")
def one(undropped):
    """What one process does."""
    from int8tile.finetune import run
    from runs import settings

    return run(settings(undropped, "one", epochs=3.0)).arms["int8-split"]
