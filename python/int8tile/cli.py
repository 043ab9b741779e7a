"""The `int8tile` command: finetune, plan and info."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

import int8tile
from int8tile.finetune import Settings, UsageError, environment, run
from int8tile.finetune.settings import ARM_NAMES, DEFAULT_ARMS, TASK_NAMES

USAGE_ERROR, INTERRUPTED = 2, 130  # exit codes

app = typer.Typer(
    help="Fine-tune language models in int8, with outlier activations split into two int8 limbs.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)
DEFAULTS = Settings()


def main() -> None:
    """Run the command line."""
    app()


def _option(*names: str, panel: str, help: str, **more: Any) -> Any:
    return typer.Option(*names, rich_help_panel=panel, help=help, **more)


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
    """Print what the caller or the system got wrong as one line, and set the exit code."""
    try:
        yield
    except (UsageError, NotImplementedError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(USAGE_ERROR) from None
    except (ImportError, OSError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        typer.echo("interrupted; nothing was written", err=True)
        raise typer.Exit(INTERRUPTED) from None


@app.command()
def finetune(
    model: Annotated[
        str | None,
        _option("--model", panel="What", help="Hub id or directory. [default: packaged MiniLM]"),
    ] = None,
    task: Annotated[
        str, _option("--task", panel="What", help=f"One of {', '.join(TASK_NAMES)}.")
    ] = DEFAULTS.task,
    data: Annotated[
        Path | None,
        _option("--data", panel="What", help="Folder of GLUE .tsv files. [default: the hub]"),
    ] = None,
    max_train: Annotated[
        int | None, _option("--max-train", panel="What", help="Most training examples.")
    ] = None,
    max_length: Annotated[
        int, _option("--max-length", panel="What", help="Most tokens of an example.")
    ] = DEFAULTS.max_length,
    arms: Annotated[
        str, _option("--arms", panel="Arms", help=f"Some of {','.join(ARM_NAMES)}, in order.")
    ] = ",".join(DEFAULT_ARMS),
    threshold: Annotated[
        float,
        _option("--threshold", panel="Arms", help="Activations above it are outliers."),
    ] = DEFAULTS.threshold,
    outlier_bits: Annotated[
        int, _option("--outlier-bits", panel="Arms", help="Bits of an outlier, 8 to 15.")
    ] = DEFAULTS.outlier_bits,
    stress: Annotated[
        float,
        _option(
            "--stress",
            panel="Arms",
            metavar="K",
            help="Multiply 4 input features of each linear by K and divide its weight's columns "
            "by K: the same function, with the outliers of a larger model. 1 leaves it out.",
        ),
    ] = DEFAULTS.stress,
    epochs: Annotated[
        float, _option("--epochs", panel="Training", help="Passes over the training examples.")
    ] = DEFAULTS.epochs,
    max_steps: Annotated[
        int | None, _option("--max-steps", panel="Training", help="Most optimizer steps.")
    ] = None,
    batch_size: Annotated[
        int, _option("--batch-size", panel="Training", help="Examples per step.")
    ] = DEFAULTS.batch_size,
    lr: Annotated[
        float, _option("--lr", panel="Training", help="Peak learning rate.")
    ] = DEFAULTS.lr,
    seed: Annotated[
        int, _option("--seed", panel="Training", help="Of classifier, data order and dropout.")
    ] = DEFAULTS.seed,
    threads: Annotated[
        int | None,
        _option("--threads", panel="Training", help="CPU threads. [default: torch's choice]"),
    ] = None,
    output: Annotated[
        Path, _option("--output", panel="Output", help="Folder for the results.")
    ] = DEFAULTS.output,
) -> None:
    """Fine-tune one model in several number formats and compare them.

    Without options: all-MiniLM-L6-v2 learns to tell the package of a standard-library docstring,
    in float32, in int8, and in int8 with split outliers. No network and no data files are needed.

    The output folder gets metrics.json, curves.png and model/, the last arm's model as a plain
    transformers checkpoint.
    """
    arguments = {**locals(), "arms": tuple(arm.strip() for arm in arms.split(","))}
    with _clear_errors():
        run(Settings(**arguments), Console())


@app.command()
def plan(
    m: Annotated[int, typer.Option("--m", help="Tokens.")],
    n: Annotated[int, typer.Option("--n", help="Output features.")],
    k: Annotated[int, typer.Option("--k", help="Input features.")],
    outlier_capacity: Annotated[
        int | None, typer.Option(help="Most outlier columns. [default: from k]")
    ] = None,
    outlier_bits: Annotated[int, typer.Option(help="Bits of an outlier, 8 to 15.")] = 12,
    threads: Annotated[int | None, typer.Option(help="[default: torch's choice]")] = None,
    isa: Annotated[str | None, typer.Option(help="Kernel. [default: the best]")] = None,
) -> None:
    """Show how the three matrix products of one linear layer will run."""
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
        typer.echo(f"{name}\n{each}\n")


@app.command()
def info() -> None:
    """Show versions, processor and kernels, and run a one-second self-test."""
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
