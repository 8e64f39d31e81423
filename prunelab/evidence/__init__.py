"""What is measured: one streaming pass over the data, mergeable by addition.

May import values, channels, coupling, surgery, tracing, fingerprint.
"""

from prunelab.evidence.ablation import Ablation, ablate
from prunelab.evidence.aim import AimedGram, aiming
from prunelab.evidence.contribution import ConsumerGram, ContributionGram
from prunelab.evidence.curve import Curve, damage_curve
from prunelab.evidence.evidence import Evidence
from prunelab.evidence.gradient import MaskGradients
from prunelab.evidence.measure import measure
from prunelab.evidence.moments import PatchMoments

__all__ = [
    "Ablation",
    "AimedGram",
    "ConsumerGram",
    "ContributionGram",
    "Curve",
    "Evidence",
    "MaskGradients",
    "PatchMoments",
    "ablate",
    "aiming",
    "damage_curve",
    "measure",
]
