"""Modules: Int8Linear, and converting whole models to it and back."""

from int8tile.nn.convert import ConversionReport, convert_, revert_
from int8tile.nn.linear import Int8Linear

__all__ = ["ConversionReport", "Int8Linear", "convert_", "revert_"]
