"""The widgets around the figure: made once, filled by the screen."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

import ipywidgets as ipw

from prunelab.figures.board import LEGEND, BoardInfo
from prunelab.ledger import State
from prunelab.notebook import text
from prunelab.training import STEPS
from prunelab.values import Units

STYLES = {"propose": "primary", "approve": "success", "reject": "warning", "stop": "danger"}
WRAP = {"display": "flex", "flex_flow": "row wrap", "width": "100%", "overflow": "visible"}


def enabled(state: State, busy: bool) -> dict[str, bool]:
    """Which buttons can be pressed."""
    pending = state.pending is not None
    free = not pending or state.stale
    can = {
        "propose": free,
        "approve": pending and not state.stale,
        "adjust": pending,
        "reject": pending,
        "undo": state.undoable,
        "repair": free and state.now.parent is not None,
        "tune": free,
        "run": free,
    }
    return {**{verb: can[verb] and not busy for verb in can}, "stop": busy}


def said(words: str, kind: str, role: str = "") -> str:
    """`words` as one line of HTML; a `role` makes screen readers say it."""
    spoken = f' role="{role}"' if role else ""
    return f'<div class="prunelab-{kind}"{spoken}>{escape(words)}</div>' if words else ""


class Controls:
    """Buttons, boxes and lines of text. `rows` are they in the order of the screen."""

    def __init__(self) -> None:
        self.buttons: dict[str, ipw.Button] = {
            verb: ipw.Button(
                description=text.label(verb),
                tooltip=tip,
                button_style=STYLES.get(verb, ""),
                layout={"width": "82px", "height": "34px", "margin": "2px 5px 2px 0"},
            )
            for verb, tip in text.VERBS.items()
        }
        self.line, self.sentence, self.error = (ipw.HTML() for _ in range(3))
        self.group = ipw.Dropdown(
            description=text.GROUP,
            style={"description_width": "initial"},
            layout={"width": "330px", "margin": "2px 12px 2px 0"},
        )
        self.count = self._number(ipw.BoundedIntText, text.COUNT, text.COUNT_TIP, 0, 0, 0)
        self.units = self._typed(text.UNITS, text.UNITS_TIP)
        self.target = self._number(ipw.BoundedIntText, text.TARGET_MACS, text.TARGET_TIP, 50, 1, 99)
        self.guard = self._number(ipw.BoundedFloatText, text.GUARD, text.GUARD_TIP, 0, 0, 100)
        self.steps = self._number(ipw.BoundedIntText, text.STEPS, "", STEPS, 1, 1_000_000)
        self.reason = self._typed(text.REASON, text.REASON_TIP)
        self.bar = ipw.FloatProgress(min=0, max=1, layout={"width": "280px"})
        self.work = ipw.HTML()
        self.working = ipw.Box([self.bar, self.work], layout={**WRAP, "display": "none"})
        hint = ipw.HTML(said(text.HINT, "hint"))
        self.adjusting = ipw.Box(
            [self.count, self.units, self.reason, hint], layout={**WRAP, "display": "none"}
        )
        self.history = ipw.HTML()
        trail = ipw.Accordion([self.history], titles=(text.HISTORY,), selected_index=None)
        self.rows = (
            self.line,
            ipw.Box(list(self.buttons.values()), layout=WRAP),
            self.error,
            self.sentence,
            self.working,
            self.adjusting,
            ipw.Box([self.group, self.target, self.guard, self.steps], layout=WRAP),
        )
        self.below = (ipw.HTML(LEGEND), trail)

    def fill(self, info: BoardInfo, chosen: Units) -> None:
        """Set the boxes to the group that is drawn, with `chosen` to be dropped of it."""
        shown = info.importance
        self.group.options = [(text.option(row), row.name) for row in info.widths.rows]
        self.group.value = shown.group
        alive = sum(fate != "gone" for fate in shown.fates)
        self.count.max = max(alive - 1, len(chosen))
        self.count.value = len(chosen)
        self.units.value = ", ".join(map(str, chosen))

    def call(self, verb: str, session: Any, drop: Mapping[str, Units]) -> None:
        """Say `verb` to the session with what the boxes hold; `drop` is what Adjust takes."""
        match verb:
            case "adjust":
                session.adjust(drop=drop)
            case "reject":
                session.reject(self.reason.value)
            case "tune":
                session.tune(steps=self.steps.value)
            case "run":
                session.run(
                    target_macs=self.target.value / 100,
                    min_accuracy=self.guard.value / 100 or None,
                )
            case _:
                getattr(session, verb)()

    @staticmethod
    def _number(
        kind: Any, description: str, tip: str, value: float, low: float, high: float
    ) -> Any:
        return kind(
            value=value,
            min=low,
            max=high,
            description=description,
            tooltip=tip,
            style={"description_width": "initial"},
            layout={"width": "170px", "margin": "2px 12px 2px 0"},
        )

    @staticmethod
    def _typed(description: str, tip: str) -> ipw.Text:
        return ipw.Text(
            description=description,
            tooltip=tip,
            placeholder=tip,
            continuous_update=False,
            style={"description_width": "initial"},
            layout={"width": "330px", "margin": "2px 12px 2px 0"},
        )
