"""Layers of Llama's shapes with massive activations in one token: what each int8 way makes of them.

    python bench/accuracy_decoders.py --json out.json

Weights are random: shapes, norms and the residual stream are real, the values are not. Massive are
a few fixed features of the first token, 1,000 times the mean magnitude, as reported of trained
decoders ("Massive Activations in Large Language Models", arXiv 2402.17762).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor, nn

import formats
import int8tile
from formats import Call
from plots_formats import draw_decoders
from report import choices, environment, json_path, parsed, print_head, progress, write_json
from tables import print_table

ARMS = ("int8-tensor", "int8", "int8-split", "fp8")
CASES = ("none", "residual", "down_proj")
FEATURES = 4
THRESHOLD = 5.0
VOCABULARY = 1024
PANEL_ALIGN = 4  # limb panels are padded to so many columns
# hidden, intermediate, heads, key and value heads, layers
MODELS: Mapping[str, tuple[int, int, int, int, int]] = {
    "llama-3.2-1b": (2048, 8192, 32, 8, 2),
    "llama-3-8b": (4096, 14336, 32, 8, 1),
    "tiny": (64, 128, 2, 1, 2),
}
Result = Mapping[str, Any]


def build(name: str) -> Any:  # noqa: ANN401 - transformers is not typed
    """Make a decoder with random weights, the same in every run."""
    from transformers import LlamaConfig, LlamaForCausalLM

    hidden, intermediate, heads, key_value_heads, layers = MODELS[name]
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_attention_heads=heads,
        num_key_value_heads=key_value_heads,
        num_hidden_layers=layers,
        tie_word_embeddings=True,
        use_cache=False,
    )
    return LlamaForCausalLM(config)


def enlarged(x: Tensor, factor: float) -> Tensor:
    """Set some fixed features of the first token to `factor` times the mean magnitude."""
    columns = torch.randperm(x.shape[-1], generator=torch.Generator().manual_seed(1))[:FEATURES]
    x = x.clone()
    x[:, 0, columns] = factor * x.detach().abs().mean()
    return x


@contextmanager
def massive(model: Any, case: str, factor: float) -> Iterator[None]:  # noqa: ANN401
    """Inject massive activations into the last decoder layer.

    "residual": into the residual stream before it, so that its norms stand between them and every
    linear; "down_proj": into the input of that linear itself; "none": nowhere.
    """
    layer = model.model.layers[-1]
    target: nn.Module = layer if case == "residual" else layer.mlp.down_proj

    def hook(
        module: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Tensor, ...], dict[str, Any]]:
        if args:
            return (enlarged(args[0], factor), *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": enlarged(kwargs["hidden_states"], factor)}

    handles = [] if case == "none" else [target.register_forward_pre_hook(hook, with_kwargs=True)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def record(model: Any, case: str, tokens: int, factor: float) -> dict[str, Call]:  # noqa: ANN401
    """Keep what the linears of the last layer multiply in a training step on random tokens."""
    generator = torch.Generator().manual_seed(2)
    ids = torch.randint(0, VOCABULARY, (1, tokens), generator=generator)
    last = f"model.layers.{len(model.model.layers) - 1}."
    with massive(model, case, factor), formats.recorded(model) as calls:
        model(input_ids=ids, labels=ids).loss.backward()
    model.zero_grad(set_to_none=True)
    return {name: call for name, call in calls.items() if name.startswith(last)}


def measure(call: Call, arms: Sequence[str]) -> dict[str, Any]:
    """Compare one linear with float32: the massive token (row 0) and the others apart."""
    exact = formats.products(call, "fp32")
    regular = call.x.abs().amax(0) <= THRESHOLD
    found = {}
    for arm in arms:
        got = formats.products(call, arm)
        found[arm] = {
            "y_others_db": formats.snr_db(exact["y"][1:], got["y"][1:]),
            "y_massive_db": formats.snr_db(exact["y"][:1], got["y"][:1]),
            "grad_x_db": formats.snr_db(exact["grad_x"], got["grad_x"]),
            "grad_w_regular_db": formats.snr_db(
                exact["grad_w"][:, regular], got["grad_w"][:, regular]
            ),
            "grad_w_db": formats.snr_db(exact["grad_w"], got["grad_w"]),
            "grad_w_cosine": formats.cosine(exact["grad_w"], got["grad_w"]),
        }
    outliers = formats.outliers(call.x)
    extra = -(-min(outliers["found"], outliers["capacity"]) // PANEL_ALIGN) * PANEL_ALIGN
    return {
        "shape": [len(call.x), *call.weight.shape],
        "outliers": outliers,
        "extra_columns": extra,
        "extra_percent": 100 * extra / call.x.shape[1],
        "coarser": {name: coarser(call.x, t) for name, t in (("int8", None), ("split", THRESHOLD))},
        "massive_over_median": float(call.x[0].abs().max() / call.x[1:].abs().amax(1).median()),
        "arms": found,
    }


def coarser(x: Tensor, threshold: float | None) -> dict[str, float]:
    """Give the step of the massive row over the median of the others', and that over unsplit."""
    plain = torch.ops.int8tile.quantize(x)[1]
    scale = torch.ops.int8tile.quantize_split(x, threshold)[3]
    others = scale[1:].median()
    return {
        "massive_row": float(scale[0] / others),
        "other_rows": float(others / plain[1:].median()),
    }


def table(results: Sequence[Result], arms: Sequence[str]) -> None:
    """Print a table for each model and case, a line for each linear."""
    for group in dict.fromkeys((r["model"], r["case"]) for r in results):
        rows: list[list[str] | None] = []
        for r in results:
            if (r["model"], r["case"]) == group:
                o, c = r["outliers"], r["coarser"]
                columns = f"{o['found']} of {o['capacity']}, +{r['extra_percent']:.1f} %"
                steps = [f"{c[name]['massive_row']:.3g}x" for name in ("int8", "split")]
                cells = [_cell(r["arms"][arm]) for arm in arms]
                rows.append([r["layer"], columns, ", ".join(steps), *cells])
        what = "dB: y of others, own y; grad_w of regular, all columns"
        title = f"{group[0]}, massive: {group[1]}; {what}"
        print_table(title, ["linear", "outliers, extra K", "step of its row", *arms], rows)


def _cell(found: Mapping[str, float]) -> str:
    names = ("y_others_db", "y_massive_db", "grad_w_regular_db", "grad_w_db")
    return " ".join(f"{found[name]:.1f}" for name in names)


def run(
    name: str, arms: Sequence[str], tokens: int, factor: float, step: Callable[[str], None]
) -> Iterator[dict[str, Any]]:
    """Measure the last layer of one model in every case."""
    model = build(name)
    for case in CASES:
        step(f"{name}, massive: {case}")
        for layer, call in record(model, case, tokens, factor).items():
            yield {"model": name, "case": case, "layer": layer, **measure(call, arms)}


def main(
    models: Annotated[str, typer.Option(help="Comma-separated.")] = "llama-3.2-1b,llama-3-8b",
    tokens: Annotated[int, typer.Option(min=2, help="Of the sequence.")] = 128,
    factor: Annotated[float, typer.Option(help="Of a massive activation.")] = 1000.0,
    arms: Annotated[str, typer.Option(help="Comma-separated.")] = ",".join(ARMS),
    threads: Annotated[int, typer.Option(min=1)] = 2,
    quick: Annotated[bool, typer.Option("--quick", help="The 1B model only.")] = False,
    smoke: Annotated[bool, typer.Option("--smoke", help="A tiny model, in seconds.")] = False,
    json: Annotated[
        Path | None, typer.Option(help="Write all results to this file, and a plot beside it.")
    ] = None,
) -> None:
    """Outlier columns, signal-to-noise ratios and cost of decoder layers with a massive token.

    Cases: none; residual (in the residual stream before the last layer); down_proj (in the input
    of the last layer's down_proj). Weights are random.
    """
    models = "tiny" if smoke else "llama-3.2-1b" if quick else models
    tokens = 16 if smoke else tokens
    arguments = {name: value for name, value in locals().items() if name != "json"}
    json = json_path(json)
    names = parsed("models", choices, models, tuple(MODELS))
    chosen = parsed("arms", choices, arms, tuple(formats.ARMS))
    torch.set_num_threads(threads)
    facts = environment([threads])
    results: list[dict[str, Any]] = []
    with progress(len(names) * len(CASES)) as step:
        for name in names:
            results += run(name, chosen, tokens, factor, step)
    print_head(facts, {})
    table(results, chosen)
    shape = results[-1]["shape"]
    print(f"plan of {results[-1]['layer']}:\n{int8tile.plan(*shape)}")
    write_json(json, "accuracy_decoders", arguments, facts, results, {})
    if json is not None:
        draw_decoders(results, chosen, json.with_suffix(".png"))


if __name__ == "__main__":
    typer.run(main)
