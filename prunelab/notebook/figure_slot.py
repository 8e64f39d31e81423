"""The figure's place on the screen: a static picture until the page has drawn the figure."""

from __future__ import annotations

from typing import Any

from prunelab.figures.board import Arrange, BoardInfo
from prunelab.figures.style import Theme
from prunelab.notebook.live import changes, drawn, packed
from prunelab.notebook.root import Root
from prunelab.notebook.static_figures import picture


class FigureSlot:
    """Shows the infos given to `show` on the widget `root`.

    The figure and the code that draws it are sent when a page asks, later only what differs; until
    a page reports that it is drawn, the picture is updated as well. Every figure has a `number`,
    which it carries: a page that draws another one than its text belongs to has missed it.
    """

    def __init__(self, root: Root, arrange: Arrange, dark: bool) -> None:
        self._root = root
        self._arrange: Arrange = arrange  # as requested; a narrow page stacks
        self.arrange: Arrange = arrange
        self._theme: Theme = "dark" if dark else "light"
        self._drawn = False  # whether a page has drawn the figure
        self._asked: tuple[BoardInfo, Arrange] | None = None
        self.number = 0  # of that info and arrangement
        self.sent: dict[str, Any] | None = None  # the figure that pages have

    def numbered(self, info: BoardInfo) -> int:
        """The number of `info`, which is shown next."""
        if (info, self.arrange) != self._asked:
            self._asked, self.number = (info, self.arrange), self.number + 1
        return self.number

    def show(self, info: BoardInfo) -> None:
        """Show `info`; nothing is sent if it is already shown."""
        number = self.numbered(info)
        if self.sent is not None and self.sent["layout"]["meta"] != number:
            old, self.sent = self.sent, drawn(info, number, self.arrange, self._theme)
            told = {"after": old["layout"]["meta"], "changes": changes(old, self.sent)}
            self._root.deliver({"do": "change", **told})
        if not self._drawn:
            self._root.put(picture=picture(info))

    def appear(self, info: BoardInfo) -> None:
        """A page shows the screen: it has no figure yet."""
        self._drawn = False
        self._root.put(picture=picture(info))

    def draw(self, info: BoardInfo) -> None:
        """Send the whole figure."""
        self.sent = drawn(info, self.numbered(info), self.arrange, self._theme)
        self._root.deliver({"do": "draw", "figure": self.sent})

    def load(self) -> None:
        """Send the code that draws figures, 1.5 MB."""
        self._root.deliver({"do": "load"}, packed())

    def drawn(self, number: int) -> bool:
        """A page has drawn figure `number`, 0 if none; from then on the picture is not updated.

        Returns whether that is the current one.
        """
        self._drawn = number > 0
        return number == self.number

    def fit(self, narrow: bool) -> None:
        """Stack the panels on a narrow page; otherwise use the requested arrangement."""
        self.arrange = "stack" if narrow else self._arrange
