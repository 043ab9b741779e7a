"""What a GPU's published peaks say of int8: whether it can be faster than bfloat16 there."""

from __future__ import annotations

from typing import NamedTuple

from int8tile import _core

OLDEST = (8, 0)  # the compute capability from which on the CUDA backend runs


class Peaks(NamedTuple):
    """Dense tensor-core peaks of one chip of a compute capability."""

    chip: str
    int8: float  # 10^12 operations a second
    bfloat16: float  # the same, with float32 sums

    @property
    def ratio(self) -> float:
        """How many times as fast int8 can be."""
        return self.int8 / self.bfloat16


# By compute capability, from NVIDIA's data sheets "A100 Tensor Core GPU", "A40", "L40S", "H100
# Tensor Core GPU", the "Blackwell Architecture Technical Brief" (B200), "Blackwell Ultra" (B300)
# and the whitepaper "RTX Blackwell GPU Architecture". Figures given with sparsity are halved.
PEAKS = {
    (8, 0): Peaks("A100", 624, 312),
    (8, 6): Peaks("A40", 299.3, 149.7),
    (8, 9): Peaks("L40S", 733, 362),
    (9, 0): Peaks("H100 SXM", 1979, 989.5),
    (10, 0): Peaks("B200", 4500, 2250),
    (10, 3): Peaks("B300", 150, 2250),
    (12, 0): Peaks("RTX 5090", 838, 209.5),
}


def why_slow(capability: tuple[int, int]) -> str:
    """Say why int8 cannot be faster on a GPU; empty where it can, or where that is not known."""
    name, oldest = ("{}.{}".format(*each) for each in (capability, OLDEST))
    if capability < OLDEST:
        return f"the CUDA backend needs compute capability {oldest} or later; this is {name}"
    peaks = PEAKS.get(capability)
    if peaks is None or peaks.ratio > 1:
        return ""
    return (
        f"bfloat16 is expected to be faster: at compute capability {name} int8 has "
        f"{peaks.ratio:.2f} times its published peak ({peaks.chip})"
    )


def verdict(capability: tuple[int, int]) -> str:
    """Say what to expect of int8 on a GPU of this compute capability (major, minor)."""
    if why := why_slow(capability):
        return why
    peaks = PEAKS.get(capability)
    if peaks is None:
        return "no published peaks of this compute capability are known here; measure"
    return (
        f"int8 can be up to {peaks.ratio:.1f} times as fast as bfloat16 by the published peaks "
        f"({peaks.chip}); not measured yet"
    )


def verdicts() -> dict[str, str]:
    """Name and compute capability of each CUDA device that this build can use, and its verdict."""
    if not _core.cuda_compiled:
        return {}
    found = (_core.cuda_device(index) for index in range(_core.cuda_device_count()))
    return {
        f"cuda:{index} {name} (compute capability {major}.{minor})": verdict((major, minor))
        for index, (name, major, minor, _) in enumerate(found)
    }
