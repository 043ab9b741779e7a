"""The GEMM of bench_gpu on ready operands: int8tile's, torch's int8, fp8 and bf16."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from checks import SPLIT_TOLERANCE, CheckError, relative_error, require
from gpu_peers import BASELINE, FP8
from gpu_results import Case, Settings, records
from gpu_timing import Prepared, Run, prepare, replay, shared_pool
from int8tile import Int8TileConfig, _core
from peers import Problem, int8tile_config

INT32, SCALED = "int8tile to int32", "int8tile to bf16"
OURS = (BASELINE, INT32, SCALED)
LIMB_ALIGN = 16  # columns of a limb panel
BF16_TOLERANCE = 0.01


def int8_operands(case: Case, device: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Draw a [m, k], b [n, k] and their limb panels, whose columns past the outliers are zero."""
    m, n, k = case.tokens, case.layer.n, case.layer.k
    a = torch.randint(-127, 128, (m, k), dtype=torch.int8, device=device)
    b = torch.randint(-127, 128, (n, k), dtype=torch.int8, device=device)
    width = -(-case.outliers // LIMB_ALIGN) * LIMB_ALIGN
    a_high, b_high = (torch.zeros(rows, width, dtype=torch.int8, device=device) for rows in (m, n))
    a_high[:, : case.outliers] = a[:, : case.outliers]
    b_high[:, : case.outliers] = b[:, : case.outliers]
    return a, b, a_high, b_high


def int32_product(a: Tensor, b: Tensor, a_high: Tensor, b_high: Tensor) -> Run:
    """Make the call of int8tile's GEMM; on a GPU without the copies that its op makes."""
    if a.device.type == "cpu":
        return lambda: (torch.ops.int8tile.gemm(a, b, a_high, b_high),)
    (m, k), n, width = a.shape, b.shape[0], a_high.shape[1]
    out = torch.empty(m, n, dtype=torch.int32, device=a.device)
    count = torch.full((1,), width, dtype=torch.int32, device=a.device)
    limbs = (a_high.data_ptr(), b_high.data_ptr()) if width else (0, 0)

    def run() -> tuple[Tensor]:
        call = (a.device.index or 0, torch.cuda.current_stream().cuda_stream, 0)
        _core.cuda_gemm(
            call, a.data_ptr(), m, k, b.data_ptr(), n, *limbs, width, count.data_ptr(),
            out.data_ptr(),
        )  # fmt: skip
        return (out,)

    return run


def scaled_product(problem: Problem) -> Run:
    """Make the call of int8tile's GEMM with its epilogue, x and w quantised before."""
    config = int8tile_config(problem) if problem.outliers else Int8TileConfig(threshold=None)
    split = {"threshold": config.threshold, "outlier_capacity": config.outlier_capacity}
    weight = problem.linear.weight.detach()
    block, *_, scale, index, count = torch.ops.int8tile.quantize_input(
        problem.x, save=False, **split
    )
    packed, weight_scale = torch.ops.int8tile.pack_weight(weight)

    def run() -> tuple[Tensor]:
        y: Tensor = torch.ops.int8tile.linear_multiply(
            block,
            scale,
            index,
            count,
            weight,
            out_dtype=problem.x.dtype,
            packed_weight=packed,
            weight_scale=weight_scale,
        )
        return (y,)

    return run


def float_product(a: Tensor, b: Tensor) -> Run:
    """Make the call of torch's GEMM."""
    return lambda: (torch.mm(a, b.t()),)


def int_mm_product(a: Tensor, b: Tensor) -> Run:
    """Make the call of torch's int8 GEMM."""
    return lambda: (torch._int_mm(a, b.t()),)


def fp8_product(a: Tensor, b: Tensor) -> Run:
    """Make the call of torch's fp8 GEMM with one scale for each operand, its fastest kind."""
    one = torch.ones((), device=a.device)
    return lambda: (
        torch._scaled_mm(
            a, b.t(), scale_a=one, scale_b=one, out_dtype=torch.bfloat16, use_fast_accum=True
        ),
    )


def check(name: str, got: Tensor, wanted: Tensor, tolerance: float) -> float:
    """Compare with float64; integers must be equal.

    Raises:
        CheckError: It is too far off.
    """
    if not got.is_floating_point():
        require(torch.equal(got.double(), wanted), f"{name}: integers differ from float64's")
        return 0.0
    error = relative_error(got, wanted)
    require(error <= tolerance, f"{name}: an error of {error:.2g} is above {tolerance}")
    return error


def measure(case: Case, settings: Settings, skipped: dict[str, str]) -> Iterator[dict[str, Any]]:
    """Check the candidates on float64, then time them.

    Args:
        case: What to run.
        settings: How.
        skipped: Takes the reasons for candidates that cannot run here.

    Raises:
        CheckError: int8tile is wrong. Another candidate is left out instead.
    """
    device, n, k = settings.device, case.layer.n, case.layer.k
    bf16 = {"device": device, "dtype": torch.bfloat16}
    problem = Problem.random(n, k, case.tokens, case.outliers, False, False, bias=False, **bf16)
    a, b, a_high, b_high = int8_operands(case, device)
    plain = a.double() @ b.double().t()
    split = plain + 128 * (a_high.double() @ b_high.double().t())
    linear = problem.x.double() @ problem.linear.weight.detach().double().t()
    builders: dict[str, tuple[Callable[[], Run], Tensor, float]] = {
        BASELINE: (lambda: float_product(a.bfloat16(), b.bfloat16()), plain, BF16_TOLERANCE),
        INT32: (lambda: int32_product(a, b, a_high, b_high), split, 0.0),
        SCALED: (lambda: scaled_product(problem), linear, SPLIT_TOLERANCE),
        "int_mm": (lambda: int_mm_product(a, b), plain, 0.0),
        "fp8": (lambda: fp8_product(a.to(FP8), b.to(FP8)), plain, SPLIT_TOLERANCE),
    }
    pool = shared_pool(device)
    prepared: dict[str, Prepared] = {}
    errors: dict[str, float] = {}
    for name, (build, wanted, tolerance) in builders.items():
        try:
            run = build()
            check(name, run()[0], wanted, tolerance)
            ready = prepare(run, device, pool)
            errors[name] = check(name, replay(ready)[0], wanted, tolerance)
            prepared[name] = ready
        except Exception as error:  # whatever it is, the others still run
            if name in OURS:
                raise CheckError(f"{name}: {type(error).__name__}: {error}") from error
            skipped[f"{name}: {case}"] = f"{type(error).__name__}: {error}"
    yield from records("gemm", case, case.operations, prepared, errors, settings)
