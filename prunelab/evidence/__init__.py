"""What is measured: one streaming pass over the data, mergeable by addition."""

from prunelab.evidence.ablation import Ablation, ablate
from prunelab.evidence.contribution import ConsumerGram, ContributionGram
from prunelab.evidence.evidence import Evidence
from prunelab.evidence.greedy_removal import Curve, damage_curve
from prunelab.evidence.mask_gradients import MaskGradients
from prunelab.evidence.measure import measure
from prunelab.evidence.patch_moments import PatchMoments
from prunelab.evidence.reconstruction_target import AimedGram, aiming

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
