"""Injects outlier features into a model without changing its function, to imitate larger models."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable

import torch
from torch import nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from torch.utils.hooks import RemovableHandle

COLUMNS = 4  # outlier features injected per linear
PreHook = Callable[[nn.Module, tuple[torch.Tensor, ...]], tuple[torch.Tensor, ...]]
MIN_IN_FEATURES = 64  # narrower linears are left alone


class Stress:
    """Multiplies 4 input features of each linear by K, and divides the weight's columns by K.

    x[:, c] * K and w[:, c] / K give the same product, so the function stays as it was, up to
    float32 rounding (exactly for a power of two); what a linear sees and quantises does not.
    Linears of one input width get the same features, as the outlier features of large models
    recur in every layer. In training the gradient of w[:, c] grows by K, so an optimizer step
    moves those columns further than before: compare arms under the same K only.

    Args:
        model: Changed in place: weights, and a forward pre-hook on each linear but adapters.
        factor: K, above 0.
    """

    def __init__(self, model: nn.Module, factor: float) -> None:
        self._factor = factor
        self._hooks: list[RemovableHandle] = []
        self._linears: list[tuple[nn.Linear, list[int]]] = []
        uses = Counter(id(p) for _, p in model.named_parameters(remove_duplicate=False))
        for name, module in model.named_modules():
            if "lora_" in name or not isinstance(module, nn.Linear):
                continue
            if _eligible(module, uses[id(module.weight)]):
                columns = outlier_columns(module.in_features)
                self._linears.append((module, columns))
                self._hooks.append(module.register_forward_pre_hook(_scale(columns, factor)))
        self._multiply_weights(1 / factor)

    def __len__(self) -> int:
        """Give the number of linears changed."""
        return len(self._linears)

    def remove(self) -> None:
        """Fold the factor back into the weights and take the hooks away."""
        for hook in self._hooks:
            hook.remove()
        self._multiply_weights(self._factor)
        self._hooks, self._linears = [], []

    @torch.no_grad()
    def _multiply_weights(self, factor: float) -> None:
        for linear, columns in self._linears:
            linear.weight[:, columns] *= factor


def outlier_columns(in_features: int) -> list[int]:
    """Choose the features to enlarge, the same ones for every linear of one width.

    Args:
        in_features: Width of the linear's input.

    Returns:
        4 ascending column indices.
    """
    return sorted(random.Random(in_features).sample(range(in_features), COLUMNS))


def _eligible(linear: nn.Linear, uses: int) -> bool:
    """Tell whether a linear is called as a module and owns its weight."""
    called = not isinstance(linear, NonDynamicallyQuantizableLinear)  # read by its attention block
    return called and uses == 1 and linear.in_features >= MIN_IN_FEATURES


def _scale(columns: list[int], factor: float) -> PreHook:
    def hook(module: nn.Module, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        x, *rest = args
        gain = torch.ones(x.shape[-1], dtype=x.dtype, device=x.device)
        gain[columns] = factor
        return (x * gain, *rest)

    return hook
