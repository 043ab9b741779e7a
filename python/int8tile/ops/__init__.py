"""The torch custom ops: schema (checks and shapes), kernels per device, autograd."""

from int8tile.ops import autograd, cpu, schema

__all__ = ["autograd", "cpu", "schema"]
