"""What is measured: one streaming pass over the data, mergeable by addition.

May import values, channels, calls, tracing, fingerprint.
"""

from prunelab.evidence.aim import AimedGram, aiming
from prunelab.evidence.contribution import ConsumerGram, ContributionGram
from prunelab.evidence.curve import Curve, damage_curve
from prunelab.evidence.measure import Evidence, measure
from prunelab.evidence.moments import PatchMoments

__all__ = [
    "AimedGram",
    "ConsumerGram",
    "ContributionGram",
    "Curve",
    "Evidence",
    "PatchMoments",
    "aiming",
    "damage_curve",
    "measure",
]
