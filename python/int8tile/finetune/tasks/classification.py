"""Tells the class of a text or a pair of texts, or a number that belongs to it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from transformers import (
    AutoModelForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from int8tile.finetune import checkpoint, columns, docstrings, glue, metrics
from int8tile.finetune.examples import Example, TaskData, limited
from int8tile.finetune.settings import Settings
from int8tile.finetune.tasks.base import Row, Task, by_length


class Classification(Task):
    """The docstrings task, GLUE and custom files.

    Args:
        settings: The run's settings.
        source: Directory or hub id of the model.
        tokenizer: The model's tokenizer.
    """

    def __init__(self, settings: Settings, source: str, tokenizer: PreTrainedTokenizerBase) -> None:
        data = _load(settings)
        metric_names = settings.metrics or data.metric_names
        metrics.check(metric_names, len(data.labels))

        def rows(examples: Sequence[Example], most: int | None) -> list[Row]:
            return tokenize(limited(examples, most), tokenizer, settings.tokens)

        super().__init__(
            settings,
            source,
            tokenizer,
            metric_names=metric_names,
            train=rows(data.train, settings.max_train),
            evaluation={
                name: by_length(rows(examples, settings.max_eval))
                for name, examples in data.evaluation.items()
            },
            facts={"labels": list(data.labels), "skipped_rows": data.skipped_rows},
        )
        self._labels = dict(enumerate(data.labels or ("score",)))
        self._regression = data.regression

    def load_model(self) -> PreTrainedModel:
        """Load the model with a new classifier."""
        model = checkpoint.load_model(
            AutoModelForSequenceClassification,
            self.source,
            self.settings.seed,
            num_labels=len(self._labels),
            id2label=self._labels,
            label2id={label: index for index, label in self._labels.items()},
            problem_type="regression" if self._regression else "single_label_classification",
        )
        model.config.pad_token_id = self.tokenizer.pad_token_id
        return model

    def score(self, evaluated: str, outputs: Any, labels: Any) -> dict[str, float]:  # noqa: ANN401
        """Compare the likeliest classes, or the numbers, with the labels."""
        logits = np.asarray(outputs)
        predictions = logits if self._regression else np.argmax(logits, axis=-1)
        return metrics.compute(self.metric_names, predictions, labels)


def tokenize(
    examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase, max_length: int
) -> list[Row]:
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


def _load(settings: Settings) -> TaskData:
    if settings.task == "docstrings":
        return docstrings.load()
    if settings.data is None:
        return glue.load_hub(settings.task)
    if settings.task == "custom":
        return columns.load(settings.data, settings)
    return glue.load_files(settings.task, settings.data)
