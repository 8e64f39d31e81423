"""Batches through a network: running, training, comparing on the same images."""
