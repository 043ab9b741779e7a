"""Predicts the next token of a text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from int8tile.finetune import checkpoint, text
from int8tile.finetune.examples import limited
from int8tile.finetune.quiet import quiet
from int8tile.finetune.settings import Settings, UsageError
from int8tile.finetune.tasks.base import Row, Rows, Task

HELD_OUT = 10  # one block in ten is for evaluation where there is no file for it


class CausalLM(Task):
    """Fine-tuning of a causal language model on text, in blocks of equal length.

    What does not fill a block at the end is left out.

    Args:
        settings: The run's settings.
        source: Directory or hub id of the model.
        tokenizer: The model's tokenizer.

    Raises:
        UsageError: The text is too short.
    """

    unit = "blocks"

    def __init__(self, settings: Settings, source: str, tokenizer: PreTrainedTokenizerBase) -> None:
        assert settings.data is not None  # checked by the settings
        data = text.load(settings.data)
        train = blocks(data.train, tokenizer, settings.tokens)
        self._held_out = data.evaluation is None
        if data.evaluation is None:
            held_out = max(1, len(train) // HELD_OUT)
            train, evaluation = train[:-held_out], train[-held_out:]
        else:
            evaluation = blocks([data.evaluation], tokenizer, settings.tokens)
        if not (train and evaluation):
            raise UsageError(
                f"int8tile finetune: --data must fill a block of {settings.tokens} tokens "
                f"(--max-length) to train on and one to evaluate on; {settings.data} does not"
            )
        evaluated = limited(evaluation, settings.max_eval)
        super().__init__(
            settings,
            source,
            tokenizer,
            metric_names=("perplexity",),
            train=limited(train, settings.max_train),
            evaluation={"eval": evaluated},
            facts={"block_tokens": settings.tokens, "held_out": self._held_out},
        )
        self.eval_batch_size = settings.batch_size  # logits of a whole vocabulary for each token

    def notes(self) -> Sequence[str]:
        """Say what is evaluated on if no file was given for it."""
        if not self._held_out:
            return ()
        return ("no evaluation file: the last tenth of the text is held out for it",)

    def collate(self, rows: Rows) -> dict[str, Any]:
        """Put blocks, which need no padding, into one batch."""
        return {name: torch.tensor([row[name] for row in rows]) for name in rows[0]}

    def load_model(self) -> PreTrainedModel:
        """Load the model as it is, and make sure that it does not read ahead."""
        model = checkpoint.load_model(
            AutoModelForCausalLM, self.source, self.settings.seed, new_head=False
        )
        if not is_causal(model):
            raise UsageError(
                f"int8tile finetune: --model must be a causal language model for the clm task; "
                f"{self.source} ({type(model).__name__}) reads the tokens that it is to predict"
            )
        return model

    def reduce_outputs(self, outputs: Any, labels: torch.Tensor) -> torch.Tensor:  # noqa: ANN401
        """Give the summed loss of each block, [batch], in place of its logits."""
        logits = outputs[0] if isinstance(outputs, tuple) else outputs
        return torch.stack(
            [
                torch.nn.functional.cross_entropy(each[:-1].float(), tokens[1:], reduction="sum")
                for each, tokens in zip(logits, labels, strict=True)
            ]
        )

    def score(self, evaluated: str, outputs: Any, labels: Any) -> dict[str, float]:  # noqa: ANN401
        """Compute the perplexity: e to the mean loss of a token."""
        predicted = len(labels) * (self.settings.tokens - 1)
        with np.errstate(over="ignore"):  # a model that diverged: infinite
            perplexity = np.exp(np.sum(outputs, dtype=np.float64) / predicted)
        return {"perplexity": float(perplexity)}


def blocks(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, length: int) -> Sequence[Row]:
    """Tokenize texts, join them and cut them into blocks.

    Args:
        texts: Documents; each begins as the tokenizer begins one, and ends with its end token.
        tokenizer: The model's tokenizer.
        length: Tokens of a block.

    Returns:
        Model inputs of `length` tokens each.
    """
    ids: list[int] = []
    end = tokenizer.eos_token_id
    with quiet():  # a text is longer than what the model takes at once
        for each in texts:
            ids += tokenizer(each)["input_ids"]
            if end is not None and ids[-1:] != [end]:
                ids.append(end)
    starts = range(0, len(ids) - length + 1, length)
    return [
        {"input_ids": block, "labels": block}
        for block in (ids[start : start + length] for start in starts)
    ]


@torch.no_grad()
def is_causal(model: PreTrainedModel) -> bool:
    """Tell whether a model's output at a token depends on the tokens up to it only.

    Args:
        model: A language model in evaluation mode.
    """
    one, other = (model(input_ids=torch.tensor([ids])).logits[0, 0] for ids in ([0, 1], [0, 2]))
    # Experts may round differently with other tokens beside them.
    return torch.allclose(one, other, rtol=1e-4, atol=1e-5)
