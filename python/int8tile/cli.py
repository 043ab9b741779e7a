"""The `int8tile` command: finetune, analyze, plan and info."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

import int8tile
from int8tile import gpus
from int8tile.finetune import Settings, UsageError, environment, run
from int8tile.finetune.analyze_command import analyze
from int8tile.finetune.interruption import InterruptedRun
from int8tile.finetune.options import (
    STRESS_HELP,
    BatchSizeOption,
    DocStrideOption,
    LabelColumnOption,
    ModelOption,
    RegressionOption,
    SeedOption,
    TaskOption,
    TextColumnsOption,
    output_option,
    training_option,
    what_option,
)
from int8tile.finetune.processes import LostProcessError, is_first, leave, resume_command
from int8tile.finetune.settings import (
    ARM_NAMES,
    DEFAULT_ARMS,
    MAX_LENGTH,
    METRIC_NAMES,
    SQUAD_MAX_LENGTH,
)

USAGE_ERROR, INTERRUPTED = 2, 130  # exit codes

app = typer.Typer(
    help="Fine-tune language models in int8, with outlier activations split into two int8 limbs.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)
DEFAULTS = Settings()
# The help shows the options of `finetune` in six groups.
arms_option = partial(typer.Option, rich_help_panel="Arms")
lora_option = partial(typer.Option, rich_help_panel="LoRA")
saving_option = partial(typer.Option, rich_help_panel="Long runs")


def main() -> None:
    """Run the command line."""
    try:
        app()
    except SystemExit as end:
        leave(end.code)
        raise


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"int8tile {int8tile.__version__}")
        raise typer.Exit


@app.callback()
def _top(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    pass


@contextmanager
def _clear_errors() -> Iterator[None]:
    """Print what the caller or the system got wrong as one line, and set the exit code.

    Of several processes only the first one prints, unless it is the one that is lost.
    """
    try:
        yield
    except (UsageError, NotImplementedError) as error:
        _complain(f"error: {error}")
        raise typer.Exit(USAGE_ERROR) from None
    except LostProcessError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from None
    except (ImportError, OSError) as error:
        _complain(f"error: {error}")
        raise typer.Exit(1) from None
    except InterruptedRun:
        _complain(f"interrupted; go on with: {resume_command(sys.argv)}")
        raise typer.Exit(INTERRUPTED) from None
    except KeyboardInterrupt:
        _complain("interrupted; nothing was written")
        raise typer.Exit(INTERRUPTED) from None


def _complain(line: str) -> None:
    if is_first():
        typer.echo(line, err=True)


def _split(text: str) -> tuple[str, ...]:
    """Read a list of names."""
    return tuple(name.strip() for name in text.split(","))


@app.command()
def finetune(
    model: ModelOption = None,
    task: TaskOption = DEFAULTS.task,
    data: Annotated[
        Path | None,
        what_option(
            "--data",
            help="Folder with train and dev files: .tsv of GLUE, .json of SQuAD, .tsv, .csv or "
            ".jsonl of a custom task; or the text of clm, a .txt file or a folder of them.",
            show_default="the hub for GLUE and SQuAD",
        ),
    ] = None,
    text_columns: TextColumnsOption = None,
    label_column: LabelColumnOption = None,
    regression: RegressionOption = DEFAULTS.regression,
    metrics: Annotated[
        str | None,
        what_option(
            "--metrics",
            help=f"Some of {','.join(METRIC_NAMES)}, the headline first.",
            show_default="the task's own",
        ),
    ] = None,
    max_train: Annotated[
        int | None, what_option("--max-train", help="Most training examples.")
    ] = None,
    max_eval: Annotated[
        int | None, what_option("--max-eval", help="Most examples of each evaluation set.")
    ] = None,
    max_length: Annotated[
        int | None,
        what_option(
            "--max-length",
            help="Most tokens of an example, a window of SQuAD, or a block of text.",
            show_default=f"{SQUAD_MAX_LENGTH} for SQuAD, else {MAX_LENGTH}",
        ),
    ] = None,
    doc_stride: DocStrideOption = None,
    max_answer_length: Annotated[
        int, what_option("--max-answer-length", help="Most tokens of an answer (SQuAD).")
    ] = DEFAULTS.max_answer_length,
    null_threshold: Annotated[
        float,
        what_option(
            "--null-threshold",
            help="squad_v2 predicts no answer where its score is higher than the best answer's "
            "by more than this.",
        ),
    ] = DEFAULTS.null_threshold,
    arms: Annotated[
        str, arms_option("--arms", help=f"Some of {','.join(ARM_NAMES)}, in order.")
    ] = ",".join(DEFAULT_ARMS),
    threshold: Annotated[
        float,
        arms_option("--threshold", help="Activations above it are outliers."),
    ] = DEFAULTS.threshold,
    outlier_bits: Annotated[
        int, arms_option("--outlier-bits", help="Bits of an outlier, 8 to 15.")
    ] = DEFAULTS.outlier_bits,
    stress: Annotated[
        float,
        arms_option(
            "--stress",
            metavar="K",
            help=STRESS_HELP,
        ),
    ] = DEFAULTS.stress,
    lora_rank: Annotated[
        int | None,
        lora_option("--lora-rank", help="Train adapters of this rank beside frozen layers."),
    ] = None,
    lora_alpha: Annotated[
        int | None,
        lora_option(
            "--lora-alpha",
            help="Adapters are scaled by alpha / rank.",
            show_default="twice the rank",
        ),
    ] = None,
    lora_target: Annotated[
        str | None,
        lora_option(
            "--lora-target",
            metavar="A[,B...]",
            help="Layers that get an adapter, or all-linear.",
            show_default="peft's choice",
        ),
    ] = None,
    epochs: Annotated[
        float, training_option("--epochs", help="Passes over the training examples.")
    ] = DEFAULTS.epochs,
    max_steps: Annotated[
        int | None, training_option("--max-steps", help="Most optimizer steps.")
    ] = None,
    batch_size: BatchSizeOption = DEFAULTS.batch_size,
    group_by_length: Annotated[
        bool,
        training_option(
            "--group-by-length",
            help="Batch examples of about the same length, to compute less padding.",
        ),
    ] = DEFAULTS.group_by_length,
    lr: Annotated[float, training_option("--lr", help="Peak learning rate.")] = DEFAULTS.lr,
    seed: SeedOption = DEFAULTS.seed,
    threads: Annotated[
        int | None,
        training_option(
            "--threads",
            help="CPU threads of each process.",
            show_default="torch's choice, or a share of the cores",
        ),
    ] = None,
    fsdp: Annotated[
        bool,
        training_option("--fsdp", help="Share out the weights among several processes (FSDP2)."),
    ] = DEFAULTS.fsdp,
    save_every: Annotated[
        int | None,
        saving_option(
            "--save-every",
            metavar="N",
            help="Save a checkpoint every N steps; an interrupted run saves one anyway.",
        ),
    ] = None,
    keep: Annotated[
        int, saving_option("--keep", help="Newest checkpoints kept of each arm.")
    ] = DEFAULTS.keep,
    resume: Annotated[
        bool,
        saving_option("--resume", help="Go on with the run whose checkpoints --output holds."),
    ] = DEFAULTS.resume,
    timeout: Annotated[
        float,
        saving_option(
            "--timeout", help="Seconds to wait for another process, of several, before giving up."
        ),
    ] = DEFAULTS.timeout,
    output: Annotated[
        Path, output_option("--output", help="Folder for the results.")
    ] = DEFAULTS.output,
) -> None:
    """Fine-tune one model in several number formats and compare them.

    Without options: all-MiniLM-L6-v2 learns to tell the package of a standard-library docstring,
    in float32, in int8, and in int8 with split outliers. No network and no data files are needed.

    The tasks are GLUE's, SQuAD v1.1 (squad) and v2.0 (squad_v2), causal language modeling on text
    (clm), and classification or regression on files with columns of your own (custom).

    The output folder gets metrics.json, curves.png and model/, the last arm's model as a plain
    transformers checkpoint; while training and after an interrupt it holds checkpoints/ too. With
    --lora-rank the adapters are merged into the model, and are in adapter/ by themselves.

    Several processes share each batch: torchrun --nproc-per-node 2 -m int8tile finetune ...
    """
    arguments = locals()
    for name in ("arms", "text_columns", "metrics", "lora_target"):
        if arguments[name] is not None:
            arguments[name] = _split(arguments[name])
    with _clear_errors():
        run(Settings(**arguments), Console())


app.command()(_clear_errors()(analyze))


@app.command()
def plan(
    m: Annotated[int, typer.Option("--m", help="Tokens.")],
    n: Annotated[int, typer.Option("--n", help="Output features.")],
    k: Annotated[int, typer.Option("--k", help="Input features.")],
    outlier_capacity: Annotated[
        int | None, typer.Option(help="Most outlier columns.", show_default="from k")
    ] = None,
    outlier_bits: Annotated[int, typer.Option(help="Bits of an outlier, 8 to 15.")] = 12,
    threads: Annotated[int | None, typer.Option(show_default="torch's choice")] = None,
    isa: Annotated[str | None, typer.Option(help="Kernel.", show_default="the best")] = None,
) -> None:
    """Show how the matrix products of a linear layer will run, and whether int8 is faster."""
    products: dict[str, tuple[int, int, int, int | None]] = {
        "forward": (m, n, k, outlier_capacity),
        "grad_input": (m, k, n, 0),
        "grad_weight": (n, k, m, 0),
    }
    with _clear_errors():
        try:
            plans = {
                name: int8tile.plan(*shape, outlier_bits=outlier_bits, threads=threads, isa=isa)
                for name, shape in products.items()
            }
        except ValueError as error:
            raise UsageError(str(error)) from error
    for name, each in plans.items():
        typer.echo(f"{name}\n{each.text(with_verdict=False)}\n")
    # Of the layer, once: in the gradients' products m is not the number of tokens.
    typer.echo(f"verdict\n  {plans['forward'].verdict}")
    for device, verdict in gpus.verdicts().items():
        typer.echo(f"{device}\n  {verdict}")


@app.command()
def info() -> None:
    """Show versions, processor, kernels and what to expect, and run a one-second self-test."""
    facts = Table(show_header=False, box=None)
    for name, value in environment.describe().items():
        facts.add_row(f"[bold]{name}[/]", str(value))
    errors = environment.self_test()
    passed = all(0 < error < environment.SELF_TEST_TOLERANCE for error in errors.values())
    listed = ", ".join(f"{name} {error:.2%}" for name, error in errors.items())
    verdict = "[green]passed[/]" if passed else "[red]FAILED[/]"
    facts.add_row("[bold]self-test[/]", f"{verdict}: error against float32 {listed}")
    Console(soft_wrap=True, highlight=False).print(facts)
    raise typer.Exit(0 if passed else 1)
