"""One OpenMP pool serves torch and int8tile, with the number of threads that torch was told."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/maps").is_file(), reason="this system has no /proc/self/maps"
)

# Prints the threads of the process after each of its steps, and the OpenMP libraries at the end.
STEPS = """
import json, os, re
from pathlib import Path
import int8tile, torch

def threads():
    return len(os.listdir("/proc/self/task"))

def work(linear):
    x = torch.ones(256, 512, requires_grad=True)
    linear(x).sum().backward()
    return threads()

plain = torch.nn.Linear(512, 512)
ours = int8tile.nn.Int8Linear(512, 512)
layers = {{"torch": plain, "int8tile": ours}}
torch.set_num_threads({count})
start = threads()
print(json.dumps([work(layers[name]) - start for name in {order!r}]))
names = {{line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines()}}
print(json.dumps([n for n in names if re.match(r"lib(gomp|iomp|omp)[^a-z]", Path(n).name)]))
"""


def fresh_process(count, *order):
    """Threads that each step left beyond those at the start, and the OpenMP libraries mapped."""
    environment = {name: value for name, value in os.environ.items() if "OMP_" not in name}
    command = [sys.executable, "-c", STEPS.format(count=count, order=order)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    grown, libraries = map(json.loads, done.stdout.splitlines())
    return grown, libraries


@pytest.mark.parametrize("order", [("torch", "int8tile"), ("int8tile", "torch")], ids="-".join)
def test_torch_and_int8tile_share_one_pool(order):
    grown, libraries = fresh_process(2, *order)
    assert grown == [1, 1]  # the second library starts no thread of its own
    assert len(libraries) == 1, libraries


def test_one_thread_of_torch_is_one_thread_of_int8tile():
    grown, _ = fresh_process(1, "int8tile", "torch")
    assert grown == [0, 0]
