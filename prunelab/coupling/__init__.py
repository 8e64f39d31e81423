"""How channel labels move through a network: which operations carry, couple or freeze them."""
