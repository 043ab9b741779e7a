"""Speed of `int8tile finetune` on whole tasks, float32 against int8-split: examples per second.

    python bench/bench_tasks.py --data folder --cases lora --json bench/results/tasks.json

The folder holds glue/sst2 (train.tsv, dev.tsv) and squad (train.json, dev.json). Each case is one
run of the command, both arms in it; what is timed are its training steps but the first five. Start
reading at `CASES`.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

import accuracy_smoke
from report import choices, console, environment, json_path, parsed, write_part
from tables import print_table

ARMS = ("fp32", "int8-split")
SEVERAL = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
LLAMA = {  # 2 layers of Llama-3.2-1B's shape, with a small vocabulary
    **{"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 2},
    **{"num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 64},
}
TINY_LLAMA = {
    **{"hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 1},
    **{"num_attention_heads": 4, "num_key_value_heads": 2},
}
VOCABULARY, CONTEXTS = 2000, 400
KEPT = ("task", "max_steps", "batch_size", "max_length", "lora_rank", "lr", "seed")  # paths are not


@dataclass(frozen=True)
class Case:
    """One run of the command.

    Args:
        shows: What it is.
        options: Its options; {data} is the data's folder, {work} that of the decoder and its text.
        processes: How many share the batches.
    """

    shows: str
    options: tuple[str, ...]
    processes: int = 1


SST2 = ("--task", "sst2", "--data", "{data}/glue/sst2")
CASES = {
    "classification": Case("MiniLM on SST-2, batch 32", SST2),
    "questions": Case(
        "MiniLM on SQuAD, 8 windows of 384 tokens",
        ("--task", "squad", "--data", "{data}/squad", "--batch-size", "8"),
    ),
    "lora": Case(
        "LoRA, 2 layers of Llama-3.2-1B's shape, 4 blocks of 256 tokens",
        (
            *("--task", "clm", "--model", "{work}/llama", "--data", "{work}/text.txt"),
            *("--max-length", "256", "--batch-size", "4", "--lora-rank", "8"),
        ),
    ),
    "two-processes": Case("MiniLM on SST-2, batch 32, DDP of two processes", SST2, processes=2),
}


def make_decoder(data: Path, work: Path, sizes: dict[str, int]) -> None:
    """Write the contexts of SQuAD as a text, a tokenizer trained on it, and a random decoder.

    Args:
        data: Folder with squad/train.json.
        work: Where to write text.txt and llama/.
        sizes: Of the decoder.
    """
    from tokenizers import ByteLevelBPETokenizer
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    from int8tile.finetune.quiet import quiet

    articles = json.loads((data / "squad" / "train.json").read_text(encoding="utf-8"))["data"]
    contexts = [each["context"] for article in articles for each in article["paragraphs"]]
    text = work / "text.txt"
    text.write_text("\n".join(list(dict.fromkeys(contexts))[:CONTEXTS]), encoding="utf-8")
    trained = ByteLevelBPETokenizer()
    trained.train(
        str(text), vocab_size=VOCABULARY, special_tokens=["<s>", "</s>"], show_progress=False
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=trained._tokenizer, bos_token="<s>", eos_token="</s>"
    )
    config = LlamaConfig(
        vocab_size=len(tokenizer), max_position_embeddings=1024, bos_token_id=0, eos_token_id=1,
        **sizes,
    )  # fmt: skip
    torch.manual_seed(0)
    with quiet():
        LlamaForCausalLM(config).save_pretrained(work / "llama")
    tokenizer.save_pretrained(work / "llama")


def make_smoke_data(folder: Path) -> None:
    """Write a few made-up examples of each task."""
    glue, squad = folder / "glue" / "sst2", folder / "squad"
    glue.mkdir(parents=True)
    squad.mkdir()
    rows = "".join(f"film {i} was {('bad', 'good')[i % 2]}\t{i % 2}\n" for i in range(64))
    context = " ".join(f"The engine of year {year} was slow ." for year in range(1843, 1893))
    questions = [
        {
            **{"id": str(year), "question": f"Which engine was slow in {year} ?"},
            "answers": [{"text": str(year), "answer_start": context.index(str(year))}],
        }
        for year in range(1843, 1853)
    ]
    articles = [{"title": "t", "paragraphs": [{"context": context, "qas": questions}]}]
    for stem in ("train", "dev"):
        (glue / f"{stem}.tsv").write_text(f"sentence\tlabel\n{rows}")
        (squad / f"{stem}.json").write_text(json.dumps({"data": articles}))


def command(case: Case, data: Path, work: Path, more: list[str]) -> list[str]:
    """Build the command line of one case."""
    options = [option.format(data=data, work=work) for option in case.options]
    launcher = SEVERAL if case.processes > 1 else ()
    run = [sys.executable, *launcher, "-m", "int8tile", "finetune", *options]
    return [*run, "--arms", ",".join(ARMS), *more, "--output", str(work / "output")]


def measure(case: Case, data: Path, work: Path, more: list[str]) -> dict[str, Any]:
    """Run one case.

    Returns:
        Examples per second of each arm, and the ratio.

    Raises:
        RuntimeError: The command failed; with what it said.
    """
    done = subprocess.run(
        command(case, data, work, more), check=False, capture_output=True, text=True
    )
    if done.returncode:
        raise RuntimeError(f"{case.shows}: {done.stdout[-2000:]}{done.stderr[-2000:]}")
    made = json.loads((work / "output" / "metrics.json").read_text())
    exact, split = (made["arms"][arm] for arm in ARMS)
    if exact["loss"] == split["loss"]:
        raise RuntimeError(f"{case.shows}: the loss equals float32's, so int8 did not run")
    return {
        "shows": case.shows,
        "unit": made["environment"]["data"]["unit"],
        "processes": made["environment"]["processes"],
        "examples_per_second": {arm: made["arms"][arm]["examples_per_second"] for arm in ARMS},
        "speed_against_fp32": split["examples_per_second"] / exact["examples_per_second"],
        "losses": {arm: made["arms"][arm]["loss"] for arm in ARMS},
        "arguments": {name: made["arguments"][name] for name in KEPT},
    }


def main(
    data: Annotated[Path | None, typer.Option(help="Folder with glue/sst2 and squad.")] = None,
    cases: Annotated[str, typer.Option(help=f"Some of {','.join(CASES)}.")] = ",".join(CASES),
    steps: Annotated[int, typer.Option(min=6, help="Optimizer steps of each arm.")] = 20,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Results; cases that do not run keep theirs.")
    ] = None,
    smoke: Annotated[
        bool, typer.Option("--smoke", help="Made-up data, tiny models, 6 steps.")
    ] = False,
) -> None:
    """Run the command on whole tasks, and compare the speed of its arms."""
    chosen = parsed("cases", choices, cases, tuple(CASES))
    path = json_path(json_file)
    if data is None and not smoke:
        raise typer.BadParameter("needs a folder, or --smoke", param_hint="--data")
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        if smoke:
            data, steps = work / "data", 6
            make_smoke_data(data)
            accuracy_smoke.save_model(work / "bert")
        assert data is not None
        if "lora" in chosen:
            make_decoder(data, work, TINY_LLAMA if smoke else LLAMA)
        for name in chosen:
            facts = environment([torch.get_num_threads()])
            more = ["--max-steps", str(steps), "--max-eval", "8"]
            if smoke:
                tiny = ("--max-length", "32") if name == "lora" else ("--model", str(work / "bert"))
                more += tiny
            result = measure(CASES[name], data.resolve(), work, more)
            write_part(path, name, {"environment": facts, "smoke": smoke, **result})
            speeds = [f"{result['examples_per_second'][arm]:.2f}" for arm in ARMS]
            rows.append([result["shows"], *speeds, f"{result['speed_against_fp32']:.2f}x"])
    console().print(f"{facts['cpu']}, {facts['cores']} cores, {facts['date']}", highlight=False)
    columns = ("case", *(f"{arm}, examples/s" for arm in ARMS), "speed against fp32")
    print_table("int8tile finetune", columns, rows)


if __name__ == "__main__":
    typer.run(main)
