"""Quantising an input once for the layers that read it, such as the projections of attention."""

from __future__ import annotations

import weakref

import torch

from int8tile.config import Split
from int8tile.ops.checks import MAX_GEMM_DEPTH

Quantized = tuple[torch.Tensor, ...]  # the results of int8tile::quantize_input


class SharedInput:
    """The input that a group of layers saw last, quantised.

    It is recognised by the tensor object and its version, so nothing has to be declared at the
    call. It is dropped after every layer of the group has read it, or when the input dies.

    Args:
        readers: layers in the group.
    """

    def __init__(self, readers: int) -> None:
        self.readers = readers
        self._clear()

    def _clear(self, _dead: object = None) -> None:
        self._input: weakref.ref[torch.Tensor] | None = None
        self._key: tuple[object, ...] = ()
        self._quantized: Quantized | None = None
        self._reads = 0

    def __getstate__(self) -> dict[str, int]:
        return {"readers": self.readers}

    def __setstate__(self, state: dict[str, int]) -> None:
        self.__init__(state["readers"])  # type: ignore[misc]

    def quantize(
        self, input: torch.Tensor, split: Split, granularity: str, scale: str, save: bool
    ) -> Quantized | None:
        """Quantise `input` [..., k], or find it quantised; None where it cannot be shared."""
        if input.is_inference() or input.shape[-1] > MAX_GEMM_DEPTH or input.shape[-1] == 0:
            return None
        key = (input._version, split, granularity, scale, save)
        known = self._input is not None and self._input() is input and self._key == key
        if not known:
            rows = input if input.dim() == 2 else input.reshape(-1, input.shape[-1])
            with torch.no_grad():
                self._quantized = torch.ops.int8tile.quantize_input(
                    rows, *split, granularity, scale, save
                )
            self._input, self._key, self._reads = weakref.ref(input, self._clear), key, 0
        quantized = self._quantized
        self._reads += 1
        if self._reads >= self.readers:
            self._clear()
        return quantized
