"""What is measured: one streaming pass over the data, mergeable by addition.

May import values, channels, calls, surgery, tracing, fingerprint.
"""

from prunelab.evidence.ablation import Ablation, ablate
from prunelab.evidence.contribution import ConsumerGram, ContributionGram
from prunelab.evidence.gradient import MaskGradients
from prunelab.evidence.measure import Evidence, measure
from prunelab.evidence.moments import PatchMoments

__all__ = [
    "Ablation",
    "ConsumerGram",
    "ContributionGram",
    "Evidence",
    "MaskGradients",
    "PatchMoments",
    "ablate",
    "measure",
]
