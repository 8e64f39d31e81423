"""Modules: attributes that state a width, and convolutions that select channels."""
