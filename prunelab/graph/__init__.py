"""Coupled channels: `trace` finds them, `surgery` removes them."""
