"""`record`: a context manager that watches the linear layers of a model as it runs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from int8tile.analysis.layer import LayerStatistics
from int8tile.analysis.options import BITS, THRESHOLDS, Options
from int8tile.analysis.results import Report, summarize
from int8tile.config import Int8TileConfig
from int8tile.nn.linear import Int8Linear, not_convertible


def _rows(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().reshape(math.prod(tensor.shape[:-1]), tensor.shape[-1])


def _why_not(module: nn.Linear) -> str | None:
    # Hooks see a converted layer that was sharded or spread over devices since, too.
    reason = None if isinstance(module, Int8Linear) else not_convertible(module)
    if reason is not None:
        return reason
    if module.weight.is_meta:
        return "its weight is offloaded"
    return "it has no features" if module.weight.numel() == 0 else None


@contextmanager
def _aside(device: torch.device) -> Iterator[None]:
    """Measure outside of autograd and autocast."""
    with torch.no_grad(), torch.autocast(device.type, enabled=False):
        yield


class Recording:
    """The statistics of a model's linear layers so far; made by `record`.

    Args:
        model: the model to watch.
        options: what to measure.
    """

    def __init__(self, model: nn.Module, options: Options) -> None:
        self.layers: dict[str, LayerStatistics] = {}
        self.skipped: dict[str, str] = {}
        self._modules: dict[str, nn.Linear] = {}
        self._backward_calls: dict[str, int] = {}
        self._with_gradient: set[str] = set()  # layers whose last call outside of backward had one
        self._open = True
        self._every = options.every
        for name, module in model.named_modules():
            if isinstance(module, nn.Linear):
                reason = _why_not(module)
                if reason:
                    self.skipped[name] = reason
                else:
                    self.layers[name] = LayerStatistics(module, options)
                    self._modules[name] = module
                    self._backward_calls[name] = 0
        if not self.layers:
            raise ValueError(
                "int8tile.analysis.record: model must hold an nn.Linear of float32, bfloat16 or "
                f"float16; {type(model).__name__} has {self.skipped or 'none'}"
            )

    def _attach(self) -> list[RemovableHandle]:
        # Before the hooks of others, which may replace the output.
        return [
            module.register_forward_hook(self._hook(name), prepend=True, with_kwargs=True)
            for name, module in self._modules.items()
        ]

    def _close(self) -> None:
        self._open = False  # for gradients that are still to come

    def _hook(self, name: str) -> Callable[..., None]:
        def hook(
            module: nn.Linear, args: Sequence[Any], kwargs: dict[str, Any], output: torch.Tensor
        ) -> None:
            x = args[0] if args else kwargs["input"]
            if x.numel() == 0:
                return
            # Inside of backward this is the recomputation of a checkpoint, which was seen before.
            recomputed = torch._C._current_graph_task_id() != -1
            if not recomputed:
                with _aside(x.device):
                    self.layers[name].see(_rows(x), module.weight.detach())
                remember = self._with_gradient
                (remember.add if output.requires_grad else remember.discard)(name)
            # The gradient is that of the first output, or of the recomputed one if the first had
            # none (reentrant checkpoints).
            if output.requires_grad and not (recomputed and name in self._with_gradient):
                self._watch_gradient(name, module, x, output)

        return hook

    def _watch_gradient(
        self, name: str, module: nn.Linear, x: torch.Tensor, output: torch.Tensor
    ) -> None:
        call = self._backward_calls[name]
        self._backward_calls[name] = call + 1
        if call % self._every:
            return
        kept = _rows(x).clone()  # x may be overwritten before its gradient comes
        needs = (x.requires_grad, module.weight.requires_grad)

        def hook(g: torch.Tensor) -> None:
            if self._open:
                with _aside(g.device):
                    self.layers[name].see_gradient(kept, module.weight.detach(), _rows(g), needs)

        # On the tensor: a backward hook of the module would make the output a view.
        output.register_hook(hook)  # type: ignore[no-untyped-call]

    def report(self, facts: Mapping[str, Any] | None = None) -> Report:
        """Sum up what was seen so far.

        Args:
            facts: what to keep with it, such as settings.
        """
        return summarize(self._modules, self.layers, self.skipped, facts or {})


@contextmanager
def record(
    model: nn.Module,
    config: Int8TileConfig | None = None,
    *,
    thresholds: Sequence[float] = THRESHOLDS,
    bits: Sequence[int] = BITS,
    every: int = 1,
) -> Iterator[Recording]:
    """Watch the linear layers of a model while it runs, and measure what int8 does to them.

        with int8tile.analysis.record(model) as recording:
            ...  # some training steps, or only forward passes
        print(recording.report())

    Works on a float model and on a converted one; outputs, gradients and torch's generator are as
    without it, and no hook is left behind. Statistics are summed up batch by batch, in memory that
    depends on the model alone; from forward to backward a copy of the inputs of the chosen calls
    is kept. Quantisation is measured by the ops of `torch.ops.int8tile`, each layer on its own:
    errors that add up from layer to layer are not in it.

    Record a model before torch.compile: a compiled one does not call hooks that are added later, so
    that its layers are reported as unseen.

    Args:
        model: any module that holds nn.Linear layers.
        config: how to quantise; None: a converted layer's own config, else the defaults. A config
            without a threshold is reported at 5.0.
        thresholds: further thresholds (gamma) to compare.
        bits: bits of an outlier value to compare.
        every: quantise only at every so many-th call of a layer; columns are counted in all calls.

    Yields:
        The recording; `report()` sums it up at any time.

    Raises:
        TypeError: config is of another type.
        ValueError: the model holds no nn.Linear that could be quantised, or an argument is
            outside its range.
    """
    options = Options(config, tuple(thresholds), tuple(bits), every)
    recording = Recording(model, options)
    handles = recording._attach()
    try:
        yield recording
    finally:
        recording._close()
        for handle in handles:
            handle.remove()
