"""The figure's place on the screen: a picture, until a page has drawn the figure itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from prunelab.figures.board import Arrange, BoardInfo
from prunelab.notebook.html_widget import HtmlWidget
from prunelab.notebook.static_figures import picture


class FigureSlot:
    """Shows the infos given to `show`; `told` hears what is clicked in the figure.

    The figure is large and slow to make, so that is left to the page's first word; until it has
    said that the figure is drawn, the picture in `panel` is kept up to date, too.
    """

    def __init__(
        self, panel: HtmlWidget, arrange: Arrange, dark: bool, told: Callable[[str, Any, Any], None]
    ) -> None:
        self.live: Any = None  # a Live, once there is a figure
        self._panel = panel
        self._arrange: Arrange = arrange  # as asked for; a narrow page stacks
        self.arrange: Arrange = arrange
        self._dark = dark
        self._told = told
        self._drawn = False  # whether a page has drawn the figure

    def show(self, info: BoardInfo) -> None:
        """Show `info`."""
        if self.live is not None:
            self.live.draw(info)
        if not self._drawn:  # a figure that is still on its way hears of no redraw
            self._panel.show(picture=picture(info))
            self.settle()

    def appear(self, info: BoardInfo) -> None:
        """A page shows the screen anew: it has no figure yet."""
        self._drawn = False
        self._panel.show(picture=picture(info))

    def drawn(self) -> None:
        """A page has drawn the figure: the picture need not follow any more."""
        self._drawn = True

    def make(self, info: BoardInfo) -> None:
        """Make the figure; plotly is imported only now."""
        from prunelab.notebook.live import Live

        self.live = Live(info, self.arrange, "dark" if self._dark else "light")
        self.live.on_click("importance", lambda unit: self._told("flip", None, unit))
        self.live.on_click("widths", lambda name: self._told("group", name, None))
        self.live.on_click("trajectory", lambda seq: self._told("point", None, seq))

    def fit(self, narrow: bool) -> Arrange:
        """Put the panels under each other on a narrow page, else as was asked for."""
        self.arrange = "stack" if narrow else self._arrange
        if self.live is not None:
            self.live.rearrange(self.arrange)
            self.live.settle()
        return self.arrange

    def settle(self) -> None:
        """Make a page that is loaded anew show what is shown now."""
        if self.live is not None:
            self.live.settle()

    def leave(self) -> None:
        """Give the figure away."""
        if self.live is not None:
            self.live.leave()
            self.live = None
