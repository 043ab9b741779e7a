"""Measures what one training step keeps in memory for its backward pass."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import nn


def release_memory() -> None:
    """Free what the last arm left and give the heap's free pages back to the system.

    Models hold reference cycles, and a heap full of holes makes the next arm a tenth slower
    (measured), so that the order of the arms would show in their speed. Does only the first half
    where the C library has no malloc_trim.
    """
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def skips_parameters(model: nn.Module, loss: Callable[[], torch.Tensor]) -> bool:
    """Tell whether a step may leave some parameters without a gradient.

    Args:
        model: The model; one with experts may choose others in each step.
        loss: Runs one forward pass and returns the loss.
    """
    if any("expert" in name for name, _ in model.named_modules()):
        return True
    with torch.random.fork_rng(devices=[]):
        nodes = [loss().grad_fn]
    seen, reached = set(nodes), set()
    while nodes:
        node = nodes.pop()
        reached.add(id(getattr(node, "variable", None)))
        following = {each for each, _ in node.next_functions if each is not None} if node else set()
        nodes += following - seen
        seen |= following
    return any(p.requires_grad and id(p) not in reached for p in model.parameters())


@contextmanager
def _inside(model: nn.Module, kind: type[nn.Module] | None) -> Iterator[Callable[[], bool]]:
    """Tell whether a module of `kind` is running; always true where it is None."""
    if kind is None:
        yield lambda: True
        return
    running: list[nn.Module] = []

    def enter(module: nn.Module, _: object) -> None:
        running.append(module)

    def leave(*_: object) -> None:
        running.pop()

    hooks = []
    for module in model.modules():
        if isinstance(module, kind):
            hooks += [module.register_forward_pre_hook(enter), module.register_forward_hook(leave)]
    try:
        yield lambda: bool(running)
    finally:
        for hook in hooks:
            hook.remove()


def saved_bytes(
    model: nn.Module, loss: Callable[[], torch.Tensor], within: type[nn.Module] | None = None
) -> int:
    """Count the bytes that autograd keeps between the forward and the backward pass.

    These are all tensors saved for backward, each storage counted once and whole (several nodes
    share one activation, and a saved view keeps all of its storage alive). Parameters and
    buffers, which live on anyway, are left out; copies of them, such as autocast's, count. The
    random state and the gradients stay as they were.

    Args:
        model: Its parameters and buffers are left out.
        loss: Runs one forward pass and returns the loss.
        within: Count only what modules of this class save; None: everything.

    Returns:
        Bytes saved for backward.
    """
    lasting = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    saved: dict[int, torch.UntypedStorage] = {}  # held, so that no address is used twice

    def lost(_: object) -> torch.Tensor:
        raise RuntimeError("int8tile: nothing was kept for a backward pass")

    def keep(tensor: torch.Tensor) -> None:
        # Nothing is handed to autograd: a graph that holds its own output is never freed.
        storage = tensor.untyped_storage()
        if counts() and storage.data_ptr() not in lasting:
            saved.setdefault(storage.data_ptr(), storage)

    with (
        _inside(model, within) as counts,
        torch.random.fork_rng(devices=[]),
        torch.autograd.graph.saved_tensors_hooks(keep, lost),
    ):
        loss()
    return sum(storage.nbytes() for storage in saved.values())
