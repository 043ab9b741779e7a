"""For the tests of trainers: a tiny BERT, examples that it can learn, and a plain process."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState
from transformers import BertConfig, BertForSequenceClassification

SHARED_GLUE = Path(__file__).resolve().parents[2] / "shared" / "data" / "glue"
WORDS, LENGTH = 64, 12


def bert(dropout=0.0):
    """Two layers with the same weights in every call."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=WORDS,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=LENGTH,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
    )
    return BertForSequenceClassification(config)


def examples(count=64):
    """Sentences whose label is told by their first word."""
    ids = torch.randint(3, WORDS, (count, LENGTH), generator=torch.Generator().manual_seed(1))
    labels = (ids[:, 0] > WORDS // 2).long()
    mask = torch.ones(LENGTH, dtype=torch.long)
    return [
        {"input_ids": row, "attention_mask": mask, "labels": label}
        for row, label in zip(ids, labels, strict=True)
    ]


def sentences():
    """One batch of inputs."""
    rows = examples(16)
    return {
        name: torch.stack([row[name] for row in rows]) for name in ("input_ids", "attention_mask")
    }


def logits(model):
    """What a model in evaluation says of `sentences()`."""
    with torch.no_grad():
        return model.eval()(**sentences()).logits


@pytest.fixture
def own_accelerator():
    """Accelerators of one process share a state, which keeps the options of the first."""
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


PLAIN = """
import sys
import torch
sys.modules["int8tile"] = None  # importing it fails
from transformers import AutoModelForSequenceClassification
model = AutoModelForSequenceClassification.from_pretrained(sys.argv[1])
with torch.no_grad():
    torch.save(model(**torch.load(sys.argv[2])).logits, sys.argv[3])
"""


def logits_without_int8tile(folder, tmp_path):
    """What a process that cannot import int8tile loads from a checkpoint and says of them."""
    torch.save(sentences(), tmp_path / "sentences.pt")
    files = [folder, tmp_path / "sentences.pt", tmp_path / "logits.pt"]
    subprocess.run([sys.executable, "-c", PLAIN, *map(str, files)], check=True)
    return torch.load(tmp_path / "logits.pt")
