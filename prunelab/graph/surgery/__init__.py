"""Editing networks: narrower, wider, masked, and the same again from a fresh one."""
