"""The `prunelab` program."""
