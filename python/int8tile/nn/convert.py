"""Converting the linear layers of a model in place, and saying what was left alone and why."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from numbers import Integral

import torch
from torch import nn

from int8tile import _core, gpus
from int8tile.config import ConfigMapping, Int8TileConfig, config_for, matches
from int8tile.nn.linear import Int8Linear, not_convertible
from int8tile.ops.shared import SharedInput

DEFAULT_SKIP = ("lm_head", "*lora_*")
# Children of one module that read the same input: attention of BERT, Llama, DistilBERT and T5,
# and gated feed-forward layers.
SHARED_INPUTS = (
    ("query", "key", "value"),
    ("q_proj", "k_proj", "v_proj"),
    ("q_lin", "k_lin", "v_lin"),
    ("gate_proj", "up_proj"),
    ("wi_0", "wi_1"),
)
FilterFn = Callable[[nn.Module, str], bool]

# Modules whose matrices are no linear layers, so that nobody expects them to be converted.
_NOT_LINEAR = (nn.Embedding, nn.EmbeddingBag, nn.modules.conv._ConvNd, nn.RNNBase)


@dataclass
class ConversionReport:
    """What convert_ did.

    Args:
        converted: names of the modules that are Int8Linear now.
        skipped: reasons by the name of each linear-like module that is not.
        shared: groups of converted modules that quantise their input once.
        notes: what else to know, such as a kernel that is no faster than float32.
    """

    converted: list[str] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    shared: list[tuple[str, ...]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        lines = [f"{len(self.converted)} linear layers converted, {len(self.skipped)} skipped"]
        if self.shared:
            lines += [f"  {len(self.shared)} groups quantise the input they share once"]
        lines += [f"  note: {note}" for note in self.notes]
        lines += [f"  skipped {name or '(root)'}: {why}" for name, why in self.skipped.items()]
        return "\n".join(lines)


def _matrix_parameters(module: nn.Module) -> list[str]:
    return [
        name
        for name, parameter in module.named_parameters(recurse=False)
        if parameter.dim() >= 2 and parameter.is_floating_point()
    ]


def _why_not(
    module: nn.Module,
    name: str,
    filter_fn: FilterFn | None,
    skip: Iterable[str],
    min_features: int,
) -> str | None:
    if not isinstance(module, nn.Linear):
        names = ", ".join(_matrix_parameters(module))
        return f"{type(module).__name__} is no nn.Linear (holds {names})"
    if reason := not_convertible(module):
        return reason
    pattern = next((p for p in skip if matches(name, p)), None)
    if pattern is not None:
        return f"its name matches skip pattern {pattern!r}"
    for features in ("in_features", "out_features"):
        size = getattr(module, features)
        if size < min_features:
            return f"its {features} ({size}) is below min_features ({min_features})"
    if filter_fn is not None and not filter_fn(module, name):
        return "filter_fn returned False"
    return None


def convert_(
    model: nn.Module,
    config: Int8TileConfig | ConfigMapping | None = None,
    filter_fn: FilterFn | None = None,
    skip: Iterable[str] = DEFAULT_SKIP,
    share_inputs: bool = False,
    min_features: int = 0,
) -> ConversionReport:
    """Turn the nn.Linear layers of `model` into Int8Linear, in place.

    Parameters, names, hooks and tied weights stay as they are, so optimizers made before or after
    work, and so do state_dict, safetensors and adapters.

    Args:
        model: any module; may itself be an nn.Linear.
        config: one config for all layers (None: the defaults), or a mapping of shell-style name
            patterns to configs, where the first match decides and None leaves a layer as it is.
        filter_fn: called with (module, name); a layer is converted only where it returns True.
        skip: name patterns that are left alone.
        share_inputs: quantise the input of q, k and v projections (and of gate and up projections)
            once for all of them, which is faster and saves it once for backward. Results are the
            same bit for bit. Known by their names: see SHARED_INPUTS. Without effect under
            torch.compile.
        min_features: a layer with fewer input or output features is left alone, because float is
            faster for small layers. 0: none.

    Returns:
        A report of the converted layers and of the linear-like modules that were not. It also says
        where float32 is expected to be as fast on this machine.

    Raises:
        TypeError: config or its values, or min_features, are of another type.
        ValueError: min_features is negative, share_inputs is asked for together with outlier_gain,
            or INT8TILE_ISA is unknown.
        NotImplementedError: INT8TILE_ISA names an instruction set that this CPU lacks.
    """
    config = Int8TileConfig() if config is None else config
    check_config("int8tile.convert_", config)
    check_min_features("int8tile.convert_", min_features)
    check_sharing("int8tile.convert_", config, share_inputs)
    _core.kernel_verdict()  # raises for an instruction set that cannot be had
    skip = (skip,) if isinstance(skip, str) else tuple(skip)
    report = ConversionReport()
    for name, module in list(model.named_modules()):
        if isinstance(module, _NOT_LINEAR):
            continue
        if not isinstance(module, nn.Linear) and not _matrix_parameters(module):
            continue
        reason = _why_not(module, name, filter_fn, skip, min_features)
        layer_config = config_for(name, config)
        if reason is None and layer_config is None:
            reason = "no config pattern matches, or it maps to None"
        if reason is not None or layer_config is None:
            kept = "; it stays the Int8Linear that it was" * isinstance(module, Int8Linear)
            report.skipped[name] = f"{reason}{kept}"
            continue
        assert isinstance(module, nn.Linear)
        Int8Linear.from_linear(module, layer_config)
        report.converted.append(name)
    for name, module in model.named_modules():
        report.shared += _share_inputs(module, name, share_inputs)
    report.notes += notes_on(model, report.converted)
    return report


def notes_on(model: nn.Module, converted: Iterable[str]) -> list[str]:
    """What to know of the layers of `model` that were converted, by their names."""
    slow = _core.kernel_verdict()
    layers = [model.get_submodule(name) for name in converted]
    notes = sorted({why for each in layers if (why := _why_slow(each, slow))})
    encoders = [m for m in model.modules() if isinstance(m, nn.TransformerEncoderLayer)]
    if any(isinstance(child, Int8Linear) for each in encoders for child in each.children()):
        notes.append(
            "nn.TransformerEncoderLayer runs in float where it is evaluated without gradients, by "
            "torch's fast path; torch.backends.mha.set_fastpath_enabled(False) keeps it int8"
        )
    return notes


def _why_slow(layer: nn.Module, on_cpu: str) -> str:
    device = next(layer.parameters()).device
    if device.type != "cuda":
        return on_cpu
    return gpus.why_slow(torch.cuda.get_device_capability(device))


def _share_inputs(parent: nn.Module, name: str, share: bool) -> list[tuple[str, ...]]:
    groups = []
    for names in SHARED_INPUTS:
        children = [(n, getattr(parent, n, None)) for n in names]
        layers = [(n, c) for n, c in children if isinstance(c, Int8Linear)]
        sharing = share and len(layers) > 1 and len({c.config for _, c in layers}) == 1
        group = SharedInput(len(layers)) if sharing else None
        for _, layer in layers:
            layer.share_input(group)
        if sharing:
            groups.append(tuple(f"{name}.{n}".lstrip(".") for n, _ in layers))
    return groups


def check_config(who: str, config: object) -> None:
    """Raise TypeError, in the name of `who`, unless `config` is one or a mapping of patterns."""
    values = list(config.values()) if isinstance(config, Mapping) else [config]
    for value in values:
        if isinstance(value, Int8TileConfig) or (value is None and isinstance(config, Mapping)):
            continue
        raise TypeError(
            f"{who}: config must be an Int8TileConfig or a mapping of name "
            f"patterns to them; got {type(value).__name__}"
        )


def check_sharing(who: str, config: Int8TileConfig | ConfigMapping, share: bool) -> None:
    """Raise ValueError, in the name of `who`, for inputs both shared and divided by gains."""
    configs = list(config.values()) if isinstance(config, Mapping) else [config]
    if share and any(c.outlier_gain for c in configs if c is not None):
        raise ValueError(
            f"{who}: share_inputs must be False with outlier_gain, which divides the "
            "input of each layer as its weight allows; got both"
        )


def check_min_features(who: str, min_features: object) -> None:
    """Raise TypeError or ValueError, in the name of `who`, unless it is an int >= 0."""
    if not isinstance(min_features, Integral):
        raise TypeError(f"{who}: min_features must be an int; got {min_features!r}")
    if min_features < 0:
        raise ValueError(f"{who}: min_features must be >= 0; got {min_features}")


def revert_(model: nn.Module) -> list[str]:
    """Turn every Int8Linear of `model` back into nn.Linear, in place, with the same parameters.

    Args:
        model: any module.

    Returns:
        The names of the modules that were turned back.

    Raises:
        TypeError: a layer's class is a subclass, such as the one that `fully_shard` makes, or its
            forward was replaced; none is turned back then.
    """
    layers = {name: m for name, m in model.named_modules() if isinstance(m, Int8Linear)}
    for layer in layers.values():
        layer.check_revertible()
    for layer in layers.values():
        layer.to_linear()
    return list(layers)
