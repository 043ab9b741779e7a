"""What every benchmark shares beside timing: environment, JSON, tables, progress."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

import torch
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

import int8tile
from int8tile import _core

PACKAGES = ("numpy", "transformers", "bitsandbytes", "torchao")
SETTINGS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "MKL_ENABLE_INSTRUCTIONS", "INT8TILE_ISA")
TABLE_WIDTH = 170  # of a table that goes into a file or a pipe

Parsed = TypeVar("Parsed")


def environment(threads: Sequence[int]) -> dict[str, Any]:
    """Describe the machine and the software, so that a number can be placed later."""
    l1, l2 = _core.cache_bytes()
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "threads": list(threads),
        "isa": _core.default_isa(),
        "l1_bytes": l1,
        "l2_bytes": l2,
        "load": os.getloadavg()[0],  # above 0 at the start: something else was running
        "system": system(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "int8tile": int8tile.__version__,
        **{name: _version(name) for name in PACKAGES},
        "settings": {name: os.environ[name] for name in SETTINGS if name in os.environ},
    }


def system() -> str:
    """Name the operating system, without the build of its kernel."""
    return f"{platform.system()} {platform.machine()}"


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def json_path(path: Path | None) -> Path | None:
    """Check, before any work, that results can be written to `path`."""
    if path is None:
        return None
    existed = path.exists()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.open("a").close()
    except OSError as error:
        raise typer.BadParameter(f"cannot write {path}: {error}", param_hint="--json") from None
    if not existed:
        path.unlink()
    return path


def write_json(
    path: Path | None,
    benchmark: str,
    arguments: Mapping[str, Any],
    facts: Mapping[str, Any],
    results: Sequence[Mapping[str, Any]],
    skipped: Mapping[str, str],
) -> None:
    """Write one benchmark's results; nothing without a path."""
    if path is not None:
        content = as_json(benchmark, arguments, facts, results, skipped)
        path.write_text(json.dumps(content, indent=1, default=str) + "\n")


def as_json(
    benchmark: str,
    arguments: Mapping[str, Any],
    facts: Mapping[str, Any],
    results: Sequence[Mapping[str, Any]],
    skipped: Mapping[str, str],
) -> dict[str, Any]:
    """Give one benchmark's results as they are written."""
    return {
        "benchmark": benchmark,
        "environment": facts,
        "arguments": arguments,
        "skipped": skipped,
        "results": results,
    }


def write_part(path: Path | None, part: str, content: Mapping[str, Any]) -> None:
    """Put one part into a file of several; the others keep what they hold."""
    if path is None:
        return
    parts = json.loads(path.read_text())["parts"] if path.exists() else {}
    text = json.dumps({"parts": {**parts, part: content}}, default=str)
    path.write_text(text + "\n")


def console() -> Console:
    """Give standard output; wide where it is no terminal."""
    out = Console()
    return out if out.is_terminal else Console(width=TABLE_WIDTH)


def print_head(facts: Mapping[str, Any], skipped: Mapping[str, str]) -> None:
    """Print what the numbers below were taken on, and what could not be compared."""
    out = console()
    threads = ", ".join(map(str, facts["threads"]))
    out.print(
        f"{facts['cpu']}, {facts['cores']} cores, threads {threads}, {facts['isa']}, "
        f"torch {facts['torch']}, {facts['date']}, load at the start {facts['load']:.1f}",
        highlight=False,
    )
    for name, why in skipped.items():
        out.print(f"[yellow]skipped[/] {name}: {why}", highlight=False)


@contextmanager
def progress(total: int) -> Iterator[Callable[[str], None]]:
    """Show a bar on standard error; call what it gives with the name of each next case."""
    columns = (
        BarColumn(20),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.description}"),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=total)
        started = 0

        def step(description: str) -> None:
            nonlocal started
            bar.update(task, completed=started, description=description)
            started += 1

        yield step


def choices(text: str, known: Sequence[str]) -> list[str]:
    """Read a comma-separated list of known words.

    Raises:
        ValueError: a word is unknown.
    """
    words = text.split(",")
    for word in words:
        if word not in known:
            raise ValueError(f"must be some of {','.join(known)}; got {word!r}")
    return words


def parsed(option: str, parse: Callable[..., Parsed], *arguments: Any) -> Parsed:  # noqa: ANN401
    """Parse an option's text; a ValueError becomes one line that names the option."""
    try:
        return parse(*arguments)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint=f"--{option}") from None
