"""Small int8tile layers for compute-sanitizer, each compared with the CPU bit for bit.

    compute-sanitizer --tool memcheck --kernel-name kns=int8tile python bench/sanitize.py

PYTORCH_NO_CUDA_MEMORY_CACHING=1 gives every tensor memory of its own, so that the first byte past
its end is seen.
"""

from __future__ import annotations

import sys
from typing import Annotated

import torch
import typer
from torch import Tensor

from cards import unavailable
from int8tile import Int8TileConfig

# (m, n, k): ragged ones, and one with work for the large tile on every multiprocessor.
SHAPES = ((1, 9, 17), (70, 45, 90), (129, 264, 320))
LARGE = (2048, 2304, 64)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
CONFIGS = {
    "default": Int8TileConfig(),
    "plain": Int8TileConfig(threshold=None, grad_split=False),
    "paper": Int8TileConfig.paper(),
}


def results(
    shape: tuple[int, int, int], dtype: torch.dtype, config: Int8TileConfig, device: str
) -> list[Tensor]:
    """Run forward and backward of one layer; give y and the gradients on the CPU."""
    m, n, k = shape
    torch.manual_seed(0)
    x, w, bias, g = (torch.randn(size, dtype=dtype) for size in ((m, k), (n, k), (n,), (m, n)))
    x[:, :: max(1, k // 5)] *= 20
    x, w, bias = (each.to(device).requires_grad_() for each in (x, w, bias))
    y = torch.ops.int8tile.linear(x, w, bias, *config.split, *config.scales, *config.extras)
    y.backward(g.to(device))
    stochastic = config.grad_rounding == "stochastic"  # each device draws its own bits
    grads = [] if stochastic else [each.grad for each in (x, w, bias)]
    return [each.detach().cpu() for each in (y, *grads) if each is not None]


def main(
    device: Annotated[str, typer.Option(help="cuda or cpu.")] = "cuda",
) -> None:
    """Run all shapes; a result that differs from the CPU's ends the run with status 1."""
    if device != "cpu" and (why := unavailable()):
        print(f"sanitize: needs a GPU, but {why}", file=sys.stderr)
        raise typer.Exit(1)
    cases = [(shape, dtype, name) for shape in SHAPES for dtype in DTYPES for name in CONFIGS]
    cases.append((LARGE, torch.bfloat16, "default"))
    for shape, dtype, name in cases:
        here, there = (results(shape, dtype, CONFIGS[name], each) for each in (device, "cpu"))
        if not all(torch.equal(a, b) for a, b in zip(here, there, strict=True)):
            print(f"{device} differs from the CPU: {shape}, {dtype}, {name}", file=sys.stderr)
            raise typer.Exit(1)
    print(f"{len(cases)} layers on {device} equal those on the CPU bit for bit")


if __name__ == "__main__":
    typer.run(main)
