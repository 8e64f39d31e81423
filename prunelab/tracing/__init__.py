"""`trace`: the channel graph of a network, from labels, checked by a probe cut."""

from prunelab.tracing.tracer import trace

__all__ = ["trace"]
