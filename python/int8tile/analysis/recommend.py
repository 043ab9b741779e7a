"""What to convert a model with: gamma, bits, gains, grad_split, what stays in float, and why."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from int8tile import _core
from int8tile.analysis.measures import cosine_in_db
from int8tile.analysis.patterns import mapping, shortened
from int8tile.analysis.results import LayerReport, Report, ThresholdResult, finite
from int8tile.config import Int8TileConfig

MIN_DB = 20.0  # noise a tenth of the signal
TOLERANCE_DB = 1.0  # of the output, given away for fewer outlier columns
BITS_GAIN_DB = 0.5  # of the output, below which more bits are not worth it
OUTLIER_GAIN_DB = 3.0  # of the output, half the noise, below which outlier_gain is not worth it


@dataclass(frozen=True)
class Recommendation:
    """Which config to convert a model with, and why.

    Args:
        config: for `int8tile.convert_(model, config)`: by layer name or pattern, the first match
            decides, None leaves a layer in float.
        reasons: why, by the name of each layer that does not get the config of "*", and under "*"
            for that one.
    """

    config: dict[str, Int8TileConfig | None]
    reasons: dict[str, str]

    def to_json(self) -> dict[str, Any]:
        """JSON values: the config of each pattern, the reasons, and the text."""
        config = {name: c and finite(asdict(c)) for name, c in self.config.items()}
        return {"config": config, "reasons": self.reasons, "text": str(self)}

    def code(self) -> str:
        """The Python that converts `model` so."""
        calls = {name: c and f"int8tile.{c.code()}" for name, c in self.config.items()}
        entries = [f"    {json.dumps(name)}: {call}," for name, call in calls.items()]
        return "\n".join(["int8tile.convert_(model, {", *entries, "})"])

    def grouped(self) -> list[tuple[str, str]]:
        """Layers, those with one reason together, and the reason; "*" is "all others".

        Layers that a pattern of the config stands for are named by it.
        """
        groups: dict[str, list[str]] = {}
        for name, why in self.reasons.items():
            groups.setdefault(why, []).append(name)
        layers = [name for name in self.reasons if name != "*"]
        return [
            ("all others" if names == ["*"] else shortened(names, self.config, layers), why)
            for why, names in groups.items()
        ]

    def __str__(self) -> str:
        return "\n".join(f"{names}: {why}" for names, why in self.grouped())


def recommend(
    report: Report,
    *,
    min_db: float = MIN_DB,
    tolerance_db: float = TOLERANCE_DB,
    bits_gain_db: float = BITS_GAIN_DB,
    outlier_gain_db: float = OUTLIER_GAIN_DB,
) -> Recommendation:
    """Choose gamma, outlier bits, gains, grad_split and the layers to leave in float.

    - A layer stays in float where its output falls short of `min_db` at every gamma, or where
      float32 is expected to be faster for as many tokens as were seen in a call. The others choose:
    - gamma, or no split, suits a layer where no call had more outlier columns than the capacity,
      and where the output is at most `tolerance_db` worse than at the best such gamma; one that
      splits nothing, only where that costs the gradient of the weight no more and does not take it
      below `min_db`. The one that suits the most layers is that of "*"; among equals the one with
      the fewest multiplications, then the smallest, which still holds when outliers shrink. A layer
      that it does not suit gets its own.
    - Bits cost no time, since two limbs hold 15: those of the report's config are kept unless
      more gain `bits_gain_db` in some layer.
    - `outlier_gain`, with the gamma that is best with it, is turned on where that gains
      `outlier_gain_db` in some layer, or lifts one above `min_db`: it changes nothing in the
      others, and costs little where there are few outlier columns. Where it is on in the report's
      config it stays on.
    - Other options of a layer's own config are kept; those of most layers are those of "*".
    - `grad_split` is for a layer whose gradient of the weight falls short of `min_db`, its cosine
      taken as dB, and does not with it; where it is configured it stays. Where most of the trained
      layers have it so does "*", at little cost for the others.
    - A gradient that falls short even so is computed in float. Gradients were measured at the
      report's own gamma, and without a split.

    Args:
        report: what was recorded, with a config for "*" to start from.
        min_db: the least signal-to-noise ratio.
        tolerance_db: what a layer may lose by a larger gamma.
        bits_gain_db: what more bits must gain.
        outlier_gain_db: what `outlier_gain` must gain.

    Raises:
        ValueError: the report has no layer that was called.
    """
    layers = list(report.layers.values())
    if not layers:
        raise ValueError(
            "int8tile.analysis.recommend: the report must have a layer that was called; "
            f"{len(report.unseen)} were watched and none was"
        )
    in_float = {each.name: why for each in layers if (why := _why_float(each, min_db))}
    voters = [each for each in layers if each.name not in in_float] or layers
    ((most_common, _),) = Counter(layer.config for layer in voters).most_common(1)
    grad_splits, grad_split, tokens_reason = _choose_grad_split(voters, most_common, min_db)
    suits = _Suits(grad_splits, min_db, tolerance_db)
    choice, gain_reason = _choose_gains(voters, suits, outlier_gain_db)
    bits, bits_reason = _bits(voters, most_common.outlier_bits, bits_gain_db)
    base = replace(
        most_common, threshold=choice.gamma, outlier_bits=bits, outlier_gain=choice.gains,
        grad_split=grad_split,
    )  # fmt: skip
    common = [choice.reason, bits_reason, gain_reason, tokens_reason, _over_capacity(voters)]
    if len(in_float) == len(layers):
        common = ["no layer is left; those in float would choose", *common]
    own: dict[str, Int8TileConfig | None] = {}
    reasons = {"*": "; ".join(filter(None, common))}
    for layer in layers:
        if layer.name in in_float:
            own[layer.name], reasons[layer.name] = None, in_float[layer.name]
            continue
        config, reason = _for_layer(layer, base, choice, suits)
        if config != base:
            own[layer.name], reasons[layer.name] = config, reason
    names = [*(each.name for each in layers), *report.unseen]
    return Recommendation(mapping(own, base, names), reasons)


def _why_float(layer: LayerReport, min_db: float) -> str:
    """Why a layer stays in float whatever the options; empty where it need not."""
    if not _core.kernel_verdict() and layer.why_float:
        return f"float: {layer.why_float} ({layer.tokens} tokens a call)"
    known = [each.y(gains) for each in _held(layer) for gains in (False, True)]
    best = max((y for y in known if y is not None), default=math.inf)
    return f"float: the output has at most {best:.1f} dB, below {min_db:g}" * (best < min_db)


@dataclass(frozen=True)
class _Suits:
    """By what a gamma suits a layer."""

    grad_split: Mapping[str, bool]  # by layer
    min_db: float
    tolerance_db: float

    def gammas(self, layer: LayerReport, gains: bool) -> list[float | None]:
        """Those that hold the capacity and keep output and gradient, the cheapest first."""
        plain, split = (
            _cosine_db(layer.grad_weight(each, self.grad_split[layer.name]))
            for each in (False, True)
        )
        for_gradient = plain < split - self.tolerance_db or plain < self.min_db <= split
        all_held = _held(layer)
        held = [each for each in all_held if each.mean > 0 or not for_gradient] or all_held
        best = max(_or_inf(each.y(gains)) for each in held)  # unmeasured: nothing against it
        least = max(best - self.tolerance_db, min(best, self.min_db))
        kept = [each for each in held if _or_inf(each.y(gains)) >= least]
        kept.sort(key=lambda each: (each.mean, _or_inf(each.threshold)))
        return [each.threshold for each in kept]


@dataclass(frozen=True)
class _Choice:
    """gamma of "*" and of each layer, with or without gains, and why."""

    gamma: float | None
    gains: bool
    gammas: Mapping[str, float | None]
    reason: str

    def of(self, layer: LayerReport) -> float | None:
        """gamma of a layer."""
        return self.gammas[layer.name]

    def at(self, layer: LayerReport) -> ThresholdResult:
        """What was measured of a layer at its gamma."""
        (at,) = [each for each in layer.thresholds if each.threshold == self.of(layer)]
        return at

    def y(self, layer: LayerReport) -> float:
        """dB of a layer's output; infinite where it was not measured."""
        return _or_inf(self.at(layer).y(self.gains))


def _choose_gains(
    layers: Sequence[LayerReport], suits: _Suits, least_db: float
) -> tuple[_Choice, str]:
    """Choose gamma without gains and with them; the latter where it is worth it, and why."""
    without, gained = (_choose(layers, gains, suits) for gains in (False, True))

    def gain(layer: LayerReport) -> float:
        before, after = without.y(layer), gained.y(layer)
        return after - before if math.isfinite(after - before) else 0.0

    lifted = [each for each in layers if without.y(each) < suits.min_db <= gained.y(each)]
    best = max(lifted or layers, key=gain)
    most, name = gain(best), best.name or "(root)"
    if most >= least_db or lifted:
        return gained, f"outlier_gain: gains {most:.1f} dB in {name}"
    if any(each.config.outlier_gain for each in layers):
        return gained, f"outlier_gain as configured: gains {max(most, 0):.1f} dB at most"
    return without, ""


def _choose(layers: Sequence[LayerReport], gains: bool, suits: _Suits) -> _Choice:
    suited = {layer.name: suits.gammas(layer, gains) for layer in layers}
    gamma, reason = _common_gamma(layers, suited)
    gammas = {name: gamma if gamma in each else each[0] for name, each in suited.items()}
    return _Choice(gamma, gains, gammas, reason)


def _choose_grad_split(
    layers: Sequence[LayerReport], common: Int8TileConfig, min_db: float
) -> tuple[dict[str, bool], bool, str]:
    """Which layers have `grad_split`, whether "*" does, and why; `common` has most options of it.

    Each has where it is configured or needed, and "*" where most of the trained ones do.
    """
    needed = {each.name for each in layers if _needs_grad_split(each, min_db)}
    configured = {each.name for each in layers if each.config.grad_split}
    trained = {
        each.name for each in layers if each.config.grad_weight and each.grad_weight() is not None
    }
    having = needed | configured
    split = 2 * len(having & trained) > len(trained) if trained else common.grad_split
    each_split = {each.name: split or each.name in having for each in layers}
    if not (split and needed):
        return each_split, split, ""
    count = f"{len(needed)} of {len(trained)} weights"
    return each_split, split, f"grad_split: lifts the gradient of {count} above {min_db:g} dB"


def _needs_grad_split(layer: LayerReport, min_db: float) -> bool:
    """Whether grad_split lifts the gradient of the weight above the limit, and no split alone."""
    before, after = (
        [
            _cosine_db(c)
            for split in (False, True)
            if (c := layer.grad_weight(split, each)) is not None
        ]
        for each in (False, True)
    )
    known = layer.config.grad_weight and before and after
    return bool(known) and max(before) < min_db <= max(after)


def _over_capacity(layers: Sequence[LayerReport]) -> str:
    """What to say of outlier columns that the capacity leaves no room for."""
    over = [each for each in layers if each.overflow_calls]
    if not over:
        return ""
    most = max(over, key=lambda each: each.most_columns)
    enough = min(-(-most.most_columns // 32) * 32, most.in_features)
    wide = f" for {most.in_features} input features" * (len({e.in_features for e in layers}) > 1)
    return (
        f"up to {most.most_columns} outlier columns at gamma {most.gamma:g} exceed the capacity "
        f"of {most.capacity} in {most.name or '(root)'}: a config with "
        f"outlier_capacity={enough}{wide} is worth a measurement"
    )


def _common_gamma(
    layers: Sequence[LayerReport], suited: Mapping[str, Sequence[float | None]]
) -> tuple[float | None, str]:
    def added(threshold: float | None) -> float:
        """Multiplications of the limbs as a share of those without a split."""
        limbs = regular = 0.0
        for layer in layers:
            size = layer.calls * layer.tokens * layer.out_features
            regular += size * layer.in_features
            limbs += size * sum(t.mean for t in layer.thresholds if t.threshold == threshold)
        return limbs / max(regular, 1)

    def suits(threshold: float | None) -> int:
        return sum(threshold in each for each in suited.values())

    candidates = {each.threshold for layer in layers for each in layer.thresholds}
    gamma = min(candidates, key=lambda t: (-suits(t), added(t), _or_inf(t)))
    return gamma, (
        f"{_gamma_text(gamma)}: suits {suits(gamma)} of {len(layers)} layers, "
        f"{added(gamma):.2%} more multiplications"
    )


def _gamma_text(threshold: float | None) -> str:
    return "no split" if threshold is None else f"gamma {threshold:g}"


def _or_inf(value: float | None) -> float:
    return math.inf if value is None else value


def _cosine_db(cosine: float | None) -> float:
    return math.inf if cosine is None else cosine_in_db(cosine)


def _held(layer: LayerReport) -> list[ThresholdResult]:
    return [each for each in layer.thresholds if each.overflow_calls == 0]


def _bits(layers: Sequence[LayerReport], configured: int, gain_db: float) -> tuple[int, str]:
    def gain(layer: LayerReport, bits: int) -> float:
        before, after = layer.bits_db.get(configured), layer.bits_db.get(bits)
        if before is None or after is None or not math.isfinite(before + after):
            return 0.0
        return after - before

    known = sorted({bits for layer in layers for bits in layer.bits_db if bits > configured})
    gains = {bits: max(gain(layer, bits) for layer in layers) for bits in known}
    most = max(gains.values(), default=0.0)
    if most < gain_db:
        return configured, f"{configured} bits: more would gain {max(most, 0):.1f} dB at most"
    bits = next(b for b, each in gains.items() if each >= gain_db and each > most - gain_db)
    return bits, f"{bits} bits: gain {gains[bits]:.1f} dB over {configured} in one layer"


def _for_layer(
    layer: LayerReport, base: Int8TileConfig, choice: _Choice, suits: _Suits
) -> tuple[Int8TileConfig | None, str]:
    at, y, min_db = choice.at(layer), choice.y(layer), suits.min_db
    gamma, splits = at.threshold, at.mean > 0
    if y < min_db:
        return None, f"float: the output has {y:.1f} dB at {_gamma_text(gamma)}, below {min_db:g}"
    grad_split, why = suits.grad_split[layer.name], []
    config = replace(
        layer.config, threshold=gamma, outlier_bits=base.outlier_bits, outlier_gain=choice.gains,
        grad_split=grad_split,
    )  # fmt: skip
    needs = grad_split and not layer.config.grad_split and not base.grad_split
    if replace(config, threshold=base.threshold, grad_split=grad_split and not needs) != base:
        why.append("keeps its own options")
    if gamma != base.threshold:
        by_threshold = {each.threshold: each for each in layer.thresholds}
        wrong = _what_is_wrong(by_threshold, base.threshold, choice.gains, y)
        why.append(f"{_gamma_text(gamma)}: {wrong}")
    if needs:
        before, after = (layer.grad_weight(splits, each) for each in (False, True))
        why.append(f"grad_split: the cosine of grad_weight is {after:.4f} instead of {before:.4f}")
    in_float: list[tuple[str, float | None, dict[str, Any]]] = [
        ("grad_input", layer.cosine["grad_input"], {"grad_input": False}),
        (
            "grad_weight",
            layer.grad_weight(splits, grad_split),
            {"grad_weight": False, "grad_split": base.grad_split},
        ),
    ]
    for product, found, off in in_float:
        if found is not None and cosine_in_db(found) < min_db:
            config = replace(config, **off)
            why.append(
                f"{product} in float: cosine {found:.4f} is {cosine_in_db(found):.1f} dB, "
                f"below {min_db:g}"
            )
    return config, "; ".join(why)


def _what_is_wrong(
    by_threshold: dict[float | None, ThresholdResult],
    threshold: float | None,
    gains: bool,
    y_db: float,
) -> str:
    other = by_threshold.get(threshold)
    text = _gamma_text(threshold)
    if other is None:
        return f"{text} was not measured here"
    if other.overflow_calls:
        return f"at {text} {other.most} columns exceed the capacity"
    return f"the output has {y_db:.1f} dB instead of {_or_inf(other.y(gains)):.1f} at {text}"
