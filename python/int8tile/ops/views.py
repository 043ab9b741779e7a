"""How the ops hand tensors to the core: addresses, and matrices as tuples."""

from __future__ import annotations

import torch

from int8tile.ops.checks import DTYPE_CODES

Matrix = tuple[int, int, int, int, int, int]
_NO_MATRIX = (0, 0, 1, 0, 0, 1)


def matrix(tensor: torch.Tensor) -> Matrix:
    """Address, dtype code, shape and strides in elements."""
    rows, cols = tensor.shape
    row_stride, col_stride = tensor.stride()
    return tensor.data_ptr(), DTYPE_CODES[tensor.dtype], rows, cols, row_stride, col_stride


def vector(tensor: torch.Tensor | None) -> Matrix:
    """A matrix of one row; of none for None."""
    if tensor is None:
        return _NO_MATRIX
    code = DTYPE_CODES[tensor.dtype]
    return tensor.data_ptr(), code, 1, tensor.shape[0], 0, tensor.stride(0)


def pointer(tensor: torch.Tensor | None) -> int:
    """The address, 0 for None."""
    return 0 if tensor is None else tensor.data_ptr()


def contiguous(tensor: torch.Tensor | None) -> torch.Tensor | None:
    """The tensor with its elements in order."""
    return None if tensor is None else tensor.contiguous()
