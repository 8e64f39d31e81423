"""The screen for Jupyter: the only folder that imports anywidget."""

from prunelab.notebook.screen import Screen, show

__all__ = ["Screen", "show"]
