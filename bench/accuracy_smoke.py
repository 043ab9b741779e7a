"""A tiny model and made-up text, on which bench_accuracy runs in seconds and shows nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from accuracy_runs import Source
from accuracy_specs import Plan, Spec

STEPS = 5
WORDS = ("good", "bad", "dull", "fine", "long", "short", "warm")
ROWS = {"train": 64, "dev": 40}


def source(work: Path) -> Source:
    """Write model and data into the work folder, once."""
    folder = work / "smoke"
    if not (folder / "model" / "config.json").exists():
        save_model(folder / "model")
    (folder / "sst2").mkdir(exist_ok=True)
    for stem, count in ROWS.items():
        rows = [f"a {WORDS[i % 7]} film of {i % 13}\t{i * i % 3 % 2}\n" for i in range(count)]
        (folder / "sst2" / f"{stem}.tsv").write_text("sentence\tlabel\n" + "".join(rows))
    return Source(folder, str(folder / "model"))


def plan(spec: Spec) -> Plan:
    """Keep one task, two stresses, and the first two arms of a table and the last."""
    names = list(spec.arms)
    arms = {name: spec.arms[name] for name in (*names[:2], names[-1])}
    few = replace(spec, arms=arms, tasks=("sst2",), stresses=(60, 1))
    return Plan(few, seeds=1, steps=STEPS)


def save_model(folder: Path) -> None:
    """Write a tiny BERT with random weights and the tokenizer of MiniLM."""
    from transformers import AutoTokenizer, BertConfig, BertModel

    from int8tile.finetune.checkpoint import find_model
    from int8tile.finetune.quiet import quiet

    with quiet():
        AutoTokenizer.from_pretrained(find_model(None)).save_pretrained(folder)
        config = BertConfig(
            hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2
        )
        torch.manual_seed(0)
        BertModel(config).save_pretrained(folder)
