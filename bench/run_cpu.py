"""Runs all CPU benchmarks and draws their plots: bench/results/cpu.json and *.png.

    python bench/run_cpu.py              # everything, about an hour on 2 cores
    python bench/run_cpu.py --parts step # one part again; the others keep their numbers

Each part runs in a process of its own. Start reading at `PARTS`.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

import plots
from report import choices, console, parsed

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
PEER_SHAPES = "bert-base.attention,bert-base.intermediate"
OTHER_MODELS = "bert-large,llama-3.2-1b,llama-3-8b"


@dataclass(frozen=True)
class Part:
    """One benchmark run.

    Args:
        script: The benchmark.
        options: Its command line.
        shows: What it is for.
        variables: Set in its environment.
    """

    script: str
    options: tuple[str, ...]
    shows: str
    variables: tuple[tuple[str, str], ...] = ()


PARTS = {
    "gemm": Part(
        "bench_gemm.py",
        ("--shapes", "all", "--threads", "{threads}"),
        "the GEMM alone, on ready operands, against the CPU's peak",
    ),
    "peers": Part(
        "bench_linear.py",
        ("--shapes", PEER_SHAPES, "--tokens", "4096", "--threads", "{most}", "{compile}"),
        "every peer at 4,096 tokens, torch.compile included",
    ),
    "tokens": Part(
        "bench_linear.py",
        ("--shapes", "bert-base", "--tokens", "1,16,128,1024,4096", "--threads", "{most}"),
        "from 1 to 4,096 tokens",
    ),
    "models": Part(
        "bench_linear.py",
        ("--shapes", OTHER_MODELS, "--tokens", "128,1024", "--threads", "{most}"),
        "the layers of larger models",
    ),
    "outliers": Part(
        "bench_linear.py",
        (
            *("--shapes", PEER_SHAPES, "--tokens", "4096", "--outliers", "0,4,32,128"),
            *("--candidates", "int8,int8-split,int8-gain,bitsandbytes", "--threads", "{most}"),
        ),
        "what the split costs",
    ),
    "threads": Part(
        "bench_linear.py",
        (
            *("--shapes", PEER_SHAPES, "--tokens", "1024,4096"),
            *("--candidates", "int8,int8-split", "--threads", "{threads}"),
        ),
        "one thread against all",
    ),
    "avx2": Part(
        "bench_linear.py",
        (
            *("--shapes", "bert-base", "--tokens", "1024", "--weights", "each"),
            *("--candidates", "int8-split", "--threads", "{most}"),
        ),
        "int8tile's AVX2 kernel against MKL held to AVX2",
        (("INT8TILE_ISA", "avx2"), ("MKL_ENABLE_INSTRUCTIONS", "AVX2")),
    ),
    "step": Part("bench_step.py", ("--threads", "{most}"), "whole training steps of three models"),
}


def command(part: Part, threads: str, smoke: bool, quick: bool, out: Path) -> list[str]:
    """Build the command line of one part."""
    compiler = shutil.which("c++") or shutil.which("g++")
    words = {
        "{threads}": threads,
        "{most}": threads.split(",")[-1],
        "{compile}": "--compile" if compiler and not smoke else "",
    }
    options = [words.get(option, option) for option in part.options]
    options += ["--smoke"] if smoke else ["--budget", "1"] if quick else []
    return [sys.executable, str(HERE / part.script), *filter(None, options), "--json", str(out)]


def read_results(path: Path) -> dict[str, Any]:
    """Read the parts that ran before."""
    if not path.exists():
        return {}
    parts: dict[str, Any] = json.loads(path.read_text())["parts"]
    return parts


def main(
    parts: Annotated[
        str, typer.Option(help=f"Comma-separated, of {', '.join(PARTS)}; the others are kept.")
    ] = ",".join(PARTS),
    threads: Annotated[str, typer.Option(help="Thread counts, comma-separated, ascending.")] = (
        "1,2"
    ),
    output: Annotated[Path, typer.Option(help="Folder of cpu.json and the plots.")] = RESULTS,
    quick: Annotated[bool, typer.Option("--quick", help="One second for each case.")] = False,
    smoke: Annotated[
        bool, typer.Option("--smoke", help="Tiny shapes, in seconds; needs another --output.")
    ] = False,
    plots_only: Annotated[
        bool, typer.Option("--plots-only", help="Only draw what cpu.json holds.")
    ] = False,
) -> None:
    """Run all CPU benchmarks one after the other, and draw the plots."""
    if smoke and output == RESULTS:
        raise typer.BadParameter("--smoke must not replace real results", param_hint="--output")
    chosen = [] if plots_only else parsed("parts", choices, parts, tuple(PARTS))
    path = output / "cpu.json"
    output.mkdir(parents=True, exist_ok=True)
    failed = []
    for name in chosen:
        console().rule(f"{name}: {PARTS[name].shows}")
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "part.json"
            words = command(PARTS[name], threads, smoke, quick, out)
            variables = {**os.environ, **dict(PARTS[name].variables)}
            done = subprocess.run(words, check=False, env=variables)
            if done.returncode or not out.exists():
                failed.append(name)
                continue
            content = {**read_results(path), name: json.loads(out.read_text())}
        path.write_text(json.dumps({"parts": content}) + "\n")
    for drawn in plots.draw(read_results(path), output):
        console().print(f"wrote {drawn}", highlight=False)
    if failed:
        console().print(f"[red]failed[/]: {', '.join(failed)}")
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
