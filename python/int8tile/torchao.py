"""Makes `torchao.quantize_(model, Int8TileConfig(...))` work, by being imported."""

from __future__ import annotations

from torch import nn
from torchao.core.config import AOBaseConfig
from torchao.quantization.transform_module import register_quantize_module_handler

from int8tile.config import Int8TileConfig
from int8tile.nn import Int8Linear


def quantize_linear(module: nn.Module, config: Int8TileConfig) -> nn.Module:
    """Turn `module`, which torchao's filter_fn let through, into an Int8Linear.

    Raises:
        TypeError: the module is no nn.Linear.
    """
    return Int8Linear.from_linear(module, config)  # type: ignore[arg-type]


AOBaseConfig.register(Int8TileConfig)
register_quantize_module_handler(Int8TileConfig)(quantize_linear)
