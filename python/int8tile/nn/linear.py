"""Int8Linear: an nn.Linear with the same parameters whose GEMMs run in int8."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from int8tile.config import Int8TileConfig
from int8tile.nn.frozen import FrozenWeightCache
from int8tile.ops.autograd import linear
from int8tile.ops.checks import DTYPE_CODES
from int8tile.ops.shared import SharedInput


def _checked(config: Int8TileConfig | None) -> Int8TileConfig:
    if config is not None and not isinstance(config, Int8TileConfig):
        raise TypeError(
            f"int8tile.nn.Int8Linear: config must be an Int8TileConfig; got {type(config).__name__}"
        )
    return config or Int8TileConfig()


def not_convertible(module: nn.Linear) -> str | None:
    """Why `module` can be no Int8Linear; None where it can."""
    if type(module) not in (nn.Linear, Int8Linear):
        return f"{type(module).__name__} is a subclass of nn.Linear"
    if "forward" in vars(module):
        return "its forward was replaced, as by accelerate for a device_map: convert before that"
    if module.weight.dtype not in DTYPE_CODES:
        return f"its weight is {module.weight.dtype}"
    return None


class Int8Linear(nn.Linear):
    """y = x @ w.T + bias in int8, forward and backward, on the parameters of an nn.Linear.

    Parameters, state_dict keys and dtypes are those of nn.Linear. The weight is quantised in every
    forward while it requires grad; a frozen weight is kept packed (a quarter of float32 for
    forward, and as much again for backward), but under torch.compile it is quantised in every
    call. A call with fewer tokens than `config.min_tokens` is that of nn.Linear, in float.

    Args:
        in_features: k.
        out_features: n.
        bias: whether there is a bias.
        device: as in nn.Linear.
        dtype: as in nn.Linear; float32, bfloat16 or float16.
        config: how to quantise; None for the defaults.
    """

    config: Int8TileConfig

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        config: Int8TileConfig | None = None,
    ) -> None:
        super().__init__(in_features, out_features, bias, device, dtype)
        self.config = _checked(config)

    @classmethod
    def from_linear(cls, module: nn.Linear, config: Int8TileConfig | None = None) -> Int8Linear:
        """Turn `module` itself into an Int8Linear: same object, parameters and hooks.

        Args:
            module: an nn.Linear, not one of its subclasses, with its own forward and a weight of
                float32, bfloat16 or float16.
            config: how to quantise; None for the defaults.

        Raises:
            TypeError: the module is another one.
        """
        who = "int8tile.nn.Int8Linear.from_linear"
        if not isinstance(module, nn.Linear):
            raise TypeError(f"{who}: module must be an nn.Linear; got {type(module).__name__}")
        if reason := not_convertible(module):
            raise TypeError(f"{who}: module cannot be converted: {reason}")
        config = _checked(config)
        module.__class__ = cls
        assert isinstance(module, cls)
        module.config = config
        module.invalidate()
        return module

    def to_linear(self) -> nn.Linear:
        """Turn this module itself back into an nn.Linear.

        Raises:
            TypeError: the module's class is a subclass, such as the one that `fully_shard` makes,
                or its forward was replaced.
        """
        self.check_revertible()
        for name in ("_cache", "_shared", "config"):
            self.__dict__.pop(name, None)
        module: nn.Linear = self
        module.__class__ = nn.Linear
        return module

    def check_revertible(self) -> None:
        """Raise TypeError where `to_linear` would."""
        who = "int8tile.nn.Int8Linear.to_linear"
        if type(self) is not Int8Linear:
            raise TypeError(
                f"{who}: module must be an Int8Linear, not a subclass "
                f"(revert before fully_shard); got {type(self).__name__}"
            )
        if "forward" in vars(self):
            raise TypeError(
                f"{who}: module must have its own forward; it was replaced: revert before that, or "
                "undo it (accelerate.hooks.remove_hook_from_submodules undoes a device_map)"
            )

    def share_input(self, group: SharedInput | None) -> None:
        """Look for the input, quantised, in `group`, which other layers hold too; None: alone."""
        self.__dict__.pop("_shared", None)
        if group is not None:
            self.__dict__["_shared"] = group

    def invalidate(self) -> None:
        """Forget the packed copy of a frozen weight, after writing to it behind torch's back."""
        cache = self.__dict__.pop("_cache", None)
        if cache is not None:
            cache.clear()  # a graph may hold it until its backward

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Apply the layer.

        Args:
            input: [..., in_features] float32, bfloat16 or float16.

        Returns:
            [..., out_features].
        """
        c = self.config
        few = c.min_tokens and math.prod(input.shape[:-1]) < c.min_tokens
        if few or not c.any_int8:
            return nn.functional.linear(input, self.weight, self.bias)
        weight, bias = self.weight, self.bias
        if torch.compiler.is_compiling():
            traced: torch.Tensor = torch.ops.int8tile.linear_switched(
                input, weight, bias, *c.split, *c.scales, *c.switches, *c.extras
            )
            return traced
        cache = self.__dict__.get("_cache")
        if weight.requires_grad:
            if cache is not None:
                self.invalidate()
                cache = None
        elif cache is None:
            cache = self.__dict__["_cache"] = FrozenWeightCache()
        shared = self.__dict__.get("_shared")
        return linear(input, weight, bias, c.split, c.scales, c.switches, cache, shared, *c.extras)

    def __setattr__(self, name: str, value: Any) -> None:  # noqa: ANN401
        # FSDP2 assigns the weight whenever it gathers or reshards it: what is kept of the gathered
        # one must go with it.
        if name == "weight":
            self.invalidate()
        super().__setattr__(name, value)

    def extra_repr(self) -> str:
        """The layer's sizes and what of its config is not the default."""
        return f"{super().extra_repr()}, config={self.config.code()}"

    def train(self, mode: bool = True) -> Int8Linear:
        """Set the mode; a change also drops the packed copy of a frozen weight."""
        if mode != self.training:  # a Trainer sets it before every step
            self.invalidate()
        return super().train(mode)

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        state.pop("_cache", None)
        return state

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Int8Linear:
        self.invalidate()
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401
        self.invalidate()
        super()._load_from_state_dict(*args, **kwargs)
