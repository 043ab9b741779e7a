"""Layouts and loops of the CUDA GEMM kernels, run on the host by programs over their headers."""

import importlib.util
import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
OWN = [ROOT / folder for folder in ("cuda", "cuda/include", "cpp/include")]


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
@pytest.mark.parametrize("name", ["sm80", "sm90", "sm90_roles"])
def test_the_parts_of_the_gemm_fit_together(tmp_path, name):
    nvcc, headers = shutil.which("nvcc"), cutlass_headers()
    if nvcc is None:
        pytest.skip("nvcc is not on PATH")
    if headers is None:
        pytest.skip("no CUTLASS headers: set INT8TILE_CUTLASS_DIR or install nvidia-cutlass")
    program = tmp_path / "layouts"
    flags = ["-std=c++20", "-O1", "-arch=sm_80", "--expt-relaxed-constexpr", "-w", "-cudart=static"]
    folders = [f"-I{folder}" for folder in (*OWN, headers)]
    source = ROOT / "tests" / "layouts" / f"{name}.cu"
    subprocess.run([nvcc, *flags, *folders, str(source), "-o", str(program)], check=True)
    done = subprocess.run([str(program)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "ok\n")
