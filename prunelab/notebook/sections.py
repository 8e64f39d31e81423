"""The sections below the figure; contents of closed ones are not computed, but for the boxes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape

from prunelab.figures.board import legend, signs
from prunelab.ledger import history_words
from prunelab.ledger.events import Event
from prunelab.notebook import text
from prunelab.notebook.background import CHANNEL, COMPARE
from prunelab.notebook.form import settings
from prunelab.notebook.markup import section, tag
from prunelab.notebook.panes import changes, channel, comparison, costs, export_form
from prunelab.notebook.parameters import parameters_form, values_of
from prunelab.notebook.rows import layers
from prunelab.notebook.view import View

FIGURE, SETTINGS = "figure", "settings"
NAMES = (
    "key",
    "layers",
    "method",
    SETTINGS,
    "changes",
    CHANNEL,
    "costs",
    COMPARE,
    "history",
    "export",
)


def sections(view: View, events: Sequence[Event]) -> dict[str, str]:
    """The HTML of every section, by name."""
    method = text.method_title(view.method.name, values_of(view.method))
    made: dict[str, tuple[str, str, Callable[[View], str]]] = {
        "layers": (text.LAYERS, text.LAYERS_TIP, layers),
        "method": (method, text.METHOD_TIP, parameters_form),
        SETTINGS: (text.settings(view.aims.steps, view.step_time), text.SETTINGS_TIP, settings),
        "changes": (text.CHANGES, text.CHANGES_TIP, changes),
        CHANNEL: (text.ONE, text.ONE_TIP, channel),
        "costs": (text.COST, text.COST_TIP, costs),
        COMPARE: (text.COMPARE, text.COMPARE_TIP, comparison),
        "history": (
            text.HISTORY,
            text.HISTORY_TIP,
            lambda _: history_words.history(view.state, events),
        ),
        "export": (text.EXPORT, text.EXPORT_TIP, export_form),
    }
    return {"key": key(view)} | {
        name: section(
            name,
            title,
            inside(view) if name in view.opened or name == SETTINGS else "",
            tip,
            view.revealed if name == COMPARE else 0,
        )
        for name, (title, tip, inside) in made.items()
    }


def key(view: View) -> str:
    """What the figure's colours mean, and whether its lower part is shown."""
    whole = FIGURE in view.opened
    more = tag(
        "button", text.LESS if whole else text.MORE, kind="pl-more", type="button",
        title=text.MORE_TIP, data_do="unfold", data_arg=FIGURE, value="" if whole else "1",
        aria_expanded="true" if whole else "false",
    )  # fmt: skip
    told = tag("span", legend(signs(view.info, whole)))
    how = tag("p", escape(view.info.importance.how), kind="pl-how")
    return how + tag("div", more, told, kind="pl-key")
