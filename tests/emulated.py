"""Builds the CUDA backend against an emulated runtime and runs its ops on CPU tensors.

Everything but the GEMM kernel is the backend's own code: kernels, host code, bindings and Python.
"""

from __future__ import annotations

import importlib.util
import inspect
import os
import shutil
import subprocess
import sysconfig
from pathlib import Path
from unittest import mock

import pytest
import torch

from int8tile.nn import frozen
from int8tile.ops import checks, cuda, schema

ROOT = Path(__file__).resolve().parents[1]
POISON = 0xA5
CXX = os.environ.get("CXX") or shutil.which("g++")
SOURCES = [
    *(ROOT / "cuda").glob("*.cu"),
    *(ROOT / "tests" / "emulation").glob("*.cpp"),
    ROOT / "python" / "bindings" / "cuda.cpp",
    *(ROOT / "cpp" / "src" / f"{name}.cpp" for name in ("isa", "memory", "parallel", "plan")),
    ROOT / "cpp" / "src" / "kernels" / "portable.cpp",
]
FOLDERS = ["tests/emulation", "cuda", "cuda/include", "cpp/include", "cpp/src", "cpp/src/kernels"]


def missing():
    """Why the emulation cannot be built here; None where it can."""
    if CXX is None:
        return "no g++"
    if importlib.util.find_spec("pybind11") is None:
        return "pybind11 is not installed"
    if not Path(sysconfig.get_paths()["include"], "Python.h").is_file():
        return "no Python.h"
    return None


def build(folder):
    """The bindings as the module int8tile_emulated."""
    import pybind11

    includes = [ROOT / each for each in FOLDERS]
    includes += [pybind11.get_include(), sysconfig.get_paths()["include"]]
    flags = ["-std=c++20", "-O1", "-fPIC", "-ffp-contract=off", "-fvisibility=hidden", "-w"]
    flags += [f"-I{path}" for path in includes]
    objects = []
    for source in SOURCES:
        objects.append(folder / f"{source.stem}_{len(objects)}.o")
        _run(CXX, *flags, "-x", "c++", "-c", source, "-o", objects[-1])
    library = folder / "int8tile_emulated.so"
    _run(CXX, "-shared", "-o", library, *objects)
    spec = importlib.util.spec_from_file_location("int8tile_emulated", library)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _run(*command):
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def _layouts_of_cuda():
    """What the checks make dependent on the device, as it is for a tensor on CUDA."""
    device, block_bytes, panel_shape = torch.device("cuda"), checks.block_bytes, checks.panel_shape
    return {
        "block_bytes": lambda m, k, capacity, _: block_bytes(m, k, capacity, device),
        "panel_shape": lambda rows, depth, _: panel_shape(rows, depth, device),
    }


class Emulated:
    """The CUDA kernels of the ops on CPU tensors; beside them the ops on CPU stay what they are."""

    def __init__(self):
        self._layouts = _layouts_of_cuda()

    def __getattr__(self, name):
        check, run = schema.CHECKS[name], schema.checked(getattr(cuda, name))

        def call(*arguments, **options):
            bound = inspect.signature(check).bind(*arguments, **options)
            bound.apply_defaults()
            with mock.patch.multiple(checks, **self._layouts):
                return run(*bound.args)

        return call


class OnGpu:
    """The ops on a GPU: tensors go there and come back."""

    def __getattr__(self, name):
        def call(*arguments, **options):
            arguments = [_moved(each, "cuda") for each in arguments]
            options = {key: _moved(each, "cuda") for key, each in options.items()}
            results = getattr(torch.ops.int8tile, name)(*arguments, **options)
            if isinstance(results, torch.Tensor):
                return results.cpu()
            return tuple(each.cpu() for each in results)

        return call


def _moved(value, device):
    if not isinstance(value, torch.Tensor):
        return value
    # .to() would give a view other strides.
    whole = value.as_strided((value.untyped_storage().nbytes() // value.element_size(),), (1,), 0)
    return whole.to(device).as_strided(value.shape, value.stride(), value.storage_offset())


@pytest.fixture(scope="session")
def emulated_core(tmp_path_factory):
    if why := missing():
        pytest.skip(f"the emulation cannot be built: {why}")
    return build(tmp_path_factory.mktemp("emulated"))


@pytest.fixture
def emulated_ops(emulated_core, monkeypatch):
    """Workspaces start out as poison, so that an element read before it is written is seen."""

    def poisoned(tensor, size):
        return torch.full((size + 64,), POISON, dtype=torch.uint8)

    monkeypatch.setattr(cuda, "_core", emulated_core)
    monkeypatch.setattr(cuda, "_current_stream", lambda tensor: (0, 0))
    monkeypatch.setattr(cuda, "_workspace", poisoned)
    return Emulated()


@pytest.fixture
def emulated_layers(emulated_ops, monkeypatch):
    """Int8Linear on the emulated kernels, as if its tensors were on CUDA."""
    for name, layout in _layouts_of_cuda().items():
        monkeypatch.setattr(checks, name, layout)
    monkeypatch.setattr(torch.ops, "int8tile", emulated_ops)
    monkeypatch.setattr(frozen, "device_type", lambda weight: "cuda")
    monkeypatch.setattr(cuda, "is_capturing", lambda: False)


@pytest.fixture(params=["emulated", "cuda"])
def ops(request):
    """The CUDA kernels: emulated, and on a GPU where there is one."""
    if request.param == "emulated":
        return request.getfixturevalue("emulated_ops")
    return OnGpu()
