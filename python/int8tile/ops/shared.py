"""Quantising an input once for the layers that read it, such as the projections of attention."""

from __future__ import annotations

import weakref
from dataclasses import dataclass

import torch

from int8tile.config import Split
from int8tile.ops.checks import MAX_GEMM_DEPTH

Quantized = tuple[torch.Tensor, ...]  # the results of int8tile::quantize_input


@dataclass
class _Held:
    input: weakref.ref[torch.Tensor]
    key: tuple[object, ...]  # of how it was quantised
    quantized: Quantized
    reads: int = 0


class SharedInput:
    """The input that a group of layers saw last, quantised.

    It is recognised by the tensor object and its version, so nothing has to be declared at the
    call. It is dropped after every layer of the group has read it, or when the input dies.

    Args:
        readers: layers in the group.
    """

    def __init__(self, readers: int) -> None:
        self.readers = readers
        # Only ever replaced as a whole: threads may run the layers at the same time.
        self._held: _Held | None = None

    def _forget(self, dead: weakref.ref[torch.Tensor]) -> None:
        held = self._held
        if held is not None and held.input is dead:
            self._held = None

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
        held = self._held
        if held is None or held.input() is not input or held.key != key:
            rows = input if input.dim() == 2 else input.reshape(-1, input.shape[-1])
            with torch.no_grad():
                quantized = torch.ops.int8tile.quantize_input(
                    rows, *split, granularity, scale, save
                )
            held = self._held = _Held(weakref.ref(input, self._forget), key, quantized)
        held.reads += 1
        if held.reads >= self.readers and self._held is held:
            self._held = None
        return held.quantized
