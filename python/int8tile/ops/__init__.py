"""The torch custom ops: schema (checks and shapes), kernels per device, autograd."""

from int8tile.ops import autograd, cpu, cuda, schema

__all__ = ["autograd", "cpu", "cuda", "schema"]
