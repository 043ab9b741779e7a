"""Cuts the contexts of SQuAD into windows of tokens that overlap, and finds the answers in them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers import BatchEncoding, PreTrainedTokenizerBase

from int8tile.finetune.settings import Settings
from int8tile.finetune.squad import Answer, Question

CHUNK = 1000  # questions tokenized at once
Spans = NDArray[np.int32]


@dataclass(frozen=True)
class Window:
    """One window: a question with a part of its context.

    Args:
        question: Index of the question.
        inputs: What the model takes, with the first and last token of the answer; both are
            `null` where the window does not hold the whole answer.
        spans: [tokens, 2] int32 first character of each token in the context, and the one after
            its last; -1 for a token that is not of the context.
        null: Index of the token that stands for no answer.
    """

    question: int
    inputs: dict[str, Any]
    spans: Spans
    null: int


def windows(
    questions: Sequence[Question], tokenizer: PreTrainedTokenizerBase, settings: Settings
) -> Iterator[Window]:
    """Tokenize questions.

    Args:
        questions: The questions.
        tokenizer: The model's tokenizer; one that knows the characters of each token.
        settings: Give the tokens of a window, of its question, and those that two share.

    Yields:
        At least one window of each question, in order.
    """
    for begin in range(0, len(questions), CHUNK):
        chunk = questions[begin : begin + CHUNK]
        batch = tokenizer(
            _cut([question.text for question in chunk], tokenizer, settings.question_tokens),
            [question.context for question in chunk],
            truncation="only_second",
            max_length=settings.tokens,
            stride=settings.stride,
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
        )
        for i, of in enumerate(batch["overflow_to_sample_mapping"]):
            yield _window(batch, i, begin + of, chunk[of].answers, tokenizer)


def _window(
    batch: BatchEncoding,
    i: int,
    question: int,
    answers: Sequence[Answer],
    tokenizer: PreTrainedTokenizerBase,
) -> Window:
    inputs = {name: batch[name][i] for name in tokenizer.model_input_names if name in batch}
    spans = np.array(batch["offset_mapping"][i], dtype=np.int32)
    spans[[sequence != 1 for sequence in batch.sequence_ids(i)]] = -1
    null = _null(inputs["input_ids"], tokenizer)
    first, last = _locate(answers, spans) or (null, null)
    inputs |= {"start_positions": first, "end_positions": last}
    return Window(question, inputs, spans, null)


def _cut(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, tokens: int) -> list[str]:
    """Cut questions that would leave their context no room."""
    bare = [text.strip() for text in texts]  # some in SQuAD start with many spaces
    offsets = tokenizer(bare, add_special_tokens=False, return_offsets_mapping=True)
    return [
        text if len(spans) <= tokens else text[: spans[tokens - 1][1]]
        for text, spans in zip(bare, offsets["offset_mapping"], strict=True)
    ]


def _null(ids: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> int:
    for token in (tokenizer.cls_token_id, tokenizer.bos_token_id):
        if token is not None and token in ids:
            return list(ids).index(token)
    return 0


def _locate(answers: Sequence[Answer], spans: Spans) -> tuple[int, int] | None:
    """Find the tokens of the first answer, if the window holds all of it."""
    if not answers:
        return None
    start = answers[0].start
    end = start + len(answers[0].text)
    begins, ends = spans.T
    inside = np.flatnonzero(ends > begins)  # a token may also be of no character
    if not len(inside) or begins[inside[0]] > start or ends[inside[-1]] < end:
        return None
    tokens = inside[(begins[inside] < end) & (ends[inside] > start)]
    return (int(tokens[0]), int(tokens[-1])) if len(tokens) else None
