"""What int8 does to the linear layers of a model, measured while it runs. Start at `record`.

with int8tile.analysis.record(model) as recording:
    ...  # some training steps
report = recording.report()
print(report)
int8tile.convert_(model, report.recommendation.config)
"""

from int8tile.analysis.divergence import (
    MixtureVariance,
    Moments,
    chi_square_divergence,
    hammersley_chapman_robbins,
    mixture_variance,
)
from int8tile.analysis.measures import Cosine, SignalToNoise
from int8tile.analysis.recommend import Recommendation, recommend
from int8tile.analysis.recording import Recording, record
from int8tile.analysis.results import LayerReport, Report

__all__ = [
    "Cosine",
    "LayerReport",
    "MixtureVariance",
    "Moments",
    "Recommendation",
    "Recording",
    "Report",
    "SignalToNoise",
    "chi_square_divergence",
    "hammersley_chapman_robbins",
    "mixture_variance",
    "recommend",
    "record",
]
