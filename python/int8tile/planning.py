"""`int8tile.plan`: how one GEMM will run, before any data is touched."""

from __future__ import annotations

import torch

from int8tile import _core


def plan(
    m: int,
    n: int,
    k: int,
    outlier_capacity: int | None = None,
    outlier_bits: int = 12,
    threads: int | None = None,
    isa: str | None = None,
) -> _core.GemmPlan:
    """Plan out[m,n] = a[m,k] @ b[n,k].T with outlier columns of a in two limbs.

    Args:
        m: rows of a (tokens, in the forward pass).
        n: rows of b (output features).
        k: the summed dimension (input features).
        outlier_capacity: the most outlier columns; None for the default of k, 0 for no split.
        outlier_bits: significant bits of an outlier value, 8..15.
        threads: threads to use; None for torch's.
        isa: the kernel, as in `int8tile info`; None for the default of this machine.

    Returns:
        The plan; str() prints it. Its last line, `verdict`, says whether int8 or float32 is
        expected to be faster, taking m for tokens and b for the weight of a layer's forward.

    Raises:
        ValueError: negative sizes, bits outside 8..15, a capacity that does not fit, or an
            unknown instruction set.
        NotImplementedError: an instruction set this CPU lacks.
    """
    capacity = -1 if outlier_capacity is None else outlier_capacity
    threads = torch.get_num_threads() if threads is None else threads
    return _core.plan(m, n, k, capacity, outlier_bits, threads, isa or "")
