"""Shared by the tests of the torch layer: inputs with outliers, watched ops and saved tensors."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from int8tile import _core, reference

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
PAPER = {"granularity": "tensor", "scale": "pow2"}
SEED = torch.tensor([0x1234_5678_9ABC_DEF0])


def dtype_name(value):
    """Readable parameter ids."""
    return str(value).removeprefix("torch.") if isinstance(value, torch.dtype) else None


def randn(*shape, dtype=torch.float32, seed=0, requires_grad=False, device="cpu"):
    """Normal values, the same on every device."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(shape, generator=generator).to(device, dtype)
    return values.requires_grad_(requires_grad)


def activations(
    *shape, dtype=torch.float32, seed=0, outliers=(3, 17, 40), factor=40.0, device="cpu"
):
    """Normal values with a few columns `factor` times as large."""
    x = randn(*shape, seed=seed)
    columns = [j for j in outliers if j < shape[-1]]
    x[..., columns] *= factor
    return x.to(device, dtype)


def tensors(*lead, k=70, n=66, dtype=torch.float32, needs="xwb", device="cpu"):
    """Input with outliers, weight, bias and output gradient; `needs` names those that train."""
    like = {"dtype": dtype, "device": device}
    x = activations(*lead, k, **like).requires_grad_("x" in needs)
    w = randn(n, k, **like, seed=1, requires_grad="w" in needs)
    bias = randn(n, **like, seed=2, requires_grad="b" in needs)
    return x, w, bias, randn(*lead, n, **like, seed=3)


def array(tensor):
    """A tensor's values as float32 in numpy (integers keep their type)."""
    tensor = tensor.detach().cpu()
    return (tensor.float() if tensor.is_floating_point() else tensor).numpy()


def matrix(tensor):
    """[..., k] as [rows, k] float32 in numpy."""
    return array(tensor.reshape(-1, tensor.shape[-1]))


def same(actual, expected):
    """Equal bit for bit (NaN to NaN), in shape and in dtype; numpy values are cast to the dtype."""
    if isinstance(expected, np.ndarray):
        actual, expected = actual.cpu(), torch.from_numpy(expected).to(actual.dtype)
    torch.testing.assert_close(actual, expected, rtol=0, atol=0, equal_nan=True)


def close(actual, expected, tolerance):
    """Root mean square of the difference, over that of `expected`, is within `tolerance`."""
    difference = (actual.float() - expected.float()).square().mean().sqrt()
    assert difference <= tolerance * expected.float().square().mean().sqrt()


def capacity_for(k):
    """The default outlier capacity of k features."""
    return _core.default_capacity(k)


@dataclass
class Expected:
    """What a linear layer must give, from the reference."""

    output: np.ndarray
    grad_input: np.ndarray
    grad_weight: np.ndarray
    split: reference.Split


def expected_linear(
    x, w, bias, g, *, threshold=5.0, outlier_bits=12, capacity=None, rounding="nearest", seed=0,
    outlier_gain=False, grad_split=True, **scales,
):  # fmt: skip
    """Output and gradients by the reference; x and g are [..., features] tensors."""
    k = w.shape[1]
    output, split = reference.linear_forward(
        matrix(x),
        array(w),
        None if bias is None else array(bias),
        threshold=threshold,
        outlier_bits=outlier_bits,
        capacity=capacity_for(k) if capacity is None else capacity,
        outlier_gain=outlier_gain,
        **scales,
    )
    how = {"rounding": rounding, "seed": seed, **scales}
    g = matrix(g)
    grad_input = reference.grad_input(g, array(w), **how)
    grad_weight = reference.grad_weight(g, split, **how, grad_split=grad_split)
    return Expected(
        output.reshape(*x.shape[:-1], len(w)), grad_input.reshape(x.shape), grad_weight, split
    )


class RecordOps(TorchDispatchMode):
    """Names of the int8tile ops that ran, in order."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "int8tile":
            self.names.append(func._schema.name.removeprefix("int8tile::"))
        return func(*args, **(kwargs or {}))


@dataclass
class Saved:
    """What autograd keeps for backward while this is entered."""

    tensors: list = field(default_factory=list)

    def __enter__(self):
        def pack(tensor):
            self.tensors.append(tensor)
            return tensor

        self._hooks = torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)
        self._hooks.__enter__()
        return self

    def __exit__(self, *error):
        self._hooks.__exit__(*error)

    def besides(self, *known):
        """The saved tensors that share no memory with any of `known`."""
        addresses = {t.untyped_storage().data_ptr() for t in known}
        return [t for t in self.tensors if t.untyped_storage().data_ptr() not in addresses]

    @property
    def seed(self):
        """The one int64 value saved for stochastic rounding."""
        (seed,) = [t for t in self.tensors if t.dtype == torch.int64]
        return int(seed)


def size_in_bytes(tensors):
    return sum(t.numel() * t.element_size() for t in tensors)


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.query, self.value = nn.Linear(32, 32), nn.Linear(32, 32, bias=False)

    def forward(self, x):
        return self.query(x) + self.value(x)


class TinyModel(nn.Module):
    """An embedding, two blocks, adapters and a tied head."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(50, 32)
        self.layers = nn.ModuleList([Attention(), Attention()])
        self.lora_A = nn.Linear(32, 4, bias=False)
        self.lora_B = nn.Linear(4, 32, bias=False)
        self.norm = nn.LayerNorm(32)
        self.lm_head = nn.Linear(32, 50, bias=False)
        self.lm_head.weight = self.embed.weight

    def forward(self, ids):
        x = self.embed(ids)
        for layer in self.layers:
            x = x + layer(x)
        x = self.norm(x + self.lora_B(self.lora_A(x)))
        return self.lm_head(x)


TINY_LAYERS = ["layers.0.query", "layers.0.value", "layers.1.query", "layers.1.value"]
