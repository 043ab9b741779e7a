"""What is seen of one linear layer: columns in every call, quantisation in the chosen ones."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import nn

from int8tile.analysis.bins import Distortion, MagnitudeHistogram
from int8tile.analysis.columns import OutlierColumns
from int8tile.analysis.divergence import Moments
from int8tile.analysis.measures import Cosine, Share, SignalToNoise
from int8tile.analysis.options import Options
from int8tile.config import Int8TileConfig
from int8tile.ops import checks

DEFAULT_GAMMA = Int8TileConfig().threshold or 0.0
PLAIN, SPLIT = "plain", "split"
GAIN = (None, None, True)  # arguments of int8tile::linear_forward and linear_forward_only
Saved = list[torch.Tensor]  # what int8tile::linear_forward keeps for backward


def weight_cosine(arm: str, grad_split: bool) -> str:
    """Name of the cosine of grad_weight of an arm, PLAIN or SPLIT, with `grad_split` or without."""
    return f"grad_weight_{arm}{'_grad_split' * grad_split}"


class LayerStatistics:
    """Streaming statistics of one layer; their size depends on its features alone.

    Args:
        module: the layer.
        options: what to measure.
    """

    def __init__(self, module: nn.Linear, options: Options) -> None:
        config = options.config or getattr(module, "config", None) or Int8TileConfig()
        self.config: Int8TileConfig = replace(config, threshold=config.threshold or DEFAULT_GAMMA)
        self.options = options
        k, gamma = module.in_features, self.config.threshold
        assert gamma is not None
        self.gamma = gamma
        self.capacity = checks.resolve_capacity("int8tile.analysis.record", k, *self.config.split)
        self.absmax = torch.zeros(k)
        thresholds = sorted({*map(float, options.thresholds), float(gamma)})
        self.columns = {t: OutlierColumns(k, t, self.capacity) for t in thresholds}
        self.calls = self.tokens = self.measured = self.measured_gradients = self.nonfinite = 0
        self.histogram = MagnitudeHistogram()
        self.distortion = Distortion((PLAIN, SPLIT))
        self.clipped = Share()
        self.regular, self.outlier = Moments(), Moments()
        self.snr = {
            name: SignalToNoise()
            for name in ("x_plain", "x_split", "weight", "gradient", "y_plain", "y_split", "y_gain")
        }
        self.y_by_threshold = {t: SignalToNoise() for t in thresholds}
        self.y_with_gains = {t: SignalToNoise() for t in thresholds}
        self.y_by_bits = {b: SignalToNoise() for b in sorted({*options.bits, config.outlier_bits})}
        weights = [weight_cosine(arm, each) for each in (False, True) for arm in (PLAIN, SPLIT)]
        self.cosine = {name: Cosine() for name in ("grad_input", *weights)}

    @property
    def _scales(self) -> tuple[str, str]:
        return self.config.granularity, self.config.scale

    @property
    def _gain(self) -> tuple[Any, ...]:
        """The last arguments of the two ops."""
        return GAIN if self.config.outlier_gain else ()

    @property
    def _plain(self) -> tuple[None, int, None]:
        return None, self.config.outlier_bits, None

    def see(self, x: torch.Tensor, weight: torch.Tensor) -> None:
        """Count the outlier columns of a call, and quantise it if it is chosen.

        Args:
            x: [m, k] the layer's input.
            weight: [n, k].
        """
        magnitude = x.float().abs()
        absmax = magnitude.amax(0)
        finite = bool(absmax.isfinite().all())
        usable = finite and bool(weight.isfinite().all())
        if not usable:
            self.nonfinite += 1
        if not finite:  # as detection does
            absmax = torch.where(magnitude.isfinite(), magnitude, 0).amax(0)
        absmax = absmax.cpu()
        counts = {t: each.add(absmax) for t, each in self.columns.items()}
        self.absmax = torch.maximum(self.absmax, absmax)
        chosen = self.calls % self.options.every == 0
        self.calls += 1
        self.tokens += len(x)
        if chosen and usable:
            self.measured += 1
            self._measure(x, weight, absmax > self.gamma, counts)

    def _measure(
        self, x: torch.Tensor, weight: torch.Tensor, above: torch.Tensor, counts: dict[float, int]
    ) -> None:
        above = above.to(x.device)
        self.histogram.add(x)
        self.outlier.add(x[:, above])
        self.regular.add(x[:, ~above])
        plain, _ = self._input(x, PLAIN)
        split, step = self._input(x, SPLIT)
        self.distortion.add(x, {PLAIN: plain, SPLIT: split}, step)
        self.snr["x_plain"].add(x, plain)
        self.snr["x_split"].add(x, split)
        q, scale = torch.ops.int8tile.quantize(weight, None, *self._scales)
        self.snr["weight"].add(weight, q.float() * scale[:, None])
        self._measure_output(x, weight, counts)

    def _input(self, x: torch.Tensor, arm: str) -> tuple[torch.Tensor, float]:
        """x as the layer multiplies it (but for gains), [m, k] float32, and the median step."""
        split = self._plain if arm == PLAIN else self.config.split
        q, high, low, scale, index, _ = torch.ops.int8tile.quantize_split(x, *split, *self._scales)
        values: torch.Tensor = q.float()
        columns = index[index >= 0].long()
        limbs = 128 * high[:, : len(columns)].float() + low[:, : len(columns)].float()
        values[:, columns] = limbs
        real: torch.Tensor = values * scale[:, None]
        if arm == SPLIT:
            self.clipped.add(self._count_clipped(x[:, columns], limbs, scale), x.numel())
        return real, float(scale.median())

    def _count_clipped(self, x: torch.Tensor, limbs: torch.Tensor, scale: torch.Tensor) -> int:
        """Count outlier values [m, outliers] that rounding takes beyond the largest integer.

        Regular values never are: their scale covers them. An outlier keeps `outlier_bits` bits of
        a step that is a power of two times the row's, so its row's largest may round up to one more
        than those bits hold.
        """
        if not limbs.numel():
            return 0
        dims = (0, 1) if self.config.granularity == "tensor" else (1,)
        largest = limbs.abs().amax(dims, keepdim=True)
        bits = self.config.outlier_bits - 1
        dropped = (torch.frexp(largest).exponent - bits).clamp(min=0)
        limit = torch.ldexp(torch.full_like(largest, 2**bits - 0.5), dropped)
        inv = torch.where(scale > 0, 1 / scale, 0)  # as quantisation does
        return int((x.float().abs() * inv[:, None] >= limit).sum())

    def _measure_output(
        self, x: torch.Tensor, weight: torch.Tensor, counts: dict[float, int]
    ) -> None:
        exact = x.float() @ weight.float().t()

        def snr(split: tuple[float | None, int, int | None], gained: bool) -> SignalToNoise:
            y = torch.ops.int8tile.linear_forward_only(
                x, weight, None, *split, *self._scales, torch.float32, *(GAIN if gained else ())
            )
            measured = SignalToNoise()
            measured.add(exact, y)
            return measured

        plain = snr(self._plain, False)
        self.snr["y_plain"].add_sums(plain)
        _, bits, capacity = self.config.split
        known: dict[tuple[float, bool], SignalToNoise] = {}

        def at(threshold: float, gained: bool) -> SignalToNoise:
            count = counts[threshold]
            if count == 0:
                return plain
            # Columns above a threshold are nested: their number tells them. Gains depend on it.
            key = (threshold, True) if gained else (count, False)
            if key not in known:
                known[key] = snr((threshold, bits, capacity), gained)
            return known[key]

        for threshold in counts:
            self.y_by_threshold[threshold].add_sums(at(threshold, False))
            self.y_with_gains[threshold].add_sums(at(threshold, True))
        self.snr["y_split"].add_sums(at(self.gamma, False))
        self.snr["y_gain"].add_sums(at(self.gamma, True))
        gained = self.config.outlier_gain
        for each, sums in self.y_by_bits.items():
            same = each == bits or counts[self.gamma] == 0
            split = (self.gamma, each, capacity)
            sums.add_sums(at(self.gamma, gained) if same else snr(split, gained))

    def see_gradient(
        self, x: torch.Tensor, weight: torch.Tensor, g: torch.Tensor, needs: tuple[bool, bool]
    ) -> None:
        """Compare the int8 gradients of a call with float ones.

        Args:
            x: [m, k] the layer's input.
            weight: [n, k].
            g: [m, n] gradient of the output.
            needs: whether the gradients of input and weight are wanted.
        """
        if not (x.isfinite().all() and weight.isfinite().all()):  # counted in the forward pass
            return
        if not g.isfinite().all():
            self.nonfinite += 1
            return
        self.measured_gradients += 1
        # The rounding of g has a seed of its own, so that torch's generator stays where it is.
        seed = torch.tensor([self.measured_gradients], device=g.device)
        how = (*self._scales, self.config.grad_rounding, seed)
        granularity, scale, rounding, _ = how
        q, scales = torch.ops.int8tile.quantize(g, None, granularity, scale, rounding, seed)
        self.snr["gradient"].add(g, q.float() * scales[:, None])
        if needs[0]:
            grad = torch.ops.int8tile.linear_grad_input(g, weight, *how, torch.float32)
            self.cosine["grad_input"].add(g.float() @ weight.float(), grad)
        if needs[1]:
            exact = g.float().t() @ x.float()
            for arm, split in ((PLAIN, self._plain), (SPLIT, self.config.split)):
                saved = self._save(x, weight, split)
                for grad_split in (False, True):
                    grad, _ = torch.ops.int8tile.linear_grad_weight(
                        g, *saved, weight.shape[1], *how, torch.float32, False, grad_split
                    )
                    self.cosine[weight_cosine(arm, grad_split)].add(exact, grad)

    def _save(
        self, x: torch.Tensor, weight: torch.Tensor, split: tuple[float | None, int, int | None]
    ) -> Saved:
        # No output features: x is quantised for backward, and nothing multiplied. Gains need w.
        weight = weight if self._gain else weight[:0]
        _, *saved = torch.ops.int8tile.linear_forward(
            x, weight, None, *split, *self._scales, None, *self._gain
        )
        return list(saved)
