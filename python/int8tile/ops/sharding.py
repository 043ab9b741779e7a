"""The linear of DTensors: what each rank multiplies, and how its results fit together.

A rank runs the ordinary linear on its shards, so what is saved for backward, which has a layout of
its own, stays local and only inputs, outputs and gradients are communicated.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor, Placement

_PLAIN = (torch.Tensor, torch.nn.Parameter, type(None))
LocalLinear = Callable[[torch.Tensor, torch.Tensor, "torch.Tensor | None"], torch.Tensor]


class Layout(NamedTuple):
    """Placements over one dimension of the device mesh."""

    input: Placement
    weight: Placement
    bias: Placement
    output: Placement
    grad_input: Placement
    grad_weight: Placement
    grad_bias: Placement


def is_distributed(input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> bool:
    """Whether any of them is a DTensor."""
    # Importing DTensor takes seconds, and there is none before somebody else has imported it.
    module = sys.modules.get("torch.distributed.tensor")
    # On the path of every call: plain tensors are told by their types, which is quicker.
    if module is None or (
        type(input) in _PLAIN and type(weight) in _PLAIN and type(bias) in _PLAIN
    ):
        return False
    return any(isinstance(each, module.DTensor) for each in (input, weight, bias))


def layout(who: str, input: Placement, weight: Placement, last: int) -> Layout:
    """How a linear layer runs on one dimension of the mesh.

    Args:
        who: the op, for messages.
        input: placement of the input, whose features are dimension `last`.
        weight: placement of the weight [n, k].
        last: the input's last dimension.

    Raises:
        ValueError: the weight is placed in a way that no rule covers.
    """
    from torch.distributed.tensor import Partial, Replicate, Shard

    whole, summed = Replicate(), Partial()
    if type(weight) is Shard and weight.dim == 0:  # column-parallel: each rank has some outputs
        rows = Shard(0)
        return Layout(whole, rows, rows, Shard(last), summed, rows, rows)
    if type(weight) is Shard:  # row-parallel: each rank sums over some input features
        features, columns = Shard(last), Shard(1)
        return Layout(features, columns, whole, summed, features, columns, whole)
    if type(weight) is not Replicate:
        raise ValueError(f"{who}: weight must be replicated or sharded over a mesh; got {weight}")
    if type(input) is Shard and input.dim != last:  # data-parallel: each rank has some tokens
        return Layout(input, whole, whole, input, input, summed, summed)
    return Layout(whole, whole, whole, whole, whole, whole, whole)


class _OnOneRank(torch.autograd.Function):
    """The bias on one of the ranks whose outputs are summed, zeros on the others.

    Each of them has the whole gradient, so nothing is communicated.
    """

    @staticmethod
    def forward(ctx: Any, bias: torch.Tensor, here: bool) -> torch.Tensor:  # noqa: ANN401
        return bias.view_as(bias) if here else torch.zeros_like(bias)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:  # noqa: ANN401
        return grad, None


def _local(
    tensor: torch.Tensor, placements: Sequence[Placement], grads: Sequence[Placement]
) -> torch.Tensor:
    distributed: DTensor = tensor  # type: ignore[assignment]
    return distributed.redistribute(placements=placements).to_local(grad_placements=grads)


def linear(
    who: str,
    local_linear: LocalLinear,
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
) -> torch.Tensor:
    """Apply `local_linear` to the shards of this rank; differentiable like it.

    Args:
        who: the op, for messages.
        local_linear: the linear of plain tensors.
        input: [..., k].
        weight: [n, k].
        bias: [n] or None.

    Returns:
        [..., n], sharded like the weight's rows or the input's tokens, or partial sums where the
        weight's columns are sharded.

    Raises:
        ValueError: some tensors are DTensors and others are not, or their meshes differ.
    """
    from torch.distributed.tensor import DTensor

    given = {"input": input, "weight": weight, "bias": bias}
    meshes = []
    for name, tensor in given.items():
        if isinstance(tensor, DTensor):
            meshes.append(tensor.device_mesh)
        elif tensor is not None:
            raise ValueError(
                f"{who}: input, weight and bias must all be DTensors or none; {name} is a plain "
                "tensor (distribute it, or call the module that is parallelized, not its forward)"
            )
    if any(mesh != meshes[0] for mesh in meshes):
        raise ValueError(f"{who}: input, weight and bias must be on one mesh; got {meshes}")
    assert isinstance(input, DTensor)
    assert isinstance(weight, DTensor)
    pairs = zip(input.placements, weight.placements, strict=True)
    dims = [layout(who, x, w, input.dim() - 1) for x, w in pairs]
    inputs, weights, biases, outputs, grad_inputs, grad_weights, grad_biases = zip(
        *dims, strict=True
    )
    local_bias = None
    if bias is not None:
        coordinate = meshes[0].get_coordinate() or ()
        here = all(c == 0 for c, out in zip(coordinate, outputs, strict=True) if out.is_partial())
        apply: Callable[..., torch.Tensor] = _OnOneRank.apply
        local_bias = apply(_local(bias, biases, grad_biases), here)
    output = local_linear(
        _local(input, inputs, grad_inputs), _local(weight, weights, grad_weights), local_bias
    )
    shape = torch.Size((*input.shape[:-1], weight.shape[0]))
    stride = torch.empty(shape, device="meta").stride()
    result: torch.Tensor = DTensor.from_local(
        output, meshes[0], outputs, run_check=False, shape=shape, stride=stride
    )
    return result
