"""SQuAD's metrics: exact match and F1 of normalised answers, as its official scripts have them."""

from __future__ import annotations

import math
import re
import string
from collections import Counter
from collections.abc import Sequence

from int8tile.finetune.squad import Question

METRIC_NAMES = {
    "squad": ("f1", "exact_match"),
    "squad_v2": (
        *("f1", "exact_match"),
        *("answerable_f1", "answerable_exact_match", "unanswerable_exact_match"),
    ),
}
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def compute(
    task: str, predictions: Sequence[str], questions: Sequence[Question]
) -> dict[str, float]:
    """Compute a task's metrics; its official script prints the same times 100.

    The best of a question's answers counts. In v2.0 an empty prediction says that there is no
    answer, which is right where there is none.

    Args:
        task: "squad" or "squad_v2".
        predictions: The predicted answer of each question.
        questions: The questions.

    Returns:
        Each of `METRIC_NAMES`, from 0 to 1; NaN where no question is of its kind.
    """
    kept = [gold_answers(question, task) for question in questions]
    pairs = list(zip(predictions, kept, strict=True))
    exact = [max(exact_match(got, answer) for answer in gold) for got, gold in pairs]
    both = [max(f1(got, answer, task) for answer in gold) for got, gold in pairs]
    has = [bool(question.answers) for question in questions]
    values = {
        "f1": _mean(both),
        "exact_match": _mean(exact),
        "answerable_f1": _mean([v for v, yes in zip(both, has, strict=True) if yes]),
        "answerable_exact_match": _mean([v for v, yes in zip(exact, has, strict=True) if yes]),
        "unanswerable_exact_match": _mean(
            [v for v, yes in zip(exact, has, strict=True) if not yes]
        ),
    }
    return {name: values[name] for name in METRIC_NAMES[task]}


def normalize(text: str) -> str:
    """Lower the case and drop punctuation, the articles a, an and the, and extra spaces."""
    bare = text.lower().translate(_PUNCTUATION)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", bare).split())


def gold_answers(question: Question, task: str) -> list[str]:
    """Give the texts to compare with; v2.0 drops those that are empty once normalised."""
    texts = [answer.text for answer in question.answers]
    if task == "squad":
        return texts
    return [text for text in texts if normalize(text)] or [""]


def exact_match(prediction: str, answer: str) -> float:
    """Tell, as 1 or 0, whether two answers are the same once normalised."""
    return float(normalize(prediction) == normalize(answer))


def f1(prediction: str, answer: str, task: str) -> float:
    """Give the harmonic mean of precision and recall of the words.

    Two answers without a word agree in v2.0 and share nothing in v1.1, as in the two scripts.
    """
    got, true = normalize(prediction).split(), normalize(answer).split()
    if task == "squad_v2" and not (got and true):
        return float(got == true)
    shared = sum((Counter(got) & Counter(true)).values())
    return 2 * shared / (len(got) + len(true)) if shared else 0.0


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if values else math.nan
