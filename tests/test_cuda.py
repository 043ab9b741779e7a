"""The CUDA backend equals the reference bit for bit: on a GPU, and on the host in an emulated
runtime where all but the GEMM kernel is the backend's own code."""

import re

import numpy as np
import pytest
import torch

from helpers import DTYPES, SEED, activations, array, capacity_for, expected_linear, randn, same
from int8tile import _core, reference
from int8tile.ops import cuda

SCALES = [{"granularity": g, "scale": s} for g in ("row", "tensor") for s in ("absmax", "pow2")]
scales_of = pytest.mark.parametrize("scales", SCALES, ids=lambda s: "-".join(s.values()))
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d)[6:])
each_rounding = pytest.mark.parametrize("rounding", ["nearest", "stochastic"])


def check_layer(
    ops, x, w, bias, g, rounding="nearest", capacity=None, bits=12, gain=False, **scales
):
    """Forward and both gradients of one layer; returns the counts."""
    split = {"outlier_bits": bits, "outlier_capacity": capacity}
    expected, without = (
        expected_linear(
            x, w, bias, g, rounding=rounding, seed=int(SEED), capacity=capacity,
            outlier_bits=bits, outlier_gain=gain, grad_split=on, **scales,
        )
        for on in (True, False)
    )  # fmt: skip
    split["outlier_gain"] = gain
    y, *saved = ops.linear_forward(x, w, bias, **split, **scales)
    same(y, expected.output)
    same(ops.linear_forward_only(x, w, bias, **split, **scales), expected.output)
    index, count = saved[3], saved[4]
    found = int(count[0])
    if gain:
        index, exponent = index
        assert exponent[:found].exp2().tolist() == expected.split.gain.tolist()
        assert (exponent[found:] == 0).all()
    assert index[:found].tolist() == expected.split.index.tolist()
    assert (index[found:] == -1).all()
    how = {"rounding": rounding, "seed": SEED, **scales}
    same(ops.linear_grad_input(g, w, **how), expected.grad_input)
    for on, wanted in ((True, expected), (False, without)):
        grad_weight, grad_bias = ops.linear_grad_weight(g, *saved, x.shape[1], **how, grad_split=on)
        same(grad_weight, wanted.grad_weight)
        together = ops.linear_backward(g, w, *saved, **how, grad_split=on)
        for one, other in zip(together, (wanted.grad_input, grad_weight, grad_bias), strict=True):
            same(one, other)
    _, *on_cpu = torch.ops.int8tile.linear_forward(x, w, bias, **split, **scales)
    same(grad_bias, torch.ops.int8tile.linear_grad_weight(g, *on_cpu, x.shape[1], **how)[1])
    return count.tolist()


def layer(m, n, k, dtype=torch.float32, **options):
    x, w = activations(m, k, dtype=dtype, **options), randn(n, k, dtype=dtype, seed=1)
    return x, w, randn(n, dtype=dtype, seed=2), randn(m, n, dtype=dtype, seed=3)


@scales_of
@each_rounding
@each_dtype
def test_every_option_and_dtype_matches(ops, scales, rounding, dtype):
    assert check_layer(ops, *layer(70, 45, 90, dtype), rounding, **scales) == [3, 0]


@pytest.mark.parametrize("bits", range(8, 16))
def test_every_number_of_outlier_bits_matches(ops, bits):
    check_layer(ops, *layer(20, 30, 60, factor=3000.0), bits=bits)


@pytest.mark.parametrize(
    "shape",
    [(1, 1, 1), (1, 9, 17), (129, 7, 64), (16, 130, 33), (131, 66, 257), (3, 1100, 1300)],
    ids=str,
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_ragged_shapes_match(ops, shape, dtype):
    check_layer(ops, *layer(*shape, dtype))


@pytest.mark.parametrize("capacity", [1, 6, 16, 33, 40])
def test_outliers_over_the_capacity_match(ops, capacity):
    """The largest columns stay; ties go to the lower index."""
    x, w, bias, g = layer(9, 12, 80, outliers=tuple(range(0, 80, 2)), factor=1.0)
    x[4, ::2] = 50.0
    x[4, 10], x[4, 62] = 90.0, 70.0
    assert check_layer(ops, x, w, bias, g, capacity=capacity) == [capacity, 40 - capacity]


def test_wide_inputs_choose_the_same_columns(ops):
    x = activations(3, 2500, outliers=tuple(range(7, 2500, 11)), factor=30.0)
    capacity = 50
    expected, over = reference.find_outliers(array(x), 5.0, capacity)
    *_, index, count = ops.quantize_split(x, outlier_capacity=capacity)
    assert index.tolist() == expected.tolist()
    assert count.tolist() == [capacity, over]


@scales_of
def test_rows_of_zeros_and_non_finite_rows_match(ops, scales):
    x, w, bias, g = layer(20, 30, 40)
    x[4], w[5], g[6], g[:, 7] = 0, 0, 0, 0
    check_layer(ops, x, w, bias, g, **scales)
    x[2, 9], x[3, 3], g[8, 2], g[11, 5] = np.nan, np.inf, -np.inf, np.nan
    check_layer(ops, x, w, bias, g, **scales)


LAYOUTS = {
    "transposed": lambda t: t.t().contiguous().t(),
    "padded_rows": lambda t: torch.nn.functional.pad(t, (0, 5))[:, : t.shape[1]],
    "unaligned": lambda t: torch.cat([t.new_zeros(1), t.flatten()])[1:].view(t.shape),
    "row_stride_0": lambda t: t[:1].expand(t.shape),
    "column_stride_0": lambda t: t[:, :1].expand(t.shape),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@each_dtype
def test_operands_of_any_strides_match(ops, layout, dtype):
    x, w, bias, g = layer(33, 40, 48, dtype)
    x, w, g = map(LAYOUTS[layout], (x, w, g))
    check_layer(ops, x, w, bias, g)


@pytest.mark.parametrize("shape", [(0, 4, 5), (3, 0, 5), (3, 4, 0), (0, 0, 0)], ids=str)
def test_empty_operands_give_zeros_and_bias(ops, shape):
    m, n, k = shape
    x, w, bias, g = randn(m, k), randn(n, k), randn(n), randn(m, n)
    y, *saved = ops.linear_forward(x, w, bias)
    same(y, torch.nn.functional.linear(x, w, bias))
    same(ops.linear_grad_input(g, w), g @ w)
    grad_weight, grad_bias = ops.linear_grad_weight(g, *saved, k)
    same(grad_weight, g.t() @ x)
    same(grad_bias, g.sum(0))


@pytest.mark.parametrize("transpose", [False, True], ids=["rows", "columns"])
@scales_of
@each_rounding
def test_quantize_equals_the_reference(ops, transpose, scales, rounding):
    x, fold = randn(37, 45), randn(37, seed=1)
    how = {"rounding": rounding, "transpose": transpose, **scales}
    for f in (None, fold):
        q, scale = ops.quantize(x, f, seed=SEED, **how)
        expected = reference.quantize(
            array(x), fold=None if f is None else array(f), seed=int(SEED), **how
        )
        same(q, expected[0])
        same(scale, expected[1])


def test_quantize_split_equals_the_reference(ops):
    x = activations(37, 45)
    q, high, low, scale, *_ = ops.quantize_split(x)
    found, _ = reference.find_outliers(array(x), 5.0, capacity_for(45))
    expected, c = reference.quantize_split(array(x), found), len(found)
    same(q, expected.q)
    same(high[:, :c], expected.high)
    same(low[:, :c], expected.low)
    same(scale, expected.scale)
    assert not high[:, c:].any()
    assert not low[:, c:].any()


def test_quantize_split_of_more_features_than_a_sum_holds(ops):
    x = activations(2, 131_072 + 40, outliers=(7, 131_075))
    q, high, low, *_ = ops.quantize_split(x)
    expected = reference.quantize_split(array(x), np.array([7, 131_075]))
    same(q, expected.q)
    same(high[:, :2], expected.high)
    same(low[:, :2], expected.low)


@pytest.mark.parametrize("columns", [0, 1, 9, 32, 33, 70])
def test_gemm_is_exact(ops, columns):
    generator = np.random.default_rng(0)
    a, b, a_high, b_high = (
        torch.from_numpy(generator.integers(-128, 128, shape, dtype=np.int8))
        for shape in [(23, 300), (70, 300), (23, columns), (70, columns)]
    )
    same(ops.gemm(a, b), reference.gemm(array(a), array(b)))
    both = ops.gemm(a, b, a_high, b_high)
    same(both, reference.gemm(array(a), array(b), array(a_high), array(b_high)))


@scales_of
def test_packed_weights_and_shared_inputs_give_the_same_result(ops, scales):
    x, w, bias, g = layer(12, 66, 70)
    expected = ops.linear_forward(x, w, bias, **scales)
    packed, scale = ops.pack_weight(w, **scales)
    given = {"packed_weight": packed, "weight_scale": scale, **scales}
    same(ops.linear_forward(x, w, bias, **given)[0], expected[0])
    block, _, _, *rest = ops.quantize_input(x, **scales)
    same(ops.linear_multiply(block, *rest, w, bias, **given), expected[0])
    packed, scale = ops.pack_weight(w, transpose=True, **scales)
    given = {"packed_weight": packed, "weight_scale": scale, **scales}
    same(ops.linear_grad_input(g, w, **given), ops.linear_grad_input(g, w, **scales))


@pytest.mark.slow
def test_more_tokens_than_a_sum_holds_are_added_in_slices(ops):
    check_layer(ops, *layer(131_072 + 40, 2, 5, outliers=(1, 3)))


def test_more_output_features_than_a_sum_holds_are_added_in_slices(ops):
    w, g = randn(131_072 + 33, 3, seed=1), randn(2, 131_072 + 33, seed=2)
    same(ops.linear_grad_input(g, w), reference.grad_input(array(g), array(w)))


@pytest.mark.parametrize(
    ("capacity", "packed"), [(None, False), (700, True)], ids=["trained", "packed"]
)
def test_more_input_features_than_a_sum_holds_are_added_in_slices(ops, capacity, packed):
    """All limbs go with the first slice, which a large capacity makes shorter."""
    k, columns = 131_072 + 300, (5, 131_000, 131_071, 131_080)
    x, w, bias, g = layer(2, 3, k, outliers=columns)
    if not packed:
        assert check_layer(ops, x, w, bias, g, capacity=capacity) == [len(columns), 0]
        return
    expected = expected_linear(x, w, bias, g, capacity=capacity)
    weight, scale = ops.pack_weight(w)
    y, *_ = ops.linear_forward(
        x, w, bias, outlier_capacity=capacity, packed_weight=weight, weight_scale=scale
    )
    same(y, expected.output)


@pytest.mark.parametrize("where", [-1, 40, 2**30])
def test_an_index_outside_the_matrix_ends_the_kernel(emulated_ops, where):
    """It is read on the device only, where it would be a wild address."""
    x, w, _, g = layer(9, 12, 40)
    block, *saved = emulated_ops.quantize_input(x)
    emulated_ops.linear_multiply(block, *saved[2:], w)
    saved[3][0] = where
    with pytest.raises(RuntimeError, match="CUDA: launch: unspecified launch failure"):
        emulated_ops.linear_multiply(block, *saved[2:], w)
    with pytest.raises(RuntimeError, match="CUDA: launch: unspecified launch failure"):
        emulated_ops.linear_grad_weight(g, *saved, 40)


@pytest.mark.parametrize("count", [-5, 33, 2**31 - 1])
def test_a_wrong_count_stays_within_the_capacity(emulated_ops, count):
    x, w, _, g = layer(9, 12, 40)
    block, *saved = emulated_ops.quantize_input(x, outlier_capacity=2)
    expected = emulated_ops.linear_multiply(block, *saved[2:], w)
    assert saved[4][0] == 2
    saved[4][0] = count
    y = emulated_ops.linear_multiply(block, *saved[2:], w)
    if count > 0:
        same(y, expected)
    emulated_ops.linear_grad_weight(g, *saved, 40)


def test_int8_operands_must_start_at_16_bytes(emulated_ops):
    x, w, _, g = layer(9, 12, 40)
    block, *saved = emulated_ops.quantize_input(x)

    def moved(tensor):
        return torch.cat([tensor.new_zeros(1), tensor.flatten()])[1:].view(tensor.shape)

    with pytest.raises(ValueError, match="linear_multiply: block must start at a multiple of 16"):
        emulated_ops.linear_multiply(moved(block), *saved[2:], w)
    with pytest.raises(ValueError, match="grad_weight: saved_input must start at a multiple of 16"):
        emulated_ops.linear_grad_weight(g, moved(saved[0]), *saved[1:], 40)
    with pytest.raises(ValueError, match="backward: saved_limbs must start at a multiple of 16"):
        emulated_ops.linear_backward(g, w, saved[0], moved(saved[1]), *saved[2:])
    packed, scale = emulated_ops.pack_weight(w, transpose=True)
    with pytest.raises(ValueError, match="input: packed_weight must start at a multiple of 16"):
        emulated_ops.linear_grad_input(g, w, packed_weight=moved(packed), weight_scale=scale)


@pytest.mark.skipif(_core.cuda_compiled, reason="this build has the CUDA backend")
def test_a_build_without_cuda_refuses_with_one_clear_error():
    kernel = cuda._refuse("gemm")
    with pytest.raises(NotImplementedError, match=r"^int8tile::gemm: this build runs on cpu; got"):
        kernel(torch.ones(1), None)


@pytest.mark.skipif(not _core.cuda_compiled, reason="this build has no CUDA backend")
def test_a_build_with_cuda_says_why_there_is_no_device():
    if torch.cuda.is_available():
        assert _core.cuda_device_count() > 0
        assert _core.cuda_unavailable() == ""
        return
    assert _core.cuda_device_count() == 0
    why = _core.cuda_unavailable()
    assert why
    with pytest.raises(RuntimeError, match="int8tile: CUDA: device properties"):
        _core.cuda_device(0)
    call, nothing = (0, 0, 0), [0] * 10
    with pytest.raises(RuntimeError, match=f"^int8tile: CUDA: cudaGetDevice: {re.escape(why)}"):
        _core.cuda_gemm(call, *nothing)
