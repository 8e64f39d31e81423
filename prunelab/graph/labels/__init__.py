"""Labels: how channels are followed through a network."""
