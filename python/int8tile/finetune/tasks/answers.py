"""Turns the scores of windows into answers: the best span of each question, or none."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from int8tile.finetune.settings import Settings
from int8tile.finetune.squad import Question
from int8tile.finetune.tasks.windows import Window

N_BEST = 20  # starts, and ends, that are tried in a window
Scores = NDArray[Any]


def predict(
    questions: Sequence[Question],
    windows: Sequence[Window],
    starts: Scores,
    ends: Scores,
    settings: Settings,
) -> list[str]:
    """Choose each question's answer.

    A span's score is that of its start plus that of its end. A question's score for no answer is
    the least over its windows: each window that lacks the answer says that there is none.

    Args:
        questions: The questions.
        windows: Windows of the questions, in any order.
        starts: [windows, tokens] scores of the first token; what exceeds a window is ignored.
        ends: [windows, tokens] scores of the last token.
        settings: Give the longest answer; the task, squad_v2 of which may predict no answer, and
            its threshold.

    Returns:
        A span of each context; "" for no answer.
    """
    best: list[tuple[float, str]] = [(-np.inf, "")] * len(questions)
    null = [np.inf] * len(questions)
    for window, start, end in zip(windows, starts, ends, strict=True):
        of = window.question
        null[of] = min(null[of], float(start[window.null] + end[window.null]))
        score, span = best_span(window, start, end, settings.max_answer_length)
        if score > best[of][0]:
            best[of] = (score, questions[of].context[slice(*span)].strip())
    if settings.task == "squad_v2":
        threshold = settings.null_threshold
        return [
            "" if none - score > threshold else text
            for none, (score, text) in zip(null, best, strict=True)
        ]
    return [text for _, text in best]


def best_span(
    window: Window, start: Scores, end: Scores, max_answer_length: int
) -> tuple[float, tuple[int, int]]:
    """Find the best span of one window among its best starts and ends.

    Args:
        window: The window.
        start: [tokens] scores of the first token.
        end: [tokens] scores of the last token.
        max_answer_length: Tokens of a span at most.

    Returns:
        Its score and its characters of the context; -inf where no span is allowed.
    """
    of_context = window.spans[:, 0] >= 0
    masked = [np.where(of_context, each[: len(of_context)], -np.inf) for each in (start, end)]
    firsts, lasts = (np.argsort(-each, kind="stable")[:N_BEST] for each in masked)
    scores = masked[0][firsts][:, None] + masked[1][lasts]
    tokens = 1 + lasts - firsts[:, None]
    scores[(tokens < 1) | (tokens > max_answer_length)] = -np.inf
    i, j = np.unravel_index(np.argmax(scores), scores.shape)
    span = int(window.spans[firsts[i], 0]), int(window.spans[lasts[j], 1])
    return float(scores[i, j]), span
