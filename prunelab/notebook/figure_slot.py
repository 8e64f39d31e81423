"""The figure's place on the screen: a static picture until the page has drawn the figure."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from prunelab.figures.board import Arrange, BoardInfo
from prunelab.figures.style import Theme
from prunelab.notebook.html_widget import HtmlWidget
from prunelab.notebook.static_figures import picture


class FigureSlot:
    """Shows the infos given to `show`; `told` is called with clicks in the figure.

    The figure is large and slow to make, so it is made after the page's first message; until the
    page reports that it is drawn, the picture in `panel` is updated as well. Every info has a
    `number`, which the figure carries: a page that draws another one than its text has missed it.
    """

    def __init__(
        self, panel: HtmlWidget, arrange: Arrange, dark: bool, told: Callable[[str, Any, Any], None]
    ) -> None:
        self.live: Any = None  # a Live, once there is a figure
        self._panel = panel
        self._arrange: Arrange = arrange  # as requested; a narrow page stacks
        self.arrange: Arrange = arrange
        self._dark = dark
        self._told = told
        self._drawn = False  # whether a page has drawn the figure
        self._info: BoardInfo | None = None
        self.number = 0  # of that info

    def numbered(self, info: BoardInfo) -> int:
        """The number of `info`, which is shown next."""
        if info != self._info:
            self._info, self.number = info, self.number + 1
        return self.number

    def show(self, info: BoardInfo) -> None:
        """Show `info`."""
        number = self.numbered(info)
        if self.live is not None:
            self.live.draw(info, number)
        if not self._drawn:  # a figure that is not drawn yet misses redraws
            self._panel.show(picture=picture(info))
            self.settle()

    def appear(self, info: BoardInfo) -> None:
        """A page shows the screen again: it has no figure yet."""
        self._drawn = False
        self._panel.show(picture=picture(info))

    def drawn(self, number: int) -> bool:
        """A page has drawn figure `number`: the picture is no longer updated.

        Returns whether that is the current one.
        """
        self._drawn = True
        return number == self.number

    def make(self, info: BoardInfo) -> None:
        """Make the figure; plotly is imported only now."""
        from prunelab.notebook.live import Live

        theme: Theme = "dark" if self._dark else "light"
        self.live = Live(info, self.numbered(info), self.arrange, theme)
        self.live.on_click("importance", lambda unit: self._told("flip", None, unit))
        self.live.on_click("widths", lambda name: self._told("group", name, None))
        self.live.on_click("trajectory", lambda seq: self._told("point", None, seq))

    def fit(self, narrow: bool) -> Arrange:
        """Stack the panels on a narrow page; otherwise use the requested arrangement."""
        self.arrange = "stack" if narrow else self._arrange
        if self.live is not None:
            self.live.rearrange(self.arrange)
        return self.arrange

    def settle(self) -> None:
        """Send the whole figure."""
        if self.live is not None:
            self.live.settle()

    def leave(self) -> None:
        """Release the figure for another screen."""
        if self.live is not None:
            self.live.leave()
            self.live = None
