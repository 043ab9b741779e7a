"""What a result says of the device it was taken on, and the published int8 peaks of known cards."""

from __future__ import annotations

import re
import shutil
import subprocess
from typing import Any

import torch

from int8tile import _core
from report import environment

# Dense int8 tensor-core TOPS from NVIDIA's datasheets at www.nvidia.com/en-us/data-center: the
# figure given "with sparsity" halved. A name is looked up in this order, by whole words.
INT8_PEAK_TOPS = (
    ("H200 NVL", 1671),
    ("H200", 1979),
    ("H100 PCIe", 1513),
    ("H100 NVL", 1671),
    ("H100 80GB HBM3", 1979),  # SXM5
    ("A100", 624),
    ("A30", 330),
    ("L40S", 733),
)


def int8_peak_tops(name: str) -> float | None:
    """Look up the published int8 peak of a card; None for an unknown one or a part of one."""
    if "MIG" in name:
        return None
    for card, peak in INT8_PEAK_TOPS:
        if re.search(rf"\b{card}\b", name):
            return float(peak)
    return None


def unavailable() -> str | None:
    """Say why the benchmarks cannot run on a GPU here; None where they can."""
    if not _core.cuda_compiled:
        return "this build of int8tile has no CUDA backend"
    if not torch.cuda.is_available():
        return f"torch {torch.__version__} sees no CUDA device"
    return _core.cuda_unavailable() or None


def device_facts(device: str) -> dict[str, Any]:
    """Describe the machine, the software and the card."""
    facts = environment([torch.get_num_threads()])
    if device == "cpu":
        return {**facts, "device": facts["cpu"], "int8_peak_tops": None}
    card = torch.cuda.get_device_properties(0)
    return {
        **facts,
        "device": card.name,
        "int8_peak_tops": int8_peak_tops(card.name),
        "compute_capability": f"{card.major}.{card.minor}",
        "multiprocessors": card.multi_processor_count,
        "memory_bytes": card.total_memory,
        "l2_cache_bytes": card.L2_cache_size,
        "cuda_of_torch": torch.version.cuda,
        "driver": _first_line("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
        "nvcc": _first_line("nvcc", "--version", holding="release"),
    }


def _first_line(program: str, *options: str, holding: str = "") -> str | None:
    """Run a program; give the first line of its output that holds a word."""
    if shutil.which(program) is None:
        return None
    done = subprocess.run([program, *options], capture_output=True, text=True, check=False)
    lines = [line.strip() for line in done.stdout.splitlines() if holding in line]
    return lines[0] if lines else None
