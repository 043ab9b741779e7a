"""Small checkpoints for fine-tuning tests, and the folder of real data sets where there is one."""

import os
from pathlib import Path

import pytest
import torch

DATA = Path(
    os.environ.get("INT8TILE_TEST_DATA", Path(__file__).resolve().parents[2] / "shared" / "data")
)
NAMES = ("ada", "bob", "cleo", "dan")
PLACES = ("the house", "the river", "the old tower", "a garden")
SENTENCES = [f"{name} walks to {place} and sees {other} ." for name in NAMES for place in PLACES
             for other in NAMES if other != name]  # fmt: skip


def real_data(*parts):
    """A file or folder of real data, or a skip that says where it was looked for."""
    path = DATA.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"no data at {path}")
    return path


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory):
    """A random one-layer BERT with the packaged model's tokenizer, as a checkpoint folder."""
    from transformers import AutoTokenizer, BertConfig, BertModel

    from int8tile.finetune.checkpoint import find_model
    from int8tile.finetune.quiet import quiet

    folder = tmp_path_factory.mktemp("tiny_bert")
    AutoTokenizer.from_pretrained(find_model(None)).save_pretrained(folder)
    config = BertConfig(
        hidden_size=64, num_hidden_layers=1, num_attention_heads=2, intermediate_size=128
    )
    with quiet():
        torch.manual_seed(0)
        BertModel(config).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def tiny_tokenizer():
    """A byte-level BPE tokenizer trained on SENTENCES."""
    from tokenizers import ByteLevelBPETokenizer
    from transformers import PreTrainedTokenizerFast

    trained = ByteLevelBPETokenizer()
    trained.train_from_iterator(SENTENCES, vocab_size=320, special_tokens=["<s>", "</s>"])
    return PreTrainedTokenizerFast(
        tokenizer_object=trained._tokenizer, bos_token="<s>", eos_token="</s>"
    )


@pytest.fixture(scope="session")
def tiny_decoder(tmp_path_factory, tiny_tokenizer):
    """Call with "llama", "qwen3" or "gpt2": a small one, trained a little on SENTENCES."""
    from transformers import AutoConfig, AutoModelForCausalLM

    from int8tile.finetune.quiet import quiet

    made = {}

    def decoder(kind):
        if kind not in made:
            sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
            if kind != "gpt2":  # which has no gated feed-forward layer
                sizes |= {"intermediate_size": 160, "num_key_value_heads": 2}
            if kind == "qwen3":
                sizes["head_dim"] = 16
            config = AutoConfig.for_model(
                kind, **sizes, vocab_size=len(tiny_tokenizer), max_position_embeddings=64,
                bos_token_id=0, eos_token_id=1,
            )  # fmt: skip
            made[kind] = str(tmp_path_factory.mktemp(kind))
            with quiet():
                torch.manual_seed(0)
                model = AutoModelForCausalLM.from_config(config)
                _train(model, tiny_tokenizer)
                model.save_pretrained(made[kind])
                tiny_tokenizer.save_pretrained(made[kind])
        return made[kind]

    return decoder


def _train(model, tokenizer):
    ids = torch.tensor(tokenizer(" ".join(SENTENCES))["input_ids"])
    ids = ids[: len(ids) // 32 * 32].reshape(-1, 32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for step in range(30):
        batch = ids.roll(step, 0)[:8]
        model(input_ids=batch, labels=batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
