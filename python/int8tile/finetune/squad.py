"""Reads SQuAD, v1.1 and v2.0, from its JSON files or from the hub."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from int8tile.finetune import hub
from int8tile.finetune.settings import UsageError

HUB_DATASETS = {"squad": "rajpurkar/squad", "squad_v2": "rajpurkar/squad_v2"}
VERSIONS = {"squad": "v1.1", "squad_v2": "v2.0"}


@dataclass(frozen=True)
class Answer:
    """A span of the context.

    Args:
        text: The span.
        start: Index of its first character in the context.
    """

    text: str
    start: int


@dataclass(frozen=True)
class Question:
    """A question about one paragraph.

    Args:
        text: The question.
        context: The paragraph.
        answers: The right answers, of which training uses the first; empty where there is none.
    """

    text: str
    context: str
    answers: tuple[Answer, ...]


@dataclass(frozen=True)
class SquadData:
    """The questions of one task.

    Args:
        train: To train on.
        evaluation: To evaluate on.
    """

    train: Sequence[Question]
    evaluation: Sequence[Question]


def load_files(task: str, data: Path) -> SquadData:
    """Read train.json and dev.json, which may have their official names, such as dev-v2.0.json.

    Args:
        task: "squad" or "squad_v2".
        data: Their folder, or one with a folder named as the task.

    Returns:
        The questions.

    Raises:
        UsageError: A file is missing or broken, or an answer is not in its context.
    """
    return SquadData(*(read_questions(_find(task, data, stem), task) for stem in ("train", "dev")))


def load_hub(task: str) -> SquadData:
    """Load the questions from the Hugging Face hub (or its cache).

    Args:
        task: "squad" or "squad_v2".

    Returns:
        The questions.

    Raises:
        UsageError: The hub cannot be reached.
    """
    splits = hub.load_dataset(HUB_DATASETS[task], files="SQuAD .json")
    return SquadData(
        *([_from_row(row) for row in splits[split]] for split in ("train", "validation"))
    )


def read_questions(file: Path, task: str) -> list[Question]:
    """Read one file.

    Args:
        file: JSON in the format of SQuAD.
        task: "squad", whose every question has an answer, or "squad_v2".

    Returns:
        Its questions, in order.

    Raises:
        UsageError: The file is broken or holds none, or an answer is not in its context.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UsageError(f"int8tile finetune: cannot read {file}: {error}") from error
    questions = list(_questions(_Node(file, "", content), task))
    if not questions:
        raise UsageError(f"int8tile finetune: {file} must hold at least one question; it has none")
    return questions


@dataclass(frozen=True)
class _Node:
    """A JSON value that knows where it stands, to say so."""

    file: Path
    path: str
    value: Any

    def get(self, key: str, kind: type) -> Any:  # noqa: ANN401 - a value of that kind
        got = self.value.get(key) if isinstance(self.value, dict) else None
        if not isinstance(got, kind) or isinstance(got, bool):
            raise self.error(f"have {key!r}, {NAMES[kind]}", type(got).__name__)
        return got

    def items(self, key: str) -> Iterator[_Node]:
        for i, item in enumerate(self.get(key, list)):
            yield _Node(self.file, f"{self.path}.{key}[{i}]".lstrip("."), item)

    def error(self, wanted: str, got: str) -> UsageError:
        place = f"{self.file}: {self.path}" if self.path else str(self.file)
        return UsageError(f"int8tile finetune: {place} must {wanted}; got {got}")


NAMES = {list: "a list", str: "a string", int: "a whole number"}


def _questions(root: _Node, task: str) -> Iterator[Question]:
    for article in root.items("data"):
        for paragraph in article.items("paragraphs"):
            context = paragraph.get("context", str)
            for qa in paragraph.items("qas"):
                asked = qa.get("question", str)
                impossible = task == "squad_v2" and qa.value.get("is_impossible") is True
                answers = () if impossible else tuple(_answers(qa, context))
                if task == "squad" and not answers:
                    raise qa.error("have an answer (or use --task squad_v2)", "none")
                yield Question(asked, context, answers)


def _answers(qa: _Node, context: str) -> Iterator[Answer]:
    for item in qa.items("answers"):
        text, start = item.get("text", str), item.get("answer_start", int)
        stands = context[start : start + len(text)] if start >= 0 else ""
        if not text or stands != text:
            raise item.error(
                f"have its text at {start} of the context of {len(context)} characters, "
                f"{text[:40]!r}",
                repr(stands[:40]),
            )
        yield Answer(text, start)


def _find(task: str, data: Path, stem: str) -> Path:
    names = (f"{stem}.json", f"{stem}-{VERSIONS[task]}.json")
    tried = [folder / name for folder in (data, data / task) for name in names]
    file = next((each for each in tried if each.is_file()), None)
    if file is None:
        raise UsageError(
            f"int8tile finetune: --data needs the {task} files; "
            f"none of {', '.join(map(str, tried))} found"
        )
    return file


def _from_row(row: Mapping[str, Any]) -> Question:
    found = row["answers"]
    answers = zip(found["text"], found["answer_start"], strict=True)
    return Question(row["question"], row["context"], tuple(Answer(*each) for each in answers))
