"""A layer, an input with planted outliers, and the only layer of a recording."""

import torch
from torch import nn

from helpers import randn

M, K, N = 48, 80, 72


def planted(step=0, columns=(3, 17, 40), factor=40.0, m=M, k=K):
    """Values within +-4 except in `columns`, whose absmax is `factor`."""
    x = randn(m, k, seed=step).clamp(-4, 4)
    for j in columns:
        x[:, j] = factor * torch.linspace(-1, 1, m)
    return x


def layer(k=K, n=N, seed=1):
    module = nn.Linear(k, n)
    with torch.no_grad():
        module.weight.copy_(randn(n, k, seed=seed))
    return module


def only(recording):
    (found,) = recording.report().layers.values()
    return found
