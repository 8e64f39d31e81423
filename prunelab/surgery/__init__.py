"""Editing networks: narrower, wider, masked, and the same again from a fresh one."""

from prunelab.surgery.editing import cut, masked, rebuild, sampled
from prunelab.surgery.widening import widened

__all__ = ["cut", "masked", "rebuild", "sampled", "widened"]
