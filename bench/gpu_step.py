"""The training step of bench_gpu: forward, backward and AdamW of one Llama-3-8B decoder block."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

import steps
from bench_step import GRADIENT_TOLERANCE, INT8_OPS, LOSS_TOLERANCE
from checks import CheckError, op_counts, require
from gpu_peers import BASELINE, OURS, Arm, arms
from gpu_results import Case, Settings, records
from gpu_timing import Prepared, prepare, replay, shared_pool
from peers import OUTLIER_LEVEL, REGULAR_LIMIT
from shapes import Layer

SEQUENCE = 2048
ATTENTION = {"attn_implementation": "sdpa"}
CONVERTED = ("int8", "int8-split", "int8-shared")  # by int8tile.convert_
LEARNING_RATE = 0.0  # the same work, and all arms keep seeing the same weights
INITIAL_DEVIATION = 0.01  # of the weights: few outliers arise inside the block
BLOCK: dict[str, Any] = {
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    **ATTENTION,
}
SMOKE_SEQUENCE = 16
SMOKE_BLOCK: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    **ATTENTION,
}


class Block(nn.Module):
    """A decoder block whose norms make outlier features, as trained ones do."""

    def __init__(self, outliers: int, smoke: bool) -> None:
        from transformers import LlamaConfig
        from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRotaryEmbedding

        super().__init__()
        config = LlamaConfig(**(SMOKE_BLOCK if smoke else BLOCK))
        self.rotary = LlamaRotaryEmbedding(config)
        self.layer = LlamaDecoderLayer(config, layer_idx=0)
        self.width = config.hidden_size
        columns = torch.randperm(self.width)[:outliers]
        with torch.no_grad():
            for linear in self.linears():
                linear.weight.normal_(0, INITIAL_DEVIATION)
                if linear.in_features == self.width and linear is not self.layer.self_attn.o_proj:
                    linear.weight[:, columns] /= OUTLIER_LEVEL  # the outputs keep their size
            for norm in (self.layer.input_layernorm, self.layer.post_attention_layernorm):
                norm.weight[columns] = OUTLIER_LEVEL

    def linears(self) -> list[nn.Linear]:
        """List the block's linear layers."""
        return [module for module in self.modules() if isinstance(module, nn.Linear)]

    def forward(self, x: Tensor) -> Tensor:
        positions = torch.arange(x.shape[1], device=x.device)[None]
        y: Tensor = self.layer(x, position_embeddings=self.rotary(x, positions))
        return y


class Training:
    """One block, one batch and one AdamW that all arms share."""

    def __init__(self, case: Case, settings: Settings) -> None:
        torch.manual_seed(0)
        sequence = SMOKE_SEQUENCE if settings.smoke else min(SEQUENCE, case.tokens)
        with torch.device(settings.device):
            self.block = Block(case.outliers, settings.smoke).to(torch.bfloat16)
        shape = (case.tokens // sequence, sequence, self.block.width)
        where: dict[str, Any] = {"device": settings.device, "dtype": torch.bfloat16}
        self.x = torch.randn(shape, **where).clamp_(-REGULAR_LIMIT, REGULAR_LIMIT)
        self.target = torch.randn(shape, **where)
        self.optimizer = torch.optim.AdamW(
            self.block.parameters(),
            lr=LEARNING_RATE,
            fused=True,
            capturable=settings.device == "cuda",
        )

    def loss(self, block: Block) -> Tensor:
        """Run forward."""
        x = self.x.to(next(block.parameters()).dtype)
        loss: Tensor = (block(x).float() - self.target.float()).square().mean()
        return loss

    def step(self, arm: Arm | str) -> tuple[Tensor]:
        """Run forward, backward and AdamW."""
        with as_arm(self.block, arm):
            loss = self.loss(self.block)
            loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return (loss.detach(),)

    def gradients(self, block: Block, arm: Arm | str) -> tuple[float, Tensor]:
        """Give the loss and all gradients in one float32 vector."""
        with as_arm(block, arm):
            loss = self.loss(block)
            loss.backward()
        grads = [p.grad.float().flatten() for p in block.parameters() if p.grad is not None]
        block.zero_grad(set_to_none=True)
        return float(loss.detach()), torch.cat(grads)

    def outliers_found(self) -> list[int]:
        """Count the columns that int8tile splits in each linear layer's input."""
        counts = []

        def look(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            x = inputs[0].flatten(0, -2)
            counts.append(int(torch.ops.int8tile.quantize_input(x, save=False)[-1][0]))

        hooks = [linear.register_forward_pre_hook(look) for linear in self.block.linears()]
        with torch.no_grad():
            self.loss(self.block)
        for hook in hooks:
            hook.remove()
        return counts


@contextmanager
def as_arm(block: Block, arm: Arm | str) -> Iterator[None]:
    """Run a block's linear layers by an arm for a while; a word is one of `CONVERTED`."""
    if isinstance(arm, str):
        with steps.as_arm(block, arm):
            yield
        return
    linears = block.linears()
    for linear in linears:
        linear.forward = partial(_apply, arm, linear)
    try:
        yield
    finally:
        for linear in linears:
            del linear.forward


def _apply(arm: Arm, linear: nn.Linear, x: Tensor) -> Tensor:
    return arm.layer(x.flatten(0, -2), linear.weight).view(*x.shape[:-1], -1)


def check(
    training: Training, name: str, arm: Arm | str, wanted: tuple[float, Tensor]
) -> tuple[float, float]:
    """Compare an arm with float32 on the same weights, and prove that its operators ran.

    Returns:
        The loss and the relative error of the gradients.

    Raises:
        CheckError: They are too far off, or something else ran.
    """
    loss, grads = training.gradients(training.block, arm)
    error = float((grads - wanted[1]).norm() / wanted[1].norm())
    off = abs(loss - wanted[0]) / abs(wanted[0])
    require(off <= LOSS_TOLERANCE, f"{name}: loss {loss}, not {wanted[0]}")
    require(0 < error <= GRADIENT_TOLERANCE, f"{name}: gradients {error} off float32's")
    ops = op_counts(lambda: training.gradients(training.block, arm))
    layers = len(training.block.linears())
    for names in [(arm.op,)] if isinstance(arm, Arm) else INT8_OPS:
        count = sum(ops.get(each, 0) for each in names)
        require(count >= layers, f"{name}: {names} ran {count} times for {layers} layers")
    return loss, error


def operations(training: Training) -> float:
    """Count the operations of the linear layers' GEMMs in one step."""
    tokens = training.x.numel() // training.block.width
    return 6.0 * tokens * sum(linear.weight.numel() for linear in training.block.linears())


def measure(case: Case, settings: Settings, skipped: dict[str, str]) -> Iterator[dict[str, Any]]:
    """Check the arms on float32, then time their steps on one block.

    Args:
        case: Tokens and outlier features; the layer is not looked at.
        settings: How.
        skipped: Takes the reasons for arms that cannot run here.

    Raises:
        CheckError: int8tile is wrong. Another arm is left out instead.
    """
    training = Training(case, settings)
    peers = arms(None, None, settings.compiled)
    everything: dict[str, Arm | str] = {BASELINE: peers.pop(BASELINE)}
    everything |= {name: name for name in CONVERTED}
    everything |= {name: arm for name, arm in peers.items() if name not in CONVERTED}
    reference = copy.deepcopy(training.block).float()
    wanted = training.gradients(reference, everything[BASELINE])
    del reference
    pool = shared_pool(settings.device)
    prepared: dict[str, Prepared] = {}
    errors: dict[str, float] = {}
    for name, arm in everything.items():
        try:
            loss, errors[name] = check(training, name, arm, wanted)
            waits = isinstance(arm, Arm) and arm.waits
            ready = prepare(partial(training.step, arm), settings.device, pool, waits)
            (got,) = replay(ready)
            require(abs(float(got) - loss) <= LOSS_TOLERANCE * loss, f"{name}: loss {float(got)}")
            prepared[name] = ready
        except (RuntimeError, ValueError) as error:
            if name in (*OURS, *CONVERTED):
                raise CheckError(f"{name}: {error}") from error
            skipped[f"{name}: {case}"] = str(error)
    found = training.outliers_found()
    for result in records("step", case, operations(training), prepared, errors, settings):
        yield {**result, "outliers_found": found}


def decoder_case(tokens: int, outliers: int, smoke: bool) -> Case:
    """Name a step for the tables; the layer's sizes are those of the block's outside."""
    width = (SMOKE_BLOCK if smoke else BLOCK)["hidden_size"]
    return Case(Layer("llama-3-8b block", width, width), tokens, outliers, "step")
