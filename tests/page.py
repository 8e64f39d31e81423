"""A page without a browser: finds the controls in a screen's HTML and operates them."""

from __future__ import annotations

from html.parser import HTMLParser
from typing import Any

from prunelab.notebook import Screen

VOID = {"input", "br"}


class Element(dict[str, Any]):
    """The attributes of an element, `tag` and the `text` inside."""

    def __init__(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        super().__init__({name: value if value is not None else True for name, value in attributes})
        self.tag, self.text = tag, ""

    def has(self, kind: str) -> bool:
        """Whether `kind` is one of its classes."""
        return kind in self.get("class", "").split()


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[Element] = []
        self.inside: list[Element] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append(Element(tag, attrs))
        if tag not in VOID:
            self.inside.append(self.found[-1])

    def handle_endtag(self, tag: str) -> None:
        assert self.inside.pop().tag == tag, "elements must close in order"

    def handle_data(self, data: str) -> None:
        for element in self.inside:
            element.text += data


def elements(html: str) -> list[Element]:
    """Every element of `html`, which must be well formed."""
    reader = _Reader()
    reader.feed(html)
    assert not reader.inside, "an element is left open"
    return reader.found


class Page:
    """The screen as a person sees it."""

    def __init__(self, screen: Screen) -> None:
        self.screen = screen

    @property
    def html(self) -> str:
        """All parts."""
        return "".join(map(self.screen.part, (*self.screen._above, *self.screen._below)))

    @property
    def elements(self) -> list[Element]:
        """All elements."""
        return elements(self.html)

    def said(self, kind: str) -> str:
        """The text of the elements of this class."""
        return " ".join(e.text for e in self.elements if e.has(f"pl-{kind}"))

    def find(self, do: str, arg: Any = None) -> Element:
        """The first element that does `do` with `arg`."""
        for element in self.elements:
            if element.get("data-do") == do and element.get("data-arg") == arg:
                return element
        raise AssertionError(f"nothing on the page does {do} {arg}")

    def click(self, do: str, arg: Any = None) -> None:
        """Click what does `do`."""
        element = self.find(do, arg)
        assert "disabled" not in element, f"{do} {arg} is off"
        self.screen._told(do, arg, element.get("value"), False)

    def put(self, do: str, arg: Any, value: Any, live: bool = False) -> None:
        """Put `value` into a box, a list or a slider, as the text that a page makes of it."""
        element = self.find(do, arg)
        assert "disabled" not in element, f"{do} {arg} is off"
        assert not live or "data-live" in element
        given = value if isinstance(value, bool) else str(value)
        self.screen._told(do, arg, given, live)

    def unfold(self, name: str) -> None:
        """Open a section."""
        assert any(e.get("data-section") == name for e in self.elements)
        self.screen._told("unfold", name, True, False)

    def value(self, do: str, arg: Any = None) -> Any:
        """What stands in a box; of a checkbox whether it is ticked."""
        element = self.find(do, arg)
        return "checked" in element if element.get("type") == "checkbox" else element.get("value")

    @property
    def on(self) -> set[str]:
        """The verbs that can be pressed."""
        buttons = [e for e in self.elements if e.get("data-do") == "press"]
        return {e["data-arg"] for e in buttons if "disabled" not in e}
