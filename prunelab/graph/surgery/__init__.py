"""Editing networks: cutting, masking, widening and rebuilding."""
