"""Which kernel runs: the best, or the one that INT8TILE_ISA or a call names, or an error."""

import os
import re
import subprocess
import sys

import numpy as np
import pytest

from cases import normal
from core import gemm
from int8tile import _core

REPORT = """
import importlib.util
spec = importlib.util.spec_from_file_location("_core", {path!r})
core = importlib.util.module_from_spec(spec)
spec.loader.exec_module(core)
try:
    print(core.default_isa(), core.panel_columns(), core.plan(8, 8, 8, -1, 12, 1).isa)
except Exception as error:
    print(type(error).__name__, isinstance(error, NotImplementedError), error)
"""


def fresh_process(isa):
    """What a new process with INT8TILE_ISA set reports; None leaves it unset."""
    environment = {name: value for name, value in os.environ.items() if name != "INT8TILE_ISA"}
    if isa is not None:
        environment["INT8TILE_ISA"] = isa
    code = REPORT.format(path=_core.__file__)
    run = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    return run.stdout.strip()


def unsupported():
    """An instruction set of this build that the CPU lacks."""
    missing = [isa for isa in _core.compiled_isas() if isa not in _core.supported_isas()]
    if not missing:
        pytest.skip("this CPU runs every kernel of the build, so none can be refused")
    return missing[0]


def refusal(isa):
    return (
        f"int8tile: the instruction set '{isa}' was asked for but this CPU lacks it; it can run "
        + ", ".join(_core.supported_isas())
    )


def unknown(isa):
    return (
        f"int8tile: instruction set must be one of {', '.join(_core.compiled_isas())}; got '{isa}'"
    )


def test_portable_is_always_there():
    assert _core.compiled_isas()[-1] == "portable"
    assert _core.supported_isas()[-1] == "portable"
    assert set(_core.supported_isas()) <= set(_core.compiled_isas())


def test_names_come_best_first():
    order = ["avx512_vnni", "avx2", "portable"]
    assert _core.compiled_isas() == [isa for isa in order if isa in _core.compiled_isas()]
    assert _core.supported_isas() == [isa for isa in order if isa in _core.supported_isas()]


@pytest.mark.parametrize("forced", [None, ""], ids=["unset", "empty"])
def test_the_best_kernel_is_the_default(forced):
    best = _core.supported_isas()[0]
    assert fresh_process(forced) == f"{best} {_core.panel_columns(best)} {best}"


def test_the_environment_forces_a_kernel(isa):
    assert fresh_process(isa) == f"{isa} {_core.panel_columns(isa)} {isa}"


@pytest.mark.parametrize("name", ["sse9", "AVX2", "avx2 ", "avx512"])
def test_an_unknown_name_in_the_environment_is_refused(name):
    assert fresh_process(name) == f"ValueError False {unknown(name)}".strip()


def test_a_forced_kernel_that_the_cpu_lacks_is_refused():
    isa = unsupported()
    assert fresh_process(isa) == f"UnsupportedError True {refusal(isa)}"


def test_a_call_that_asks_for_what_the_cpu_lacks_is_refused():
    isa = unsupported()
    with pytest.raises(NotImplementedError, match=re.escape(refusal(isa))):
        gemm(np.ones((1, 1)), np.ones((1, 1)), isa=isa)


def test_a_call_names_its_kernel_before_the_environment_does(isa, monkeypatch):
    monkeypatch.setenv("INT8TILE_ISA", "nonsense")
    assert _core.plan(8, 8, 8, -1, 12, 1, isa).isa == isa
    with pytest.raises(ValueError, match=f"^{re.escape(unknown('nonsense'))}$"):
        _core.plan(8, 8, 8, -1, 12, 1)


def test_the_environment_is_read_at_each_call(isa, monkeypatch, rng):
    monkeypatch.setenv("INT8TILE_ISA", isa)
    assert _core.default_isa() == isa
    a, b = normal(rng, 5, 9) * 40, normal(rng, 6, 9) * 40
    np.testing.assert_array_equal(gemm(a, b), gemm(a, b, isa="portable"))


def test_every_kernel_has_whole_vectors_of_columns():
    columns = {isa: _core.panel_columns(isa) for isa in _core.supported_isas()}
    expected = {"avx512_vnni": 64, "avx2": 8, "portable": 16}
    assert columns == {isa: expected[isa] for isa in columns}
