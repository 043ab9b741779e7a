"""What a recording found, layer by layer, as data."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from torch import nn

from int8tile.analysis.columns import OutlierColumn
from int8tile.analysis.divergence import mixture_variance
from int8tile.analysis.layer import PLAIN, SPLIT, LayerStatistics, weight_cosine
from int8tile.analysis.measures import cosine_in_db
from int8tile.config import Int8TileConfig
from int8tile.nn import Int8Linear
from int8tile.planning import plan

if TYPE_CHECKING:
    from int8tile.analysis.recommend import Recommendation

SCHEMA = 3  # of report.json


@dataclass(frozen=True)
class ThresholdResult:
    """A layer's outputs at one threshold.

    Args:
        threshold: gamma; None: no split.
        mean: outlier columns of a call, on average.
        most: outlier columns of a call, at most.
        overflow_calls: calls with more of them than the capacity holds.
        y_db: signal-to-noise ratio of the output in dB.
        y_gain_db: the same with `outlier_gain`.
    """

    threshold: float | None
    mean: float
    most: int
    overflow_calls: int
    y_db: float | None
    y_gain_db: float | None = None

    def y(self, gains: bool) -> float | None:
        """dB of the output, with or without `outlier_gain`."""
        return self.y_gain_db if gains else self.y_db


@dataclass(frozen=True)
class LayerReport:
    """What was seen of one layer. dB are signal-to-quantisation-noise ratios against float32.

    Args:
        name: the layer's name in the model.
        in_features: k.
        out_features: n.
        converted: whether it is an Int8Linear.
        config: how it was quantised for this report.
        calls: forward calls seen.
        measured_calls: those that were quantised.
        measured_gradients: gradients that were quantised.
        nonfinite_calls: calls with an input or a gradient that was not finite, left out of dB.
        frozen: whether its weight does not require grad.
        tokens: rows of the input in a call, on average.
        columns: the columns that ever exceeded gamma, the most frequent first.
        mean_columns: outlier columns of a call, on average.
        most_columns: outlier columns of a call, at most.
        capacity: the most columns that the split holds.
        overflow_calls: calls with more than that.
        overflow_columns: columns beyond it, over all calls.
        stability: 1 if each call has the same outlier columns, towards 0 if all differ.
        mean_ratio: largest outlier over largest regular value of a call, on average.
        largest_ratio: the same, at most.
        outlier_energy: share of the sum of x**2 that lies in outlier columns.
        snr_db: of x_plain, x_split, weight, gradient, y_plain, y_split, and y_gain, which is the
            output with the split and `outlier_gain`, whatever the config says of it.
        cosine: of int8 and float gradients: grad_input (which no split enters),
            grad_weight_plain and grad_weight_split, and these two followed by _grad_split, with
            that option, whatever the config says of it.
        thresholds: the output at each threshold, without a split first.
        bits_db: dB of the output by the bits of an outlier value, with the config's outlier_gain.
        variance: both sides of the mixture-variance inequality.
        distortion: chi-square divergence, HCR bound and the variance it bounds, Tukey's leverage
            and sensitivity; of x without and with the split.
        clipped: share of x's values that rounding took beyond the largest integer. Scales cover
            the largest value: only outliers at the end of their bits are, so none without a split.
        why_float: why float32 is expected to be as fast for so many tokens; empty where int8 is
            expected to be faster, and for a layer that is not on the CPU.
        absmax: [k] of each column over all calls; not in report.json.
        histogram: edges and counts of |x|; not in report.json.
    """

    name: str
    in_features: int
    out_features: int
    converted: bool
    config: Int8TileConfig
    calls: int
    measured_calls: int
    measured_gradients: int
    nonfinite_calls: int
    frozen: bool
    tokens: int
    columns: list[OutlierColumn]
    mean_columns: float
    most_columns: int
    capacity: int
    overflow_calls: int
    overflow_columns: int
    stability: float | None
    mean_ratio: float | None
    largest_ratio: float | None
    outlier_energy: float
    snr_db: dict[str, float | None]
    cosine: dict[str, float | None]
    thresholds: list[ThresholdResult]
    bits_db: dict[int, float | None]
    variance: dict[str, float]
    distortion: dict[str, dict[str, float] | None]
    clipped: float | None
    why_float: str
    absmax: npt.NDArray[np.float32] = field(repr=False)
    histogram: tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]] = field(repr=False)

    @property
    def gamma(self) -> float:
        """The threshold of this report."""
        return self.config.threshold or 0.0

    @property
    def y_db(self) -> float | None:
        """dB of the output as configured."""
        return self.snr_db["y_gain" if self.config.outlier_gain else "y_split"]

    def grad_weight(self, split: bool = True, grad_split: bool | None = None) -> float | None:
        """The cosine of the gradient of the weight.

        Args:
            split: whether outlier columns of the input are split.
            grad_split: whether outlier tokens of the gradient are; None: as configured.
        """
        grad_split = self.config.grad_split if grad_split is None else grad_split
        return self.cosine[weight_cosine(SPLIT if split else PLAIN, grad_split)]

    @property
    def worst(self) -> tuple[float, str]:
        """The least of the ratios of output and gradients, the split included, in dB, and its name.

        Cosines are taken as dB. Infinite and nameless where nothing was measured.
        """
        known = [] if self.y_db is None else [(self.y_db, "y")]
        for cosine, name in ((self.cosine["grad_input"], "grad_x"), (self.grad_weight(), "grad_w")):
            if cosine is not None:
                known.append((cosine_in_db(cosine), name))
        return min(known, default=(math.inf, ""))

    @property
    def worst_db(self) -> float:
        """The ratio of `worst`."""
        return self.worst[0]

    def to_json(self) -> dict[str, Any]:
        """JSON values, without the arrays; numbers that are not finite become None."""
        values = {k: v for k, v in asdict(self).items() if k not in ("absmax", "histogram")}
        values["bits_db"] = {str(bits): db for bits, db in self.bits_db.items()}
        content: dict[str, Any] = finite(values)
        return content


@dataclass(frozen=True)
class Report:
    """All layers of a model.

    Args:
        layers: by name, the worst first.
        unseen: layers that were never called.
        skipped: why, by the name of each layer that was not watched.
        facts: what the caller wants kept with it, such as settings and versions.
    """

    layers: Mapping[str, LayerReport]
    unseen: list[str]
    skipped: Mapping[str, str]
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def recommendation(self) -> Recommendation:
        """Which config to convert the model with, by the default limits."""
        return self.recommend()

    def recommend(self, **limits: float) -> Recommendation:
        """The same by limits of your own: see `int8tile.analysis.recommend`."""
        from int8tile.analysis.recommend import recommend

        return recommend(self, **limits)

    def to_json(self) -> dict[str, Any]:
        """The content of report.json: JSON values only."""
        return {
            "schema": SCHEMA,
            "facts": finite(dict(self.facts)),
            "recommendation": self.recommendation.to_json(),
            "layers": {name: layer.to_json() for name, layer in self.layers.items()},
            "unseen": self.unseen,
            "skipped": dict(self.skipped),
        }

    def write_json(self, file: Path) -> None:
        """Write report.json."""
        text = json.dumps(self.to_json(), indent=2, allow_nan=False, ensure_ascii=False)
        file.write_text(text + "\n", encoding="utf-8")

    def __str__(self) -> str:
        from int8tile.analysis.table import as_text

        return as_text(self)


def finite(value: Any) -> Any:  # noqa: ANN401 - any JSON value
    """Replace every number that JSON cannot hold by None."""
    if isinstance(value, Mapping):
        return {name: finite(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def summarize(
    modules: Mapping[str, nn.Linear],
    layers: Mapping[str, LayerStatistics],
    skipped: Mapping[str, str],
    facts: Mapping[str, Any],
) -> Report:
    """Turn statistics into a report.

    Args:
        modules: the layers by name.
        layers: their statistics.
        skipped: why, by the name of each layer that was not watched.
        facts: what else to keep.

    Returns:
        The report, the worst layer first.
    """
    seen = [_layer(name, modules[name], each) for name, each in layers.items() if each.calls]
    seen.sort(key=lambda layer: layer.worst_db)
    unseen = [name for name, each in layers.items() if not each.calls]
    return Report({layer.name: layer for layer in seen}, unseen, dict(skipped), facts)


def _layer(name: str, module: nn.Linear, seen: LayerStatistics) -> LayerReport:
    columns = seen.columns[seen.gamma]
    tokens = round(seen.tokens / seen.calls)
    energies = [m.deviations + m.count * m.mean**2 for m in (seen.outlier, seen.regular)]
    y_plain = seen.snr["y_plain"].db
    plain = ThresholdResult(None, 0.0, 0, 0, y_plain, y_plain)
    return LayerReport(
        name=name,
        in_features=module.in_features,
        out_features=module.out_features,
        converted=isinstance(module, Int8Linear),
        config=seen.config,
        calls=seen.calls,
        measured_calls=seen.measured,
        measured_gradients=seen.measured_gradients,
        nonfinite_calls=seen.nonfinite,
        frozen=not module.weight.requires_grad,
        tokens=tokens,
        columns=columns.columns(seen.absmax),
        mean_columns=columns.mean,
        most_columns=columns.most,
        capacity=seen.capacity,
        overflow_calls=columns.overflow_calls,
        overflow_columns=columns.overflow_columns,
        stability=columns.stability,
        mean_ratio=columns.mean_ratio,
        largest_ratio=columns.largest_ratio,
        outlier_energy=energies[0] / sum(energies) if sum(energies) else 0.0,
        snr_db={what: each.db for what, each in seen.snr.items()},
        cosine={what: each.value for what, each in seen.cosine.items()},
        thresholds=[plain, *(_threshold(seen, each) for each in seen.columns)],
        bits_db={bits: each.db for bits, each in seen.y_by_bits.items()},
        variance=asdict(mixture_variance(seen.regular, seen.outlier)),
        distortion={arm: _distortion(seen, arm) for arm in (PLAIN, SPLIT)},
        clipped=seen.clipped.value,
        why_float=_why_float(tokens, module),
        absmax=seen.absmax.numpy().copy(),
        histogram=seen.histogram.bars(),
    )


def _why_float(tokens: int, module: nn.Linear) -> str:
    if module.weight.device.type != "cpu":
        return ""
    frozen = not module.weight.requires_grad
    return plan(tokens, module.out_features, module.in_features).why_float(frozen)


def _threshold(seen: LayerStatistics, threshold: float) -> ThresholdResult:
    columns = seen.columns[threshold]
    counts = (columns.mean, columns.most, columns.overflow_calls)
    sums = (seen.y_by_threshold[threshold], seen.y_with_gains[threshold])
    return ThresholdResult(threshold, *counts, *(each.db for each in sums))


def _distortion(seen: LayerStatistics, arm: str) -> dict[str, float] | None:
    change = seen.distortion.measures(arm)
    return None if change is None else asdict(change)
