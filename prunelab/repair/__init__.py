"""Repair without training: least squares, per-channel rescaling, BatchNorm statistics."""

from prunelab.repair.least_squares import repairing
from prunelab.repair.recalibration import recalibrating
from prunelab.repair.rescale import rescaling

__all__ = ["recalibrating", "repairing", "rescaling"]
