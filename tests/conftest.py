"""Fixtures of every test: the instruction set, the thread count and a seeded generator."""

import zlib

import numpy as np
import pytest

from emulated import emulated_core, ops  # noqa: F401 - fixtures
from int8tile import _core


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
