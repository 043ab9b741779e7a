"""Whole training steps: forward, backward and AdamW of real model shapes, 2,048 tokens each.

    python bench/bench_step.py --models bert-base --dropout off --json out.json

Start reading at `measure`.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from checks import op_counts, require
from int8tile.finetune.memory import release_memory, saved_bytes
from report import choices, environment, json_path, parsed, print_head, progress, write_json
from shapes import parse_numbers
from step_memory import peak_bytes
from steps import (
    ARMS,
    DROPOUTS,
    KNOWN_ARMS,
    MODELS,
    WITHOUT_DROPOUT,
    Setup,
    Training,
    as_arm,
    loss_of,
)
from tables import step_table
from timing import Candidate, alternate

LOSS_TOLERANCE = 0.05  # of the float32 loss
GRADIENT_TOLERANCE = 0.5  # |g - g32| / |g32| over all parameters: 60 degrees are 1
# Every converted layer calls one of each tuple once (the second where its input is shared).
INT8_OPS = (
    ("int8tile::linear_forward", "int8tile::linear_multiply"),
    ("int8tile::linear_grad_weight", "int8tile::linear_backward"),
)


def check(training: Training, arm: str, wanted: tuple[float, torch.Tensor]) -> dict[str, float]:
    """Compare an arm with float32 on the same parameters, and prove that it ran in int8.

    Args:
        training: The model, which stays float32.
        arm: One of `KNOWN_ARMS`.
        wanted: Loss and gradients of float32.

    Returns:
        The loss and the relative error of the gradients.

    Raises:
        CheckError: They are too far from float32, or int8 layers ran in float.
    """
    wanted_loss, wanted_grads = wanted
    loss, grads = training.gradients(arm)
    error = float((grads - wanted_grads).norm() / wanted_grads.norm())
    off = abs(loss - wanted_loss) / abs(wanted_loss)
    require(off <= LOSS_TOLERANCE, f"{arm}: loss {loss}, not {wanted_loss}")
    require(error <= GRADIENT_TOLERANCE, f"{arm}: gradients {error} off float32's")
    with as_arm(training.model, arm) as layers:
        if layers:
            require(error > 0, f"{arm}: gradients equal float32's, so int8 did not run")
            ops = op_counts(lambda: loss_of(training.model, arm, training.batch).backward())
            for names in INT8_OPS:
                count = sum(ops.get(name, 0) for name in names)
                require(count == layers, f"{arm}: {names} ran {count} times for {layers} layers")
    training.optimizer.zero_grad(set_to_none=True)
    return {"loss": loss, "gradient_error": error, "int8_layers": layers}


def measure(
    setup: Setup, arms: list[str], threads: int, budget: float, weighed: list[str]
) -> Iterator[dict[str, Any]]:
    """Check the arms, then time their steps in alternation on one model.

    Args:
        setup: The model.
        arms: Some of `KNOWN_ARMS`, "fp32" among them.
        threads: CPU threads.
        budget: Seconds of timed rounds.
        weighed: Arms whose peak memory is measured, each in a fresh process.

    Returns:
        A record for each arm.

    Raises:
        CheckError: An arm computes something else than it should.
    """
    torch.set_num_threads(threads)
    peaks = {arm: peak_bytes(setup, arm, threads) for arm in weighed}
    training = Training(setup)
    wanted = training.gradients("fp32")
    facts = {arm: check(training, arm, wanted) for arm in arms}
    saved, linear_saved = {}, {}
    for arm in arms:
        with as_arm(training.model, arm):
            loss = partial(loss_of, training.model, arm, training.batch)
            saved[arm] = saved_bytes(training.model, loss)
            linear_saved[arm] = saved_bytes(training.model, loss, within=torch.nn.Linear)
    candidates = {
        arm: Candidate(partial(training.step, arm), partial(training.become, arm)) for arm in arms
    }
    timings = alternate(candidates, budget)
    tokens = training.batch["input_ids"].numel()
    for arm, timing in timings.items():
        yield {
            "model": setup.model,
            "dropout": setup.dropout,
            "arm": arm,
            "threads": threads,
            "tokens": tokens,
            "parameters": sum(p.numel() for p in training.model.parameters()),
            "seconds": timing.spread().json(),
            "tokens_per_second": tokens / timing.spread().median,
            "speed_against_fp32": timing.speed_against(timings["fp32"]).json(),
            "peak_bytes": peaks.get(arm),
            "saved_bytes": saved[arm],
            "saved_against_fp32": saved[arm] / saved["fp32"],
            "linear_saved_bytes": linear_saved[arm],
            "linear_saved_against_fp32": linear_saved[arm] / linear_saved["fp32"],
            **facts[arm],
        }


def main(
    models: Annotated[str, typer.Option(help="Comma-separated.")] = ",".join(MODELS),
    dropout: Annotated[
        str, typer.Option(help="on: the models' own rates; off. Comma-separated.")
    ] = "on,off",
    arms: Annotated[str, typer.Option(help="Comma-separated; fp32 always runs.")] = ",".join(ARMS),
    threads: Annotated[str, typer.Option(help="Thread counts, comma-separated.")] = "2",
    budget: Annotated[float, typer.Option(help="Seconds of timed rounds for each model.")] = 60.0,
    memory: Annotated[
        bool, typer.Option(help="Measure peak memory in a fresh process for each arm.")
    ] = True,
    smoke: Annotated[bool, typer.Option("--smoke", help="Tiny models, in seconds.")] = False,
    json: Annotated[Path | None, typer.Option(help="Write all results to this file.")] = None,
) -> None:
    """Time whole training steps; losses, gradients and int8 layers are checked first."""
    if smoke:
        dropout, arms, threads, budget = "off", "int8-split", "1", 0.1
    arguments = {name: value for name, value in locals().items() if name != "json"}
    json = json_path(json)
    counts = parsed("threads", parse_numbers, threads, 1)
    chosen = parsed("arms", choices, arms, KNOWN_ARMS)
    wanted = list(dict.fromkeys(["fp32", *chosen]))
    cases = [
        (Setup(model, rate, smoke), count)
        for count in counts
        for model in parsed("models", choices, models, MODELS)
        for rate in parsed("dropout", choices, dropout, DROPOUTS)
        if model not in WITHOUT_DROPOUT or rate == "off"
    ]
    weighed = (chosen if smoke else wanted) if memory else []
    facts = environment(counts)
    results: list[dict[str, Any]] = []
    with progress(len(cases)) as step:
        for setup, count in cases:
            step(f"{setup}, {count} threads")
            results += measure(setup, wanted, count, budget, weighed)
            weighed = [] if smoke else weighed
            release_memory()
    print_head(facts, {})
    step_table(results)
    write_json(json, "step", arguments, facts, results, {})


if __name__ == "__main__":
    typer.run(main)
