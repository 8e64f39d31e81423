"""What a network costs: counted, priced at any widths, and measured on the clock."""

from prunelab.cost.counting import Latency, cost, latency, layer_costs

__all__ = ["Latency", "cost", "latency", "layer_costs"]
