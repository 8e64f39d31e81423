"""Experiments: comparison of methods, fidelity to the oracle, re-design of widths."""
