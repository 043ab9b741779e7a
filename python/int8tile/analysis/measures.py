"""Signal-to-noise ratio, cosine and shares, kept as sums that batches add to."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch

CHUNK = 2**18  # values at a time: large temporaries cost more in page faults than in arithmetic


def _doubles(*tensors: torch.Tensor) -> Iterator[tuple[torch.Tensor, ...]]:
    """Tensors of one shape as vectors in float64, since squares of small gradients are below
    float32's range."""
    for chunks in zip(*(torch.split(each.reshape(-1), CHUNK) for each in tensors), strict=True):
        yield tuple(each.double() for each in chunks)


@dataclass
class SignalToNoise:
    """The signal-to-quantisation-noise ratio of all batches added.

        SNR = 10 log10( sum exact**2 / sum (approximate - exact)**2 )   in dB

    Source: the usual definition, with the quantisation error as the noise.
    """

    signal: float = 0.0
    noise: float = 0.0

    def add(self, exact: torch.Tensor, approximate: torch.Tensor) -> None:
        """Add a batch: two tensors of one shape."""
        for x, y in _doubles(exact, approximate):
            error = y - x
            self.signal += float(x @ x)
            self.noise += float(error @ error)

    def add_sums(self, other: SignalToNoise) -> None:
        """Add what another one has summed."""
        self.signal += other.signal
        self.noise += other.noise

    @property
    def db(self) -> float | None:
        """The ratio in dB; inf without noise, -inf where the noise is not finite, None without a
        finite signal."""
        if self.signal == 0 or not math.isfinite(self.signal):
            return None
        if not math.isfinite(self.noise):
            return -math.inf
        return math.inf if self.noise == 0 else 10 * math.log10(self.signal / self.noise)


@dataclass
class Share:
    """A share of values, to which each batch adds its count."""

    count: int = 0
    of: int = 0

    def add(self, count: int, of: int) -> None:
        """Add a batch: `count` of `of` values."""
        self.count += count
        self.of += of

    @property
    def value(self) -> float | None:
        """The share, 0..1; None of nothing."""
        return self.count / self.of if self.of else None


@dataclass
class Cosine:
    """The cosine of the angle between two vectors, to which each batch adds elements.

    cos = sum a * b / sqrt( sum a**2 * sum b**2 )
    """

    dot: float = 0.0
    a_squares: float = 0.0
    b_squares: float = 0.0

    def add(self, a: torch.Tensor, b: torch.Tensor) -> None:
        """Add a batch: two tensors of one shape."""
        for x, y in _doubles(a, b):
            self.dot += float(x @ y)
            self.a_squares += float(x @ x)
            self.b_squares += float(y @ y)

    @property
    def value(self) -> float | None:
        """The cosine, -1..1; None where a vector is zero or not finite."""
        sums = (self.dot, self.a_squares, self.b_squares)
        if 0 in sums[1:] or not all(map(math.isfinite, sums)):
            return None
        return max(-1.0, min(1.0, self.dot / math.sqrt(self.a_squares) / math.sqrt(self.b_squares)))


def cosine_in_db(cosine: float) -> float:
    """The signal-to-noise ratio at which noise at right angles to the signal gives this cosine.

        SNR = 10 log10( c**2 / (1 - c**2) )   in dB; -inf for a cosine of 0 or less

    It puts gradients on the scale of the outputs: 20 dB are a cosine of 0.995, 10 dB of 0.953.

    Args:
        cosine: -1..1.
    """
    if cosine <= 0:
        return -math.inf
    return math.inf if cosine >= 1 else 10 * math.log10(cosine**2 / (1 - cosine**2))
