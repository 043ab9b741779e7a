"""FSDP2: each process holds a share of every weight, its gradient and its optimizer state."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from int8tile.finetune.processes import Processes


def shard(model: nn.Module, processes: Processes) -> None:
    """Leave each process its share of the weights, which are gathered block by block when needed.

    Args:
        model: The same in every process; its blocks are the members of its outermost lists.
        processes: The processes that share it.
    """
    mesh = init_device_mesh("cpu", (processes.count,))
    for block in _blocks(model):
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)


def is_sharded(model: nn.Module | None) -> bool:
    """Tell whether `shard` took a model."""
    return isinstance(model, FSDPModule)


def full_state(model: nn.Module) -> dict[str, torch.Tensor]:
    """Gather a model's whole state in every process; all must call it.

    Args:
        model: Sharded.

    Returns:
        What `state_dict` gives of the model before it was sharded; tied weights are one tensor.
    """
    whole: dict[int, torch.Tensor] = {}
    state = model.state_dict(keep_vars=True)
    for tensor in state.values():
        if id(tensor) not in whole:
            whole[id(tensor)] = _full(tensor.detach())
    return {name: whole[id(tensor)] for name, tensor in state.items()}


def full_optimizer_state(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Gather an optimizer's whole state in every process; all must call it.

    Args:
        optimizer: Of a sharded model.

    Returns:
        What `state_dict` gives of the optimizer of the whole model.
    """
    content: dict[str, Any] = optimizer.state_dict()
    state = {
        index: {name: _full(value) for name, value in values.items()}
        for index, values in content["state"].items()
    }
    return {**content, "state": state}


def load_optimizer_state(optimizer: torch.optim.Optimizer, content: dict[str, Any]) -> None:
    """Give an optimizer its shares of a whole state; all processes must call it.

    Args:
        optimizer: Of a sharded model.
        content: What `full_optimizer_state`, or the optimizer of the whole model, gave.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    state = {
        index: {name: _share(value, parameters[index]) for name, value in values.items()}
        for index, values in content["state"].items()
    }
    optimizer.load_state_dict({**content, "state": state})


def _blocks(module: nn.Module) -> list[nn.Module]:
    found: list[nn.Module] = []
    for child in module.children():
        if isinstance(child, nn.ModuleList) and not any(
            isinstance(block, nn.ModuleList) for block in child
        ):
            found += child
        else:
            found += _blocks(child)
    return found


def _full(value: Any) -> Any:  # noqa: ANN401
    return value.full_tensor() if isinstance(value, DTensor) else value


def _share(value: Any, parameter: torch.Tensor) -> Any:  # noqa: ANN401
    """Cut what has the parameter's shape as the parameter is cut; a count of steps has not."""
    if not isinstance(parameter, DTensor) or value.shape != parameter.shape:
        return value
    return distribute_tensor(value, parameter.device_mesh, parameter.placements)
