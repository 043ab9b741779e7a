"""Makes `from_pretrained(..., quantization_config=Int8TileHfConfig())` load a converted model.

Importing this registers the config and its quantizer with transformers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.utils import logging
from transformers.utils.quantization_config import QuantizationConfigMixin

from int8tile.config import ConfigMapping, Int8TileConfig
from int8tile.nn.convert import (
    DEFAULT_SKIP,
    check_config,
    check_min_features,
    check_sharing,
    convert_,
    notes_on,
)

METHOD = "int8tile"
logger = logging.get_logger(__name__)


@register_quantization_config(METHOD)
class Int8TileHfConfig(QuantizationConfigMixin):
    """How `from_pretrained` converts a model: the arguments of `int8tile.convert_`.

    Args:
        config: one config for all layers (None: the defaults), or a mapping of name patterns.
        skip: name patterns that are left alone.
        share_inputs: quantise the input of q, k and v projections once for all of them.
        min_features: a layer with fewer input or output features is left alone.

    Raises:
        TypeError: config or its values, or min_features, are of another type.
        ValueError: min_features is negative, or inputs are to be shared with outlier_gain.
    """

    def __init__(
        self,
        config: Int8TileConfig | ConfigMapping | None = None,
        skip: Iterable[str] = DEFAULT_SKIP,
        share_inputs: bool = False,
        min_features: int = 0,
    ) -> None:
        who = "int8tile.hf.Int8TileHfConfig"
        self.quant_method = METHOD  # type: ignore[assignment] # an enum of the built-in methods
        self.config = Int8TileConfig() if config is None else config
        self.skip = [skip] if isinstance(skip, str) else list(skip)
        self.share_inputs = share_inputs
        self.min_features = min_features
        check_config(who, self.config)
        check_min_features(who, min_features)
        check_sharing(who, self.config, share_inputs)

    def to_dict(self) -> dict[str, Any]:
        """The options as JSON knows them; `config` as a mapping of name patterns to fields."""
        configs = self.config if isinstance(self.config, Mapping) else {"*": self.config}
        fields = {name: c and dataclasses.asdict(c) for name, c in configs.items()}
        return {**self.__dict__, "config": fields}

    @classmethod
    def from_dict(
        cls, config_dict: dict[str, Any], return_unused_kwargs: bool = False, **kwargs: object
    ) -> Any:  # noqa: ANN401 - transformers' signature: the config, or a pair
        """The config of which `config_dict` is the `to_dict`."""
        options = {name: value for name, value in config_dict.items() if name != "quant_method"}
        if options.get("config") is not None:
            options["config"] = {
                name: Int8TileConfig(**fields) if isinstance(fields, Mapping) else fields
                for name, fields in options["config"].items()
            }
        return (cls(**options), kwargs) if return_unused_kwargs else cls(**options)


@register_quantizer(METHOD)
class Int8TileHfQuantizer(HfQuantizer):
    """Converts the model that `from_pretrained` loads, whose parameters stay float.

    Nothing of it stays on the model: to transformers it is a float model, which can be trained,
    cast, compiled, merged and saved like any other, and its checkpoints load without int8tile.

    Raises, from `from_pretrained`:
        ValueError: the model has no layer that could be converted.
    """

    quantization_config: Int8TileHfConfig

    @property
    def is_trainable(self) -> bool:
        """Yes: that is what int8tile is for."""
        return True

    def is_serializable(self) -> bool:
        """Yes: parameters are those of the float model."""
        return True

    def _process_model_before_weight_loading(self, model: nn.Module, **kwargs: object) -> None:
        # Not after loading: a model spread over devices has the forwards of its layers replaced.
        options = self.quantization_config
        self._report = convert_(
            model,
            options.config,
            skip=options.skip,
            share_inputs=options.share_inputs,
            min_features=options.min_features,
        )
        if not self._report.converted:
            raise ValueError(
                f"int8tile.hf: no layer of {type(model).__name__} could be converted; "
                f"{self._report}"
            )

    def postprocess_model(self, model: nn.Module, **kwargs: object) -> nn.Module:
        """Take the marks of a quantised model off a loaded one."""
        self.remove_quantization_config(model)  # type: ignore[no-untyped-call]
        report, names = self._report, dict(model.named_modules())
        report.converted = [name for name in report.converted if name in names]  # of this stage
        report.notes = notes_on(model, report.converted)
        logger.info(str(report))
        return model
