"""The candidates of bench_linear: int8tile, torch's own ways, and the peers that are installed."""

from __future__ import annotations

import copy
import importlib
import logging
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from int8tile import Int8TileConfig, _core
from int8tile.nn import Int8Linear
from int_mm import FrozenWeight, Functions, int_mm_linear

REGULAR_LIMIT = 4.0  # below int8tile's and bitsandbytes' thresholds, 5 and 6
OUTLIER_LEVEL = 20.0
BITSANDBYTES_THRESHOLD = 6.0
INT8TILE, GAIN, COLUMNS = "int8-split", "int8-gain", "int8-columns"
OURS = ("fp32", "int8", INT8TILE, GAIN, COLUMNS)  # must run and be right; the others may drop out
Layer = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Problem:
    """A linear layer, its input and, with `backward`, the gradient of its output."""

    x: Tensor  # [m, k]
    linear: nn.Linear
    grad_output: Tensor  # [m, n]
    outliers: int
    frozen: bool
    backward: bool

    @classmethod
    def random(
        cls, n: int, k: int, tokens: int, outliers: int, frozen: bool, backward: bool,
        bias: bool = True, **where: Any,  # noqa: ANN401 - device and dtype
    ) -> Problem:  # fmt: skip
        """Make normal values, cut at 4, with exactly as many outlier columns as wanted.

        The weights under an outlier column are as much smaller as its values are larger, as where
        a normalisation enlarges features.
        """
        torch.manual_seed(0)
        x = torch.randn(tokens, k, **where).clamp_(-REGULAR_LIMIT, REGULAR_LIMIT)
        columns = torch.randperm(k)[:outliers]
        x[:, columns] *= OUTLIER_LEVEL
        x[0, columns] = OUTLIER_LEVEL
        linear = nn.Linear(k, n, bias, **where)
        linear.weight.data[:, columns] /= OUTLIER_LEVEL
        return cls(x, linear, torch.randn(tokens, n, **where), outliers, frozen, backward)


@dataclass(frozen=True)
class Peer:
    """A way to run a Problem.

    Args:
        run: Gives y and, with backward, the gradients of x and of what is trained.
        op: The operator that must show up in a profile, so that no float path runs unseen.
        split: Keeps outlier columns apart, so that they may not cost accuracy.
    """

    run: Callable[[], tuple[Tensor, ...]]
    op: str
    split: bool = False


def runner(
    layer: Layer, problem: Problem, parameters: tuple[Tensor, ...], dtype: torch.dtype
) -> Callable[[], tuple[Tensor, ...]]:
    """Make the call that gives y and, with backward, the gradients of x and of what is trained."""
    x = problem.x.to(dtype)
    if not problem.backward:

        def forward() -> tuple[Tensor, ...]:
            with torch.no_grad():
                return (layer(x),)

        return forward
    x = x.clone().requires_grad_()
    wanted = (x, *(p for p in parameters if p.requires_grad))
    g = problem.grad_output.to(dtype)

    def both() -> tuple[Tensor, ...]:
        y = layer(x)
        return (y.detach(), *torch.autograd.grad(y, wanted, g))

    return both


def _of_module(
    module: nn.Module, problem: Problem, op: str, dtype: torch.dtype = torch.float32, **facts: bool
) -> Peer:
    return Peer(runner(module, problem, tuple(module.parameters()), dtype), op, **facts)


def _copy(problem: Problem, dtype: torch.dtype = torch.float32) -> nn.Linear:
    return copy.deepcopy(problem.linear).to(dtype).requires_grad_(not problem.frozen)


def int8tile_config(problem: Problem, **options: bool) -> Int8TileConfig:
    """Configure int8tile with room for the problem's outlier columns; `options` are its fields."""
    default = _core.default_capacity(problem.x.shape[1])
    capacity = problem.outliers if problem.outliers > default else None
    return Int8TileConfig(outlier_capacity=capacity, **options)


def _int8tile(problem: Problem, config: Int8TileConfig) -> Peer:
    layer = Int8Linear.from_linear(_copy(problem), config)
    saves = problem.backward and not problem.frozen
    op = f"int8tile::linear_forward{'' if saves else '_only'}"
    return _of_module(layer, problem, op, split=config.threshold is not None)


def _int_mm(problem: Problem, functions: Functions) -> Peer:
    linear = _copy(problem)
    weight, bias = linear.weight, linear.bias
    ready = FrozenWeight.of(weight.detach()) if problem.frozen else None

    def layer(x: Tensor) -> Tensor:
        return int_mm_linear(x, weight, bias, functions, ready)

    return Peer(runner(layer, problem, (weight, bias), torch.float32), "aten::_int_mm")


def _fbgemm(problem: Problem) -> Peer:
    torch.backends.quantized.engine = "fbgemm"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.ao announces its own end
        from torch.ao.quantization import quantize_dynamic

        module = quantize_dynamic(nn.Sequential(_copy(problem)), {nn.Linear}, torch.qint8)
    return Peer(runner(module, problem, (), torch.float32), "quantized::linear_dynamic")


def _bitsandbytes(problem: Problem) -> Peer:
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    bnb = importlib.import_module("bitsandbytes")
    n, k = problem.linear.weight.shape
    module = bnb.nn.Linear8bitLt(k, n, has_fp16_weights=False, threshold=BITSANDBYTES_THRESHOLD)
    module.load_state_dict(problem.linear.state_dict())
    module = module.to("cpu").train(problem.backward)  # on CPUs it trains in float, dequantised
    op = "MatMul8bitFp" if problem.backward else "aten::_int_mm"
    return Peer(runner(module, problem, (), torch.float32), op, split=True)


def _torchao(config: str, home: str, problem: Problem, compiled: bool, **options: bool) -> Peer:
    logging.getLogger("torchao").setLevel(logging.ERROR)
    quantize_ = importlib.import_module("torchao.quantization").quantize_
    model = nn.Sequential(_copy(problem))
    quantize_(model, getattr(importlib.import_module(home), config)(**options))
    parameters = tuple(model.parameters())
    layer: Layer = torch.compile(model, dynamic=False) if compiled else model
    return Peer(runner(layer, problem, parameters, torch.float32), "aten::_int_mm")


def _torchao_training(problem: Problem, compiled: bool = False) -> Peer:
    # Without module_swap the layer runs in float, and says nothing.
    home = "torchao.prototype.quantized_training"
    name = "Int8MixedPrecisionTrainingConfig"
    return _torchao(name, home, problem, compiled, module_swap=True)


def _torchao_dynamic(problem: Problem, compiled: bool = False) -> Peer:
    name = "Int8DynamicActivationInt8WeightConfig"
    return _torchao(name, "torchao.quantization", problem, compiled)


def names() -> list[str]:
    """List all candidates, installed or not."""
    flags = (False, True)
    every = [builders(frozen, backward, True) for frozen in flags for backward in flags]
    return list(dict.fromkeys(name for found in every for name in found))


def builders(frozen: bool, backward: bool, compiled: bool) -> dict[str, Callable[[Problem], Peer]]:
    """List what can run a kind of problem, by name; building may raise ImportError."""
    bf16 = torch.bfloat16
    found: dict[str, Callable[[Problem], Peer]] = {
        "fp32": lambda p: _of_module(_copy(p), p, "aten::addmm"),
        "bf16": lambda p: _of_module(_copy(p, bf16), p, "aten::addmm", bf16),
        "int8": lambda p: _int8tile(p, Int8TileConfig(threshold=None, grad_split=False)),
        INT8TILE: lambda p: _int8tile(p, int8tile_config(p)),
        GAIN: lambda p: _int8tile(p, int8tile_config(p, outlier_gain=True)),
        "int_mm": lambda p: _int_mm(p, Functions()),
    }
    if compiled:
        found["int_mm compiled"] = lambda p: _int_mm(p, Functions.compiled())
    if backward and not frozen:
        found[COLUMNS] = lambda p: _int8tile(p, int8tile_config(p, grad_split=False))
    if not frozen:
        found["torchao training"] = _torchao_training
        if compiled:
            found["torchao training compiled"] = lambda p: _torchao_training(p, True)
        return found
    found["bitsandbytes"] = _bitsandbytes
    if not backward:
        found |= {"fbgemm": _fbgemm, "torchao dynamic": _torchao_dynamic}
        if compiled:
            found["torchao dynamic compiled"] = lambda p: _torchao_dynamic(p, True)
    return found
