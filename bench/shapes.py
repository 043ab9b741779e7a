"""The linear layers of well-known models, by name."""

from __future__ import annotations

from dataclasses import dataclass

TOKENS = (1, 16, 128, 1024, 4096)
OUTLIERS = (0, 4, 32, 128)


@dataclass(frozen=True)
class Layer:
    """y[m, n] = x[m, k] @ w[n, k].T."""

    name: str
    n: int
    k: int

    def __str__(self) -> str:
        return f"{self.name} [{self.n}, {self.k}]"


def _model(name: str, **layers: tuple[int, int]) -> list[Layer]:
    return [Layer(f"{name}.{layer}", n, k) for layer, (n, k) in layers.items()]


MODELS: dict[str, list[Layer]] = {
    "bert-base": _model(
        "bert-base", attention=(768, 768), intermediate=(3072, 768), output=(768, 3072)
    ),
    "bert-large": _model(
        "bert-large", attention=(1024, 1024), intermediate=(4096, 1024), output=(1024, 4096)
    ),
    "llama-3.2-1b": _model(
        "llama-3.2-1b", qo=(2048, 2048), kv=(512, 2048), gate_up=(8192, 2048), down=(2048, 8192)
    ),
    "llama-3-8b": _model(
        "llama-3-8b", qo=(4096, 4096), kv=(1024, 4096), gate_up=(14336, 4096), down=(4096, 14336)
    ),
}
LAYERS = {layer.name: layer for layers in MODELS.values() for layer in layers}


def parse_layers(text: str) -> list[Layer]:
    """Read a comma-separated list of models, layers (`bert-base.output`) and `NxK`.

    Raises:
        ValueError: a name is unknown.
    """
    layers: list[Layer] = []
    for name in text.split(","):
        if name == "all":
            layers += LAYERS.values()
        elif name in MODELS:
            layers += MODELS[name]
        elif name in LAYERS:
            layers.append(LAYERS[name])
        else:
            layers.append(_custom(name))
    return layers


def _custom(name: str) -> Layer:
    n, _, k = name.partition("x")
    if not (n.isdecimal() and k.isdecimal() and int(n) and int(k)):
        known = ", ".join(["all", *MODELS, *LAYERS])
        raise ValueError(f"a shape must be NxK or one of {known}; got {name!r}")
    return Layer(name, int(n), int(k))


def parse_numbers(text: str, least: int = 0) -> list[int]:
    """Read a comma-separated list of whole numbers.

    Raises:
        ValueError: one is none, or below `least`.
    """
    numbers = []
    for word in text.split(","):
        if not word.strip().isdecimal() or int(word) < least:
            raise ValueError(f"must be whole numbers of at least {least}; got {word!r}")
        numbers.append(int(word))
    return numbers
