"""What is measured: one streaming pass over the data, mergeable by addition.

May import values, channels, calls, tracing, fingerprint.
"""

from prunelab.evidence.contribution import ConsumerGram, ContributionGram
from prunelab.evidence.measure import Evidence, measure
from prunelab.evidence.moments import PatchMoments

__all__ = ["ConsumerGram", "ContributionGram", "Evidence", "PatchMoments", "measure"]
