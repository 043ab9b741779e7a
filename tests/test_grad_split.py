"""grad_split: the largest tokens of a gradient in two limbs, for the gradient of the weight."""

import numpy as np
import pytest
import torch
from torch import nn

import int8tile
from cases import Options, activations, normal, store
from core import assert_matches_reference
from helpers import array, randn
from int8tile import Int8TileConfig, reference

ops = torch.ops.int8tile
ON = Int8TileConfig(grad_split=True)


def sparse_gradient(m, n, seed=3):
    """A few tokens decide the loss, as in question answering."""
    g = randn(m, n, seed=seed)
    g[::32] *= 300
    return g


def gradients(config, x, w, g):
    layer = nn.Linear(*reversed(w.shape), bias=True)
    with torch.no_grad():
        layer.weight.copy_(w)
        layer.bias.zero_()
    int8tile.convert_(layer, config)
    x = x.clone().requires_grad_()
    layer(x).backward(g)
    return x.grad, layer.weight.grad, layer.bias.grad


def db(exact, approximate):
    noise = (approximate.double() - exact.double()).square().sum()
    return float(10 * torch.log10(exact.double().square().sum() / noise))


def test_sparse_gradients_keep_what_one_scale_loses():
    x, w, g = randn(512, 96), randn(80, 96, seed=1), sparse_gradient(512, 80)
    x = (127 * x / x.abs().amax(1, keepdim=True)).round()  # exact in int8
    exact = g.t() @ x
    plain, split = (
        gradients(Int8TileConfig(threshold=None, grad_split=on), x, w, g) for on in (False, True)
    )
    assert torch.equal(plain[0], split[0])
    assert torch.equal(plain[2], split[2])
    small = g.abs().amax(1) < 50  # the tokens that one scale rounds to zero
    rest = db(g[small].t() @ x[small], split[1] - g[~small].t() @ x[~small])
    assert db(exact, split[1]) > db(exact, plain[1]) + 10
    assert rest > 10 > db(g[small].t() @ x[small], plain[1] - g[~small].t() @ x[~small])


def test_it_is_the_reference():
    x, w, g = randn(150, 40), randn(30, 40, seed=1), sparse_gradient(150, 30)
    x[:, 7] *= 30
    _, split = reference.linear_forward(array(x), array(w), capacity=32)
    expected = reference.grad_weight(array(g), split, grad_split=True)
    assert np.array_equal(array(gradients(ON, x, w, g)[1]), expected)
    assert not np.array_equal(expected, reference.grad_weight(array(g), split, grad_split=False))


def test_tokens_are_the_largest_of_their_blocks():
    g = np.ones((214, 3), np.float32)
    g[[3, 9, 10, 11, 12, 204], 1] = [2, 5, 5, 5, 5, 9]
    g[140] = np.nan
    found = reference.outlier_tokens(g)
    # Of equal ones the first; the last block has 22 rows.
    expected = [9, 10, 11, 12, 96, 97, 98, 140, 192, 193, 194, 204]
    assert np.flatnonzero(found).tolist() == expected


@pytest.mark.parametrize(
    ("tokens", "block"),
    [(1, 96), (96, 96), (20_600, 96), (20_700, 192), (70_000, 768), (131_073, 0)],
)
def test_blocks_grow_where_sums_would_not_fit(tokens, block):
    assert reference.token_block(tokens) == block


@pytest.mark.parametrize("tokens", [1, 2, 3, 5, 95, 97, 99, 195, 20_600, 20_700, 131_100])
def test_any_number_of_tokens_matches(isa, tokens, rng):
    x, w, g = activations(rng, tokens, 6, 2, 40.0), normal(rng, 5, 6), normal(rng, tokens, 5)
    assert_matches_reference(x, w, g, options=Options(), isa=isa, threads=2)


@pytest.mark.parametrize("tokens", [193, 400, 20_700])
def test_any_number_of_threads_matches(isa, tokens, rng):
    """In the pass over the columns with few threads; before it with more, and with large blocks."""
    x, w, g = activations(rng, tokens, 6, 2, 40.0), normal(rng, 5, 6), normal(rng, tokens, 5)
    for threads in (1, 2, 3, 16):
        for dtype in ("float32", "bfloat16"):
            arrays = (store(each, dtype) for each in (x, w, g))
            assert_matches_reference(*arrays, options=Options(), isa=isa, threads=threads)


@pytest.mark.parametrize("tokens", [20_600, 36_000, 131_000])
def test_extreme_values_do_not_overflow(isa, tokens):
    """Every product has its largest value, and the outlier tokens 129 times that."""
    x, w = np.full((tokens, 3), 2.0, np.float32), np.ones((2, 3), np.float32)
    x[:, 1] = 2.0 * 16383 / 127  # an outlier column, in two limbs
    g = np.ones((tokens, 2), np.float32)
    g[reference.outlier_tokens(g)] = 16383 / 127
    assert_matches_reference(x, w, g, options=Options(), isa=isa, threads=2)


def test_the_layer_traces_and_shares_inputs():
    x, w, g = randn(128, 64), randn(48, 64, seed=1), sparse_gradient(128, 48)
    expected = gradients(ON, x, w, g)
    traced = torch.compile(lambda x, w: ops.linear(x, w, grad_split=True), backend="aot_eager")
    weight = w.clone().requires_grad_()
    traced(x, weight).backward(g)
    assert torch.equal(weight.grad, expected[1])
    names = ("q_proj", "k_proj", "v_proj")
    block = nn.ModuleDict({name: nn.Linear(64, 48, bias=False) for name in names})
    with torch.no_grad():
        for layer in block.values():
            layer.weight.copy_(w)
    int8tile.convert_(block, ON, share_inputs=True)
    for layer in block.values():
        layer(x).backward(g)
        assert torch.equal(layer.weight.grad, expected[1])


def test_another_type_is_refused():
    with pytest.raises(TypeError, match="grad_split must be a bool; got 1"):
        Int8TileConfig(grad_split=1)
