"""The tasks of `int8tile finetune`. Start at `prepare`."""

from __future__ import annotations

from int8tile.finetune import checkpoint
from int8tile.finetune.settings import SQUAD_TASKS, Settings
from int8tile.finetune.tasks.base import Task
from int8tile.finetune.tasks.causal_lm import CausalLM
from int8tile.finetune.tasks.classification import Classification
from int8tile.finetune.tasks.question_answering import QuestionAnswering

__all__ = ["Task", "prepare"]


def prepare(settings: Settings) -> Task:
    """Find the model, read the task and tokenize it.

    Args:
        settings: The run's settings.

    Returns:
        The task.

    Raises:
        UsageError: Something that the settings name is missing or broken.
    """
    source = checkpoint.find_model(settings.model)
    tokenizer = checkpoint.load_tokenizer(source, settings.tokens)
    if settings.task in SQUAD_TASKS:
        return QuestionAnswering(settings, source, tokenizer)
    if settings.task == "clm":
        return CausalLM(settings, source, tokenizer)
    return Classification(settings, source, tokenizer)
