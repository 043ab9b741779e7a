"""What one fine-tuning run is asked to do, checked before any work."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

GLUE_TASKS = ("sst2", "mrpc", "rte", "cola", "qnli", "qqp", "mnli", "stsb", "wnli")
SQUAD_TASKS = ("squad", "squad_v2")
HUB_TASKS = (*GLUE_TASKS, *SQUAD_TASKS)  # read from the hub where there is no --data
TASK_NAMES = ("docstrings", *HUB_TASKS, "clm", "custom")
METRIC_NAMES = ("accuracy", "f1", "macro_f1", "matthews", "pearson", "spearman")
ARM_NAMES = (
    *("fp32", "bf16", "int8", "int8-split", "int8-gain"),
    *("paper-int8", "paper-split"),
)
DEFAULT_ARMS = ("fp32", "int8", "int8-split")
OUTLIER_BITS = range(8, 16)
MAX_LENGTH, SQUAD_MAX_LENGTH = 128, 384  # tokens, where the settings leave it open
MAX_QUESTION_LENGTH = 64  # tokens
# Settings that a run may change when it goes on.
RUN_SETTINGS = ("threads", "fsdp", "save_every", "keep", "resume", "timeout", "output")
SPECIAL_TOKENS = 4  # the most that a tokenizer adds to a pair of texts


class UsageError(ValueError):
    """A request that cannot be met: the message says what is required and what came."""


@dataclass(frozen=True)
class Settings:
    """The settings of `int8tile finetune`.

    Args:
        model: Hub id or directory of a transformers model; None takes the packaged MiniLM.
        task: One of `TASK_NAMES`.
        data: Folder of the task's files, or the text file of clm; None reads GLUE and SQuAD from
            the Hugging Face hub.
        text_columns: One or two columns of the custom task's files that hold the texts.
        label_column: The column that holds the label.
        regression: Take the custom task's labels as numbers to predict even if all are whole.
        metrics: Metrics of a classification or regression, the headline first: some of
            `METRIC_NAMES`; None takes the task's own.
        arms: What to compare, in order: some of `ARM_NAMES`.
        threshold: Activations above it are outliers, in real units (int8-split, int8-gain,
            paper-split).
        outlier_bits: Significant bits of an outlier, 8..15.
        lora_rank: Rank of LoRA adapters beside frozen layers; None trains all weights.
        lora_alpha: Adapters are scaled by alpha / rank; None: twice the rank.
        lora_target: Names of the layers that get one, or "all-linear"; None: peft's choice for the
            architecture.
        stress: Factor K of the injected outliers (see `stress.Stress`); 1 injects none.
        max_steps: The most optimizer steps; None runs all epochs.
        max_train: The most training examples (questions, or blocks of text); None uses all.
        max_eval: The most examples of each evaluation set; None uses all.
        epochs: Passes over the training examples.
        batch_size: Examples per optimizer step.
        group_by_length: Put examples of about the same length in one batch, which leaves less
            padding to compute; False: batches at random.
        lr: Peak learning rate, reached after a tenth of the steps, then falling to 0.
        seed: Seed of the new classifier, the order of the data and dropout.
        max_length: Tokens of one example at most: the rest is cut off, a context of SQuAD is read
            in windows, a text in blocks. None: 384 for SQuAD, else 128.
        doc_stride: Tokens that two windows of one context share; None: a third of the length.
        max_answer_length: Tokens of a predicted answer at most.
        null_threshold: squad_v2 predicts no answer where its score exceeds the best answer's by
            more than this.
        threads: CPU threads; None keeps torch's choice.
        fsdp: Share out the weights among the processes with FSDP2; False: each holds all.
        save_every: Optimizer steps from one checkpoint to the next; None saves one only when the
            run is interrupted.
        keep: Newest checkpoints kept of each arm.
        resume: Go on with the run whose checkpoints are in `output`.
        timeout: Seconds to wait for another process before the run ends.
        output: Folder for metrics.json, curves.png and the last arm's model.

    Raises:
        UsageError: A value is out of its range.
    """

    model: str | None = None
    task: str = "docstrings"
    data: Path | None = None
    text_columns: tuple[str, ...] | None = None
    label_column: str | None = None
    regression: bool = False
    metrics: tuple[str, ...] | None = None
    arms: tuple[str, ...] = DEFAULT_ARMS
    threshold: float = 5.0
    outlier_bits: int = 12
    lora_rank: int | None = None
    lora_alpha: int | None = None
    lora_target: tuple[str, ...] | None = None
    stress: float = 1.0
    max_steps: int | None = None
    max_train: int | None = None
    max_eval: int | None = None
    epochs: float = 2.0
    batch_size: int = 32
    group_by_length: bool = False
    lr: float = 5e-4
    seed: int = 0
    max_length: int | None = None
    doc_stride: int | None = None
    max_answer_length: int = 30
    null_threshold: float = 0.0
    threads: int | None = None
    fsdp: bool = False
    save_every: int | None = None
    keep: int = 2
    resume: bool = False
    timeout: float = 600.0
    output: Path = Path("int8tile-output")
    OPTIONS: ClassVar[Mapping[str, str]] = {}  # names of options that differ from the settings'

    def __post_init__(self) -> None:
        """Check every value."""
        self._require(self.task in TASK_NAMES, "task", f"one of {', '.join(TASK_NAMES)}", self.task)
        known = set(self.arms) <= set(ARM_NAMES)
        distinct = len(set(self.arms)) == len(self.arms)
        arms = f"one or more different ones of {','.join(ARM_NAMES)}"
        self._require(bool(self.arms) and known and distinct, "arms", arms, ",".join(self.arms))
        for name in ("threshold", "stress", "epochs", "lr", "timeout"):
            value = getattr(self, name)
            self._require(math.isfinite(value) and value > 0, name, "above 0 and finite", value)
        for name in (
            *("max_steps", "max_train", "max_eval", "batch_size", "threads"),
            *("max_answer_length", "save_every", "keep", "lora_rank", "lora_alpha"),
        ):
            value = getattr(self, name)
            self._require(value is None or value >= 1, name, "at least 1", value)
        self._require(0 <= self.seed < 2**32, "seed", "0..4294967295", self.seed)
        self._require(self.outlier_bits in OUTLIER_BITS, "outlier-bits", "8..15", self.outlier_bits)
        self._check_lora()
        self._check_task()
        self._check_lengths()

    @property
    def tokens(self) -> int:
        """Tokens of one example at most: `max_length`, or the task's own."""
        own = SQUAD_MAX_LENGTH if self.task in SQUAD_TASKS else MAX_LENGTH
        return own if self.max_length is None else self.max_length

    @property
    def question_tokens(self) -> int:
        """Tokens of a question of SQuAD at most, so that its context has room beside it."""
        return min(MAX_QUESTION_LENGTH, self.tokens // 3)

    @property
    def stride(self) -> int:
        """Tokens that two windows of one context share."""
        return self.tokens // 3 if self.doc_stride is None else self.doc_stride

    @property
    def alpha(self) -> int:
        """The numerator of the adapters' scale."""
        return 2 * (self.lora_rank or 0) if self.lora_alpha is None else self.lora_alpha

    def _check_lora(self) -> None:
        """Check that adapters are asked for where their options are given."""
        for name in ("lora_alpha", "lora_target"):
            value = getattr(self, name)
            fine = self.lora_rank is not None or value is None
            self._require(fine, name, "left out without --lora-rank", value)
        target = self.lora_target
        got = ",".join(target or ())
        self._require(target is None or all(target), "lora-target", "names of layers", got)

    def _check_task(self) -> None:
        """Check what only some tasks take, and what some need."""
        task = self.task
        if task == "docstrings":
            self._require(self.data is None, "data", "left out with the docstrings task", self.data)
        if task in ("clm", "custom"):
            what = "a text file or a folder" if task == "clm" else "a folder"
            self._require(self.data is not None, "data", f"{what} for the {task} task", self.data)
        if task == "clm":
            wanted = "a causal language model for the clm task"
            self._require(self.model is not None, "model", wanted, self.model)
        for name in ("text_columns", "label_column", "regression"):
            value = getattr(self, name)
            wanted = "left out unless the task is custom"
            self._require(task == "custom" or not value, name, wanted, value)
        columns = self.text_columns
        fine = columns is None or (0 < len(set(columns)) == len(columns) < 3 and all(columns))
        self._require(fine, "text-columns", "one or two different columns", ",".join(columns or ()))
        if self.metrics is not None:
            got = ",".join(self.metrics)
            classifies = task not in (*SQUAD_TASKS, "clm")
            self._require(classifies, "metrics", f"left out with the {task} task", got)
            known = set(self.metrics) <= set(METRIC_NAMES)
            distinct = len(set(self.metrics)) == len(self.metrics) > 0
            wanted = f"one or more different ones of {','.join(METRIC_NAMES)}"
            self._require(known and distinct, "metrics", wanted, got)

    def _check_lengths(self) -> None:
        """Check the tokens of an example, and that windows move on."""
        if self.task not in SQUAD_TASKS:
            self._require(self.tokens >= 3, "max-length", "at least 3 tokens", self.tokens)
            self._require(
                self.doc_stride is None,
                "doc-stride",
                "left out unless the task is squad or squad_v2",
                self.doc_stride,
            )
            return
        self._require(self.tokens >= 16, "max-length", f"at least 16 for {self.task}", self.tokens)
        most = self.tokens - self.question_tokens - SPECIAL_TOKENS - 1
        wanted = f"0..{most} with {self.tokens} tokens"
        self._require(0 <= self.stride <= most, "doc-stride", wanted, self.stride)
        finite = math.isfinite(self.null_threshold)
        self._require(finite, "null-threshold", "finite", self.null_threshold)

    def arguments(self) -> dict[str, Any]:
        """Give all settings as JSON values.

        Returns:
            Name of each setting -> its value.
        """
        values = asdict(self) | {"max_length": self.tokens}
        return {name: str(v) if isinstance(v, Path) else v for name, v in values.items()}

    def identity(self) -> dict[str, Any]:
        """Give the settings that decide what is computed, as JSON values.

        Returns:
            All but where to write, what to save and how many threads to use.
        """
        return {n: v for n, v in self.arguments().items() if n not in RUN_SETTINGS}

    def _require(self, holds: bool, name: str, wanted: str, got: object) -> None:
        """Raise unless a condition on one setting holds."""
        if not holds:
            option = self.OPTIONS.get(name, name.replace("_", "-"))
            raise UsageError(f"int8tile finetune: --{option} must be {wanted}; got {got}")
