"""Comparisons of methods, their fidelity to an oracle, and the re-design of widths."""
