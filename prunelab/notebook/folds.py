"""The folds below the figure; the contents of one that is closed are not made."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from prunelab import words
from prunelab.figures.board import LEGEND
from prunelab.ledger import Event
from prunelab.notebook import text
from prunelab.notebook.markup import fold, tag
from prunelab.notebook.parameters import parameters_form, values_of
from prunelab.notebook.rows import layers
from prunelab.notebook.view import View

NAMES = ("key", "method", "layers", "history")
FIGURE = "figure"


def folds(view: View, events: Sequence[Event]) -> dict[str, str]:
    """The HTML of every fold, by name."""
    method = text.method_fold(view.method.name, values_of(view.method))
    made: dict[str, tuple[str, str, Callable[[], str]]] = {
        "method": (method, text.THETA_TIP, lambda: parameters_form(view)),
        "layers": (text.LAYERS, text.LAYERS_TIP, lambda: layers(view)),
        "history": (text.HISTORY, text.HISTORY_TIP, lambda: words.history(view.state, events)),
    }
    return {"key": key(view)} | {
        name: fold(name, title, inside() if name in view.opened else "", tip)
        for name, (title, tip, inside) in made.items()
    }


def key(view: View) -> str:
    """What the figure's colours mean, and whether its lower half is shown."""
    whole = FIGURE in view.opened
    more = tag(
        "button", text.LESS if whole else text.MORE, kind="pl-more", type="button",
        title=text.MORE_TIP, data_do="unfold", data_arg=FIGURE, value="" if whole else "1",
        aria_expanded="true" if whole else "false",
    )  # fmt: skip
    return tag("div", more, tag("span", LEGEND), kind="pl-key")
