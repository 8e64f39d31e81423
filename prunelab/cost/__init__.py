"""The cost of a network: counted, computed for any widths, and measured as latency."""

from prunelab.cost.counting import Latency, cost, latency, layer_costs

__all__ = ["Latency", "cost", "latency", "layer_costs"]
