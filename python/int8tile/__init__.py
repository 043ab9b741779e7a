"""int8tile: fine-tune language models in int8, outlier activations split into two int8 limbs.

    import int8tile
    int8tile.convert_(model)   # nn.Linear -> Int8Linear, in place; then train as before

Start reading at `int8tile.nn.convert`; the arithmetic is in `int8tile.reference`.
"""

import torch as _torch  # noqa: F401 - before _core, so that both share torch's OpenMP pool

from int8tile import _core, nn, ops
from int8tile._core import UnsupportedError
from int8tile.config import Int8TileConfig
from int8tile.nn import ConversionReport, convert_, revert_
from int8tile.planning import plan

__version__: str = _core.__version__

__all__ = [
    "ConversionReport",
    "Int8TileConfig",
    "UnsupportedError",
    "__version__",
    "convert_",
    "nn",
    "ops",
    "plan",
    "revert_",
]
