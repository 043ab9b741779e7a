"""Describes the machine and the software, for `int8tile info` and metrics.json; a self-test."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from collections.abc import Callable
from pathlib import Path

import torch

from int8tile import _core, gpus

SELF_TEST_TOLERANCE = 0.05  # relative error of a right result; a wrong one is near 1


def describe() -> dict[str, str | int]:
    """Describe where int8tile runs.

    Returns:
        Printable facts by name; a package that is not installed is "not installed".
    """
    l1, l2 = _core.cache_bytes()
    return {
        "int8tile": _core.__version__,
        "torch": torch.__version__,
        "transformers": _version("transformers"),
        "python": platform.python_version(),
        "system": platform.platform(),
        "cpu": _cpu_model(),
        "cores": os.cpu_count() or 1,
        "caches": f"L1 {l1 // 1024} KiB, L2 {l2 // 1024} KiB",
        "isa": _core.default_isa(),
        "speed": _core.kernel_verdict()
        or "int8 is expected to be faster than float32, except for small products and few tokens",
        "kernels": ", ".join(_core.compiled_isas()),
        "supported": ", ".join(_core.supported_isas()),
        "threads": torch.get_num_threads(),
        "cuda": _cuda(),
    }


def self_test() -> dict[str, float]:
    """Run one int8 linear layer, with outliers, forward and backward beside float32.

    Returns:
        The relative error (Frobenius norm) of the output and both gradients. 0 would mean that
        float32 ran in the place of int8.
    """
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(256, 768, generator=generator)
    x[:, ::200] *= 30
    weight = torch.randn(768, 768, generator=generator) / 768**0.5
    grad = torch.randn(256, 768, generator=generator)

    def step(linear: Callable[..., torch.Tensor]) -> list[torch.Tensor]:
        leaves = [x.clone().requires_grad_(), weight.clone().requires_grad_()]
        out = linear(*leaves)
        return [out.detach(), *torch.autograd.grad(out, leaves, grad)]

    pairs = zip(step(torch.ops.int8tile.linear), step(torch.nn.functional.linear), strict=True)
    errors = [float((got - exact).norm() / exact.norm()) for got, exact in pairs]
    return dict(zip(("output", "grad_input", "grad_weight"), errors, strict=True))


def _cuda() -> str:
    """Say whether this build has the CUDA backend, and what to expect of each device."""
    if not _core.cuda_compiled:
        return (
            "this build has no CUDA backend; torch.cuda.is_available() is "
            f"{torch.cuda.is_available()}"
        )
    experimental = "compiled; experimental, it has not run on a GPU yet"
    if why := _core.cuda_unavailable():
        return f"{experimental}; no device: {why}"
    found = [f"{device}: {verdict}" for device, verdict in gpus.verdicts().items()]
    return "; ".join([experimental, *found])


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _cpu_model() -> str:
    """Read the processor's name, which `platform` does not know on Linux."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text().splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()
