"""Fixtures of every test: device, instruction set, thread count and a seeded generator."""

import zlib

import numpy as np
import pytest
import torch

from checkpoints import tiny_bert, tiny_decoder, tiny_tokenizer  # noqa: F401 - fixtures
from emulated import emulated_core, emulated_layers, emulated_ops, ops  # noqa: F401 - fixtures
from int8tile import _core
from ranks import four_ranks, one, ranks, undropped  # noqa: F401 - fixtures


def no_gpu():
    """Why no test can run on a GPU here; None where one can."""
    if not _core.cuda_compiled:
        return "built without CUDA"
    if not torch.backends.cuda.is_built():
        return "no CUDA device: this torch is built without CUDA"
    if not torch.cuda.is_available():
        return f"no CUDA device: {_core.cuda_unavailable() or 'torch sees none'}"
    return None


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """A test that a parameter sends to a GPU is marked, so that `-m cuda` selects it."""
    for item in items:
        if hasattr(item, "callspec") and "cuda" in (
            item.callspec.params.get(name) for name in ("device", "ops")
        ):
            item.add_marker(pytest.mark.cuda)


def pytest_runtest_setup(item):
    if item.get_closest_marker("cuda") and (why := no_gpu()):
        pytest.skip(why)


@pytest.fixture(params=["cpu", "cuda"])
def device(request):
    """Each device; cuda is a skip that says so where there is none."""
    return torch.device("cuda", 0) if request.param == "cuda" else torch.device("cpu")


@pytest.fixture(params=_core.compiled_isas())
def isa(request):
    """Each kernel of this build; one that the CPU cannot run is a skip that says so."""
    if request.param not in _core.supported_isas():
        pytest.skip(f"this CPU lacks {request.param}")
    return request.param


@pytest.fixture(params=[1, 2], ids=["1thread", "2threads"])
def threads(request):
    return request.param


@pytest.fixture
def rng(request):
    """A generator seeded by the test's name, so that a test draws the same values every time."""
    return np.random.default_rng(zlib.crc32(request.node.name.encode()))
