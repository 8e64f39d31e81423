"""What is measured: one streaming pass over the data, mergeable by addition."""

from prunelab.evidence.ablation import Ablation, ablate
from prunelab.evidence.aimed_gram import AimedGram, aiming
from prunelab.evidence.contribution import ConsumerGram, ContributionGram
from prunelab.evidence.damage_curves import Curve, damage_curve
from prunelab.evidence.evidence import Evidence
from prunelab.evidence.mask_gradients import MaskGradients
from prunelab.evidence.measure import measure
from prunelab.evidence.patch_moments import PatchMoments

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
