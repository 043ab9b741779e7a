"""The models and arms of bench_step, and one training step of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import int8tile
from int8tile import Int8TileConfig

ARMS = ("fp32", "bf16", "int8", "int8-split", "int8-shared")
KNOWN_ARMS = (*ARMS, "int8-columns")  # on request
MODELS = ("bert-base", "minilm", "llama")
DROPOUTS = ("on", "off")
WITHOUT_DROPOUT = ("llama",)
LEARNING_RATE = 2e-5
TOKENS = 2048
SEQUENCE = {"bert-base": 128, "minilm": 128, "llama": 512}
LLAMA_LAYERS = 2
LLAMA_VOCABULARY = 8192
SMOKE_TOKENS, SMOKE_SEQUENCE = 32, 16
SMOKE_BERT = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
SMOKE_LLAMA = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 2}


@dataclass(frozen=True)
class Setup:
    """Which model is trained, and how."""

    model: str
    dropout: str  # "on": the model's own rates; "off"
    smoke: bool = False

    def __str__(self) -> str:
        return f"{self.model}, dropout {self.dropout}"

    def build(self) -> nn.Module:
        """Make the model in training mode; the weights are the same in every process."""
        torch.manual_seed(0)
        model = _BUILDERS[self.model](self.smoke)
        if self.dropout == "off":
            for module in model.modules():
                if isinstance(module, nn.Dropout):
                    module.p = 0.0
        return model.train()

    def batch(self, model: nn.Module) -> dict[str, Tensor]:
        """Make one batch of random tokens."""
        tokens, length = TOKENS, SEQUENCE[self.model]
        if self.smoke:
            tokens, length = SMOKE_TOKENS, SMOKE_SEQUENCE
        generator = torch.Generator().manual_seed(1)
        config: Any = model.config
        ids = torch.randint(
            1000, config.vocab_size, (tokens // length, length), generator=generator
        )
        if self.model == "llama":
            return {"input_ids": ids, "labels": ids}
        labels = torch.randint(0, 2, (len(ids),), generator=generator)
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}


def _bert(smoke: bool) -> nn.Module:
    from transformers import BertConfig, BertForSequenceClassification

    shape: dict[str, Any] = SMOKE_BERT if smoke else {}
    model: nn.Module = BertForSequenceClassification(BertConfig(**shape))
    return model


def _minilm(smoke: bool) -> nn.Module:
    from transformers import BertForSequenceClassification
    from transformers.utils import logging

    from int8tile.finetune.checkpoint import find_model

    logging.set_verbosity_error()  # the new classifier is reported otherwise
    logging.disable_progress_bar()
    source = find_model(None)
    model: nn.Module = BertForSequenceClassification.from_pretrained(source, dtype=torch.float32)
    return model


def _llama(smoke: bool) -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    shape: dict[str, Any] = {
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
    }
    shape |= {**SMOKE_LLAMA, "num_key_value_heads": 1} if smoke else {}
    config = LlamaConfig(
        vocab_size=LLAMA_VOCABULARY,
        num_hidden_layers=LLAMA_LAYERS,
        tie_word_embeddings=True,
        use_cache=False,
        **shape,
    )
    model: nn.Module = LlamaForCausalLM(config)
    return model


_BUILDERS: dict[str, Callable[[bool], nn.Module]] = {
    "bert-base": _bert,
    "minilm": _minilm,
    "llama": _llama,
}


def convert(model: nn.Module, arm: str) -> int:
    """Turn a float model into an arm, in place; give the number of int8 layers."""
    if arm == "int8":
        config = Int8TileConfig(threshold=None, grad_split=False)
        return len(int8tile.convert_(model, config).converted)
    if arm in ("int8-split", "int8-shared"):
        return len(int8tile.convert_(model, share_inputs=arm == "int8-shared").converted)
    if arm == "int8-columns":  # the split of the input alone
        return len(int8tile.convert_(model, Int8TileConfig(grad_split=False)).converted)
    return 0


@contextmanager
def as_arm(model: nn.Module, arm: str) -> Iterator[int]:
    """Convert a float model for a while; the parameters stay the same objects."""
    layers = convert(model, arm)
    try:
        yield layers
    finally:
        int8tile.revert_(model)


def loss_of(model: nn.Module, arm: str, batch: dict[str, Tensor]) -> Tensor:
    """Run the forward pass of an arm that `model` was converted to."""
    precision: AbstractContextManager[Any] = nullcontext()
    if arm == "bf16":
        precision = torch.autocast("cpu", torch.bfloat16)
    with precision:
        loss: Tensor = model(**batch).loss
    return loss


class Training:
    """One model, one batch and one AdamW that all arms share.

    The arms take turns on the same parameters, so that nothing else differs between their steps.
    """

    def __init__(self, setup: Setup) -> None:
        self.model = setup.build()
        self.batch = setup.batch(self.model)
        parameters = self.model.parameters()
        self.optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE, fused=True)

    def become(self, arm: str) -> None:
        """Make the next steps those of `arm`."""
        int8tile.revert_(self.model)
        convert(self.model, arm)

    def step(self, arm: str) -> None:
        """Run forward, backward and AdamW."""
        self.optimizer.zero_grad(set_to_none=True)
        loss_of(self.model, arm, self.batch).backward()
        self.optimizer.step()

    def gradients(self, arm: str) -> tuple[float, Tensor]:
        """Give the loss and all gradients in one vector, without dropout."""
        self.optimizer.zero_grad(set_to_none=True)
        self.model.eval()
        with as_arm(self.model, arm):
            loss = loss_of(self.model, arm, self.batch)
            loss.backward()
        grads = [p.grad.flatten() for p in self.model.parameters() if p.grad is not None]
        self.optimizer.zero_grad(set_to_none=True)
        self.model.train()
        return float(loss.detach()), torch.cat(grads)
