"""Finds the answer to a question in its context, or says that there is none: SQuAD."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers import (
    AutoModelForQuestionAnswering,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from int8tile.finetune import checkpoint, squad, squad_metrics
from int8tile.finetune.examples import limited
from int8tile.finetune.settings import Settings, UsageError
from int8tile.finetune.squad import Question
from int8tile.finetune.tasks.answers import predict
from int8tile.finetune.tasks.base import Task
from int8tile.finetune.tasks.windows import Window, windows


class QuestionAnswering(Task):
    """SQuAD v1.1 and v2.0.

    The evaluation loss is that of the first answer, over windows.

    Args:
        settings: The run's settings.
        source: Directory or hub id of the model.
        tokenizer: The model's tokenizer.

    Raises:
        UsageError: The tokenizer does not know the characters of each token.
    """

    unit = "windows"

    def __init__(self, settings: Settings, source: str, tokenizer: PreTrainedTokenizerBase) -> None:
        if not tokenizer.is_fast:
            raise UsageError(
                f"int8tile finetune: --model must have a fast tokenizer for the {settings.task} "
                f"task; {source} has {type(tokenizer).__name__}"
            )
        tokenizer.padding_side = "right"  # an answer is found by the index of its tokens
        task = settings.task
        data = squad.load_hub(task) if not settings.data else squad.load_files(task, settings.data)
        train = limited(data.train, settings.max_train)
        self._questions: Sequence[Question] = limited(data.evaluation, settings.max_eval)
        # By length: windows that share a batch then need less padding.
        self._windows: Sequence[Window] = sorted(
            windows(self._questions, tokenizer, settings), key=lambda window: len(window.spans)
        )
        super().__init__(
            settings,
            source,
            tokenizer,
            metric_names=squad_metrics.METRIC_NAMES[task],
            train=[window.inputs for window in windows(train, tokenizer, settings)],
            evaluation={"eval": [window.inputs for window in self._windows]},
            facts={"train_questions": len(train), "eval_questions": len(self._questions)},
        )

    def load_model(self) -> PreTrainedModel:
        """Load the model with a new layer for the first and last token."""
        return checkpoint.load_model(AutoModelForQuestionAnswering, self.source, self.settings.seed)

    def score(self, evaluated: str, outputs: Any, labels: Any) -> dict[str, float]:  # noqa: ANN401
        """Compare the predicted answers with the right ones."""
        starts, ends, *_ = outputs
        answers = predict(self._questions, self._windows, starts, ends, self.settings)
        return squad_metrics.compute(self.settings.task, answers, self._questions)
