"""Packed copies of a weight that does not require grad, kept between calls."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import nn

from int8tile import _core
from int8tile.ops import cuda
from int8tile.ops.autograd import Packed

_FINGERPRINT_SAMPLES = 64  # each is a cache miss
_Key = tuple[object, ...]


@dataclass(frozen=True)
class _Entry:
    key: _Key
    address: int
    bytes: int
    fingerprint: int
    packed: Packed
    absmax: torch.Tensor | None = None


@dataclass(frozen=True)
class _DeviceEntry:
    key: _Key
    stream: int
    copy: cuda.PackedWeight


class FrozenWeightCache:
    """Packed copies of a weight that does not require grad, for forward and for grad_input.

    A copy is reused only while the weight's address, shape, dtype, version and a fingerprint of 64
    spread words are unchanged. A write through `.data` moves no version: one that changes the whole
    weight (merging an adapter, say) is seen by the fingerprint; after one that changes a few
    elements call `Int8Linear.invalidate`. On CUDA the device compares fingerprints, of 1,024
    words, and a copy serves one stream.
    """

    def __init__(self) -> None:
        self._entries: dict[bool, _Entry] = {}
        self._on_device: dict[bool, _DeviceEntry] = {}

    def clear(self) -> None:
        """Drop the copies."""
        self._entries.clear()
        self._on_device.clear()

    def get(
        self, weight: torch.Tensor, granularity: str, scale: str, transpose: bool
    ) -> Packed | None:
        """Panels and scales of `weight`, or None where it is trained or is no plain tensor."""
        # On the path of every call, with cold caches: each test here is felt at 128 tokens.
        if weight.requires_grad or weight.is_inference() or not weight.is_contiguous():
            return None
        entry = self._entries.get(transpose)
        if (
            entry is not None
            and _key(weight, granularity, scale) == entry.key
            and _fingerprint(entry.address, entry.bytes) == entry.fingerprint
        ):
            return entry.packed
        if type(weight) not in (torch.Tensor, nn.Parameter):
            return None
        device = device_type(weight)
        if device == "cpu":
            return self._pack(weight, granularity, scale, transpose)
        return self._refresh(weight, granularity, scale, transpose) if device == "cuda" else None

    def absmax(self, weight: torch.Tensor, granularity: str) -> torch.Tensor | None:
        """[n] float32 absmax of the rows of the `weight` that get(..., False) has just given.

        With granularity "tensor" that of the matrix in all places; None where nothing is kept.
        """
        entry = self._entries.get(False)
        if entry is None or weight.numel() == 0:
            return None
        if entry.absmax is None:
            rows = weight.detach().abs().amax(1).float()
            rows = rows.amax().repeat(len(rows)) if granularity == "tensor" else rows
            entry = self._entries[False] = replace(entry, absmax=rows)
        return entry.absmax

    def _pack(self, weight: torch.Tensor, granularity: str, scale: str, transpose: bool) -> Packed:
        key, address = _key(weight, granularity, scale), weight.data_ptr()
        size = weight.numel() * weight.element_size()
        packed: Packed = torch.ops.int8tile.pack_weight(weight, granularity, scale, transpose)
        mark = _fingerprint(address, size)
        self._entries[transpose] = _Entry(key, address, size, mark, packed)
        return packed

    def _refresh(
        self, weight: torch.Tensor, granularity: str, scale: str, transpose: bool
    ) -> Packed | None:
        if cuda.is_capturing():  # a graph outlives a copy: every replay quantises the weight
            return None
        key = _key(weight, granularity, scale)
        stream = cuda.current_stream(weight)
        entry = self._on_device.get(transpose)
        if entry is None or (entry.key, entry.stream) != (key, stream):
            copy = cuda.PackedWeight(weight, granularity, scale, transpose)
            entry = self._on_device[transpose] = _DeviceEntry(key, stream, copy)
        return entry.copy.refreshed(weight)


def device_type(weight: torch.Tensor) -> str:
    """Where the weight is."""
    return weight.device.type


def _key(weight: torch.Tensor, granularity: str, scale: str) -> _Key:
    address, version = weight.data_ptr(), weight._version
    return address, version, weight.shape, weight.dtype, granularity, scale


def _fingerprint(address: int, size: int) -> int:
    return _core.fingerprint(address, size, _FINGERPRINT_SAMPLES)
