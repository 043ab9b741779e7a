"""The decoder block that bench_gpu trains, and one training step of it by any arm."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

import steps
from gpu_peers import Arm
from gpu_results import Case, Settings
from peers import OUTLIER_LEVEL, REGULAR_LIMIT
from shapes import Layer

SEQUENCE = 2048
ATTENTION = {"attn_implementation": "sdpa"}
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
        block.zero_grad(set_to_none=True)  # of an arm that broke
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
    """Run a block's linear layers by an arm for a while; a word is one of steps.ARMS."""
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


def decoder_case(tokens: int, outliers: int, smoke: bool) -> Case:
    """Name a step for the tables; the layer's sizes are those of the block's outside."""
    width = (SMOKE_BLOCK if smoke else BLOCK)["hidden_size"]
    return Case(Layer("llama-3-8b block", width, width), tokens, outliers, "step")
