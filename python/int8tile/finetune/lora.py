"""LoRA of peft: a frozen model and small trained adapters beside some of its linear layers."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from transformers import PreTrainedModel

from int8tile.finetune.checkpoint import new_modules
from int8tile.finetune.quiet import quiet
from int8tile.finetune.settings import SQUAD_TASKS, Settings, UsageError

ALL_LINEAR = "all-linear"  # peft's word for every linear layer but the head


def adapt(model: PreTrainedModel, settings: Settings) -> PreTrainedModel:
    """Freeze a model and add adapters, the same ones for every arm.

    Trained are the adapters and what is new in the model, such as a classifier.

    Args:
        model: Converted or not: its adapters stay in float.
        settings: Give rank, alpha, target layers, task and seed.

    Returns:
        The same layers in a PeftModel.

    Raises:
        UsageError: No layer has one of the names in `lora_target`, or peft knows no default for the
            model.
    """
    import peft

    assert settings.lora_rank is not None
    wanted = settings.lora_target
    _check_targets(model, wanted or ())
    targets = list(wanted) if wanted else None
    config = peft.LoraConfig(
        task_type=_task_type(settings.task),
        r=settings.lora_rank,
        lora_alpha=settings.alpha,
        target_modules=ALL_LINEAR if targets == [ALL_LINEAR] else targets,
        modules_to_save=new_modules(model) or None,
    )
    with _known(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        try:
            adapted = peft.get_peft_model(model, config)
        except ValueError as error:
            raise UsageError(
                f"int8tile finetune: --lora-target must name linear layers of "
                f"{type(model).__name__}; got {','.join(wanted or ('no names',))}: {error}"
            ) from error
    return cast("PreTrainedModel", adapted)  # it trains, saves and evaluates like one


def _check_targets(model: PreTrainedModel, wanted: tuple[str, ...]) -> None:
    """Raise for a name that peft would leave out without a word, since others have a layer."""
    names = [f".{name}" for name, _ in model.named_modules()]
    lost = [
        target
        for target in wanted
        if (target != ALL_LINEAR or len(wanted) > 1)
        and not any(name.endswith(f".{target}") for name in names)
    ]
    if lost:
        raise UsageError(
            f"int8tile finetune: --lora-target must name linear layers of {type(model).__name__}, "
            f"or be {ALL_LINEAR} alone; got {','.join(lost)}"
        )


def is_adapted(model: torch.nn.Module) -> bool:
    """Tell whether a model is one that `adapt` made."""
    return hasattr(model, "peft_config") and hasattr(model, "merge_and_unload")


def adapter_state(model: Any) -> dict[str, torch.Tensor]:  # noqa: ANN401 - of peft
    """Give what an adapted model trains, by the names that its checkpoints have."""
    import peft

    state: dict[str, torch.Tensor] = peft.get_peft_model_state_dict(model)
    return state


def load_adapter_state(model: Any, state: dict[str, torch.Tensor]) -> None:  # noqa: ANN401
    """Put back what `adapter_state` gave."""
    import peft

    peft.set_peft_model_state_dict(model, state)


def plain_name(name: str) -> str:
    """Give the name that a module had before its model was adapted.

    Args:
        name: Of a module of any model.
    """
    plain = name.removeprefix("base_model.model.").removesuffix(".base_layer")
    return plain.removesuffix(".modules_to_save.default")


def merge(model: Any, folder: Path) -> PreTrainedModel:  # noqa: ANN401
    """Save the adapter in peft's format, and add it to the weights of the model.

    Args:
        model: What `adapt` made, its layers in float.
        folder: Where to save the adapter.

    Returns:
        The model without adapters.
    """
    with quiet(), _known():
        model.save_pretrained(folder)
        merged: PreTrainedModel = model.merge_and_unload()
    return merged


def _task_type(task: str) -> str:
    if task == "clm":
        return "CAUSAL_LM"
    return "QUESTION_ANS" if task in SQUAD_TASKS else "SEQ_CLS"


@contextmanager
def _known() -> Iterator[None]:
    """Keep to itself what peft corrects on its own."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated")
        warnings.filterwarnings("ignore", "fan_in_fan_out is set to False", UserWarning)
        yield
