"""Repair without training: least squares, one factor a channel, BatchNorm statistics."""
