"""The layouts of the CUDA GEMM kernel, walked on the host by a program over its own headers."""

import importlib.util
import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def cutlass_headers():
    """CUTLASS's headers in INT8TILE_CUTLASS_DIR or the installed package, or None."""
    roots = (
        [Path(os.environ["INT8TILE_CUTLASS_DIR"])] if "INT8TILE_CUTLASS_DIR" in os.environ else []
    )
    spec = importlib.util.find_spec("cutlass_library")
    if spec is not None and spec.origin:
        roots.append(Path(spec.origin).parent / "source")
    folders = [folder for root in roots for folder in (root, root / "include")]
    return next((f for f in folders if (f / "cute" / "tensor.hpp").is_file()), None)


@pytest.mark.slow
def test_the_layouts_of_the_gemm_fit_together(tmp_path):
    nvcc, headers = shutil.which("nvcc"), cutlass_headers()
    if nvcc is None:
        pytest.skip("nvcc is not on PATH")
    if headers is None:
        pytest.skip("no CUTLASS headers: set INT8TILE_CUTLASS_DIR or install nvidia-cutlass")
    program = tmp_path / "layouts"
    flags = ["-std=c++20", "-O1", "-arch=sm_80", "--expt-relaxed-constexpr", "-w", "-cudart=static"]
    folders = [f"-I{folder}" for folder in (ROOT / "cuda", headers)]
    source = ROOT / "tests" / "layouts" / "sm80.cu"
    subprocess.run([nvcc, *flags, *folders, str(source), "-o", str(program)], check=True)
    done = subprocess.run([str(program)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "ok\n")
