"""The core's functions over numpy arrays. Each result lies between guard bytes and starts out as
poison, so that a write outside it and an element left unwritten are both seen."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cases import Options, assert_same, load, store
from int8tile import _core, reference

DEPTH_ALIGN = 16
POISON = 0xA5
GUARD_BYTES = 64
CODES = {"float32": 0, "bfloat16": 1, "float16": 2}
STORAGE = {"float32": np.float32, "bfloat16": np.uint16, "float16": np.float16}
NO_MATRIX = (0, 0, 1, 0, 0, 1)
DEFAULT = Options()


class Result:
    """One array for the core to fill."""

    def __init__(self, shape, dtype):
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        self._raw = np.full(size + 3 * GUARD_BYTES, POISON, np.uint8)
        self._start = GUARD_BYTES + -(self._raw.ctypes.data) % GUARD_BYTES
        self._end = self._start + size
        self.array = self._raw[self._start : self._end].view(dtype).reshape(shape)
        self.address = self.array.ctypes.data

    def checked(self):
        guards = np.concatenate([self._raw[: self._start], self._raw[self._end :]])
        assert (guards == POISON).all(), "bytes outside of the result were written"
        return self.array


def _checked(*results):
    return [result.checked() for result in results]


def matrix(array):
    """The core's view of a stored matrix: address, dtype code, shape and strides."""
    names = {np.dtype(dtype): name for name, dtype in STORAGE.items()}
    code = CODES[names[array.dtype]]
    strides = (stride // array.itemsize for stride in array.strides)
    return (array.ctypes.data, code, *array.shape, *strides)


def _address(array):
    return 0 if array is None else array.ctypes.data


def _int8(array):
    return None if array is None else np.ascontiguousarray(array, np.int8)


def round_up(value, multiple):
    return -(-value // multiple) * multiple


def capacity_of(options, k):
    if not options.threshold:
        return 0
    return _core.default_capacity(k) if options.capacity is None else options.capacity


@dataclass(frozen=True)
class Packed:
    panels: np.ndarray
    scale: np.ndarray
    absmax: np.ndarray | None = None

    @property
    def addresses(self):
        return _address(self.panels), _address(self.scale)


@dataclass(frozen=True)
class Forward:
    y: np.ndarray
    regular: np.ndarray  # saved panels
    high: np.ndarray
    scale: np.ndarray
    index: np.ndarray  # [capacity]; with gains [2, capacity], their exponents below
    count: np.ndarray  # found, overflow

    @property
    def found(self):
        return int(self.count[0])

    @property
    def overflow(self):
        return int(self.count[1])

    @property
    def columns(self):
        return np.atleast_2d(self.index)[0, : self.found]

    @property
    def gain(self):
        return np.exp2(self.index[1, : self.found], dtype=np.float32)

    @property
    def addresses(self):
        """What the backward calls take of it."""
        arrays = (self.regular, self.high, self.scale, self.index, self.count)
        return *map(_address, arrays), self.index.shape[-1], self.index.ndim == 2


def unpack(panels, rows, depth, isa):
    """int8 [rows, depth] out of B panels [ceil(rows/nr)][depth/4][nr][4]; padding must be zero."""
    nr = _core.panel_columns(isa)
    groups = round_up(depth, DEPTH_ALIGN) // 4
    offset = 128 if isa == "avx512_vnni" else 0
    padded = round_up(rows, nr)
    grid = panels[: padded * groups * 4].reshape(padded // nr, groups, nr, 4) - np.uint8(offset)
    values = grid.view(np.int8).transpose(0, 2, 1, 3).reshape(padded, groups * 4)
    assert not values[rows:].any(), "padding rows are not zero"
    assert not values[:, depth:].any(), "padding of the depth is not zero"
    return values[:rows, :depth]


def _panel_bytes(rows, depth, isa):
    return round_up(rows, _core.panel_columns(isa)) * round_up(depth, DEPTH_ALIGN)


def pack_weight(w, options=DEFAULT, *, transposed=False, isa="", threads=1):
    rows, depth = w.shape[::-1] if transposed else w.shape
    panels = Result(_panel_bytes(rows, depth, isa), np.uint8)
    scale = Result(rows, np.float32)
    _core.pack_weight(
        matrix(w), *options.scales.values(), transposed, panels.address, scale.address, threads, isa
    )
    return Packed(*_checked(panels, scale))


def forward(
    x, w, bias=None, options=DEFAULT, *, isa="", threads=1, out="float32", packed=None, save=True
):
    (m, k), n = x.shape, len(w)
    capacity = capacity_of(options, k)
    y = Result((m, n), STORAGE[out])
    regular = Result(_panel_bytes(k, m, isa), np.uint8)
    high = Result(_panel_bytes(capacity, m, isa), np.uint8)
    scale = Result(m, np.float32)
    index = Result((2, capacity) if options.gain else capacity, np.int32)
    count = Result(2, np.int32)
    _core.linear_forward(
        matrix(x),
        matrix(w),
        NO_MATRIX if bias is None else matrix(bias[None]),
        *((0, 0) if packed is None else packed.addresses),
        options.threshold or 0.0,
        options.bits,
        capacity,
        *options.scales.values(),
        regular.address if save else 0,
        high.address if save else 0,
        scale.address,
        index.address,
        count.address,
        matrix(y.array),
        threads,
        isa,
        options.gain,
        0 if packed is None else _address(packed.absmax),
    )
    return Forward(*_checked(y, regular, high, scale, index, count))


def grad_input(g, w, options=DEFAULT, *, isa="", threads=1, out="float32", packed=None):
    result = Result((len(g), w.shape[1]), STORAGE[out])
    _core.linear_grad_input(
        matrix(g),
        matrix(w),
        *((0, 0) if packed is None else packed.addresses),
        *options.grad.values(),
        matrix(result.array),
        threads,
        isa,
    )
    return result.checked()


def grad_weight(g, saved, k, options=DEFAULT, *, isa="", threads=1, out="float32"):
    """grad_w [n, k] and grad_bias [n]."""
    n = g.shape[1]
    result, bias = Result((n, k), STORAGE[out]), Result(n, np.float32)
    _core.linear_grad_weight(
        matrix(g),
        saved.addresses,
        *options.grad.values(),
        matrix(result.array),
        bias.address,
        threads,
        isa,
        options.grad_split,
    )
    return _checked(result, bias)


def backward(g, w, saved, options=DEFAULT, *, isa="", threads=1, out="float32"):
    """grad_x [m, k], grad_w [n, k] and grad_bias [n] by the call that makes all three."""
    n, k = w.shape
    results = Result((len(g), k), STORAGE[out]), Result((n, k), STORAGE[out]), Result(n, np.float32)
    _core.linear_backward(
        matrix(g),
        matrix(w),
        saved.addresses,
        *options.grad.values(),
        *(matrix(result.array) for result in results[:2]),
        results[2].address,
        threads,
        isa,
        options.grad_split,
    )
    return _checked(*results)


def quantize(x, fold=None, options=DEFAULT, *, gemm_id=0, transposed=False, isa="", threads=1):
    """q and the scale of each of its rows."""
    shape = x.shape[::-1] if transposed else x.shape
    q, scale = Result(shape, np.int8), Result(shape[0], np.float32)
    grad = tuple(options.grad.values())
    addresses = q.address, scale.address
    _core.quantize(matrix(x), _address(fold), *grad, gemm_id, transposed, *addresses, threads, isa)
    return _checked(q, scale)


def quantize_split(x, options=DEFAULT, *, isa="", threads=1):
    """(q, high, low, scale, index), each as wide as the capacity, and (found, overflow)."""
    m, k = x.shape
    capacity = capacity_of(options, k)
    limbs = [Result((m, capacity), np.int8) for _ in range(2)]
    results = [Result((m, k), np.int8), *limbs, Result(m, np.float32), Result(capacity, np.int32)]
    counts = Result(2, np.int32)
    _core.quantize_split(
        matrix(x),
        options.threshold or 0.0,
        options.bits,
        capacity,
        *options.scales.values(),
        *(result.address for result in (*results, counts)),
        threads,
        isa,
    )
    return _checked(*results), tuple(counts.checked())


def gemm(a, b, a_high=None, b_high=None, *, isa="", threads=1):
    """((a_high @ b_high.T) << 7) + a @ b.T in int32."""
    a, b, a_high, b_high = _int8(a), _int8(b), _int8(a_high), _int8(b_high)
    (m, k), n = a.shape, len(b)
    columns = 0 if a_high is None else a_high.shape[1]
    out = Result((m, n), np.int32)
    highs = _address(a_high), _address(b_high)
    _core.gemm(_address(a), m, k, _address(b), n, *highs, columns, out.address, threads, isa)
    return out.checked()


def assert_matches_reference(
    x, w, g, bias=None, options=DEFAULT, *, isa="", threads=1, out="float32"
):
    """Forward and both gradients of stored matrices equal reference.py bit for bit."""
    run = {"isa": isa, "threads": threads, "out": out}
    y, split = reference.linear_forward(
        load(x),
        load(w),
        None if bias is None else load(bias),
        threshold=options.threshold,
        outlier_bits=options.bits,
        capacity=capacity_of(options, x.shape[1]),
        outlier_gain=options.gain,
        **options.scales,
    )
    result = forward(x, w, bias, options, **run)
    assert_same(result.columns.astype(np.int64), split.index)
    assert_same(result.scale, split.scale)
    if options.gain:
        assert_same(result.gain, split.gain)
        assert not result.index[1, result.found :].any()
    assert_same(result.y, store(y, out))
    expected = reference.grad_input(load(g), load(w), **options.grad)
    assert_same(grad_input(g, w, options, **run), store(expected, out))
    expected = reference.grad_weight(load(g), split, **options.grad, grad_split=options.grad_split)
    separate = grad_weight(g, result, x.shape[1], options, **run)
    assert_same(separate[0], store(expected, out))
    together = backward(g, w, result, options, **run)
    for one, other in zip(together, (grad_input(g, w, options, **run), *separate), strict=True):
        assert_same(one, other)
    return result
