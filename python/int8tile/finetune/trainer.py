"""The Hugging Face Trainer, made exact for any number of processes and for runs cut in two."""

from __future__ import annotations

from functools import reduce
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import transformers
from torch.utils.data import DataLoader, Dataset
from transformers import EvalPrediction, PreTrainedModel, Trainer
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME
from transformers.trainer_callback import PrinterCallback
from transformers.trainer_pt_utils import nested_concat, nested_numpify
from transformers.trainer_utils import EvalLoopOutput

from int8tile.finetune import fsdp
from int8tile.finetune.interruption import Interruption
from int8tile.finetune.processes import Processes
from int8tile.finetune.quiet import quiet
from int8tile.finetune.sharding import EvalBatches, Loader, TrainBatches
from int8tile.finetune.tasks import Task
from int8tile.finetune.tasks.base import Rows

# The Trainer's attribute that is true for a model which shares out its weights itself.
OWN_SHARDING = "is_distributed_loading_by_transformers"
PADDING = -100  # of outputs whose batches differ in length


class ArmTrainer(Trainer):
    """Trains on the batches that one process would, and evaluates each example once.

    Args:
        model: The model.
        task: The data and the metrics.
        processes: The run's processes.
        interruption: Ends an evaluation early, which then gives no loss and no metrics.
        **options: More arguments of the Trainer.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        task: Task,
        processes: Processes,
        interruption: Interruption,
        **options: Any,  # noqa: ANN401
    ) -> None:
        settings = task.settings
        self._processes = processes
        self._interruption = interruption
        self._collate = task.collate
        self._reduce_outputs = task.reduce_outputs
        self._grouped = settings.group_by_length
        self._batches = TrainBatches(
            len(task.train),
            settings.batch_size,
            settings.seed,
            processes,
            self._lengths(task.train),
        )
        self.step_loss = 0.0
        super().__init__(
            model=model,
            data_collator=task.collate,
            train_dataset=cast("Dataset[Any]", task.train),  # a list is one
            **options,
        )
        self.model_accepts_loss_kwargs = False  # the loss is the mean over a process's examples
        if fsdp.is_sharded(model):
            self._leave_sharding_to_the_model()
        self.remove_callback(PrinterCallback)

    def _leave_sharding_to_the_model(self) -> None:
        """Keep the Trainer from wrapping a model that shares out weights and gradients itself."""
        if not hasattr(self, OWN_SHARDING):
            raise ImportError(
                f"int8tile finetune: --fsdp needs a transformers whose Trainer has {OWN_SHARDING}; "
                f"got transformers {transformers.__version__}: pip install 'int8tile[demo]'"
            )
        setattr(self, OWN_SHARDING, True)

    def _move_model_to_device(self, model: Any, device: Any) -> None:  # noqa: ANN401
        if not fsdp.is_sharded(model):
            super()._move_model_to_device(model, device)

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Give this process's share of each batch."""
        return Loader(self.train_dataset, self._batches, self._collate)

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader[Any]:  # noqa: ANN401
        """Give this process's share of the evaluation batches."""
        rows = cast("Rows", self.eval_dataset if eval_dataset is None else eval_dataset)
        size = self.args.per_device_eval_batch_size
        batches = EvalBatches(len(rows), size, self._processes, self._lengths(rows))
        return Loader(rows, batches, self._collate)

    def _lengths(self, rows: Rows) -> list[int] | None:
        """Give the tokens of each row; None where batches are not grouped by it."""
        return [len(row["input_ids"]) for row in rows] if self._grouped else None

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,  # noqa: ANN401
    ) -> Any:  # noqa: ANN401
        """Compute the mean loss, weighted in training by this process's share of the batch."""
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True)
        if model.training and self._processes.count > 1:
            loss = loss * self._batches.weight(self.state.global_step)
        return (loss, outputs) if return_outputs else loss

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:  # noqa: ANN401
        """Train on this process's share of a batch, and remember its loss."""
        loss = super().training_step(*args, **kwargs)
        self.step_loss = float(loss)
        return loss

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the model without a bar for its files."""
        with quiet():
            if self.model is not None and fsdp.is_sharded(self.model):
                self._save(output_dir, fsdp.full_state(self.model))
            else:
                super().save_model(output_dir, _internal_call)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if not fsdp.is_sharded(self.model):
            super()._save_optimizer_and_scheduler(output_dir)
            return
        assert self.optimizer is not None
        assert self.lr_scheduler is not None
        states = {
            OPTIMIZER_NAME: fsdp.full_optimizer_state(self.optimizer),
            SCHEDULER_NAME: self.lr_scheduler.state_dict(),
        }
        if self._processes.first:
            for name, state in states.items():
                torch.save(state, Path(output_dir, name))

    def _load_from_checkpoint(self, *args: object) -> None:
        """Do nothing: the weights were loaded before the model was sharded."""

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None or not fsdp.is_sharded(self.model):
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        assert self.optimizer is not None
        assert self.lr_scheduler is not None
        states = [
            torch.load(Path(checkpoint, name), weights_only=True)
            for name in (OPTIMIZER_NAME, SCHEDULER_NAME)
        ]
        fsdp.load_optimizer_state(self.optimizer, states[0])
        self.lr_scheduler.load_state_dict(states[1])

    def save_checkpoint(self) -> None:
        """Save a checkpoint now, as the Trainer does between two steps."""
        self._save_checkpoint(self.model_wrapped, trial=None)
        self.control = self.callback_handler.on_save(self.args, self.state, self.control)

    def evaluation_loop(
        self,
        dataloader: DataLoader[Any],
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """Evaluate, each process some of the batches, and the first one the metrics.

        The random state stays as it was, so that it is the same with and without evaluation.
        """
        batches = cast("EvalBatches", dataloader.batch_sampler)
        devices = [self.args.device] if self.args.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            found = self._predict(dataloader)
        metrics: dict[str, float] = {}
        if found is not None:
            parts = self._processes.gather(found)
            metrics = self._processes.from_first(
                lambda: self._score(batches, batches.in_order(parts or []), metric_key_prefix)
            )
        return EvalLoopOutput(None, None, metrics, len(dataloader.dataset))  # type: ignore[arg-type]

    def _predict(self, dataloader: DataLoader[Any]) -> list[Any] | None:
        """Give loss, outputs and labels of each batch; None after an interrupt."""
        assert self.model is not None
        self.model.eval()
        found = []
        for inputs in dataloader:
            if self._interruption.asked:
                return None
            loss, outputs, labels = cast("Any", self.prediction_step(self.model, inputs, False))
            outputs = self._reduce_outputs(outputs, labels)
            found.append((float(loss), nested_numpify(outputs), nested_numpify(labels)))
        return found

    def _score(self, batches: EvalBatches, found: list[Any], prefix: str) -> dict[str, float]:
        losses, outputs, labels = zip(*found, strict=True)
        sizes = [len(batch) for batch in batches.batches]
        joined = (reduce(_join, each) for each in (outputs, labels))
        whole = EvalPrediction(*(_take(each, batches.places) for each in joined))
        assert self.compute_metrics is not None
        values = self.compute_metrics(whole) | {"loss": float(np.average(losses, weights=sizes))}
        return {f"{prefix}_{name}": value for name, value in values.items()}


def _join(one: Any, other: Any) -> Any:  # noqa: ANN401
    return nested_concat(one, other, padding_index=PADDING)


def _take(values: Any, places: np.ndarray) -> Any:  # noqa: ANN401
    """Give the rows at these places, of an array or of each of several."""
    if isinstance(values, (list, tuple)):
        return tuple(_take(each, places) for each in values)
    return values[places]
