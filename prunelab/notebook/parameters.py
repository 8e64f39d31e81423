"""The fold with the method and its own parameters: a box for every field of its dataclass."""

from __future__ import annotations

import ast
import inspect
import math
from collections.abc import Callable
from dataclasses import fields, replace
from functools import partial
from itertools import chain
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import ipywidgets as ipw

from prunelab import words
from prunelab.errors import InvalidValue
from prunelab.figures.ladder import rejudged
from prunelab.ledger import State
from prunelab.methods import METHODS, make_method
from prunelab.methods.contract import parameters
from prunelab.notebook import text
from prunelab.notebook.controls import WRAP, said

THETA = "theta"  # has a slider and words of its own
DECADES = (-4, 0)  # of the slider: theta from 0.0001 to 1
Make = Callable[[], Any]


class Parameters:
    """A list of methods, and a box for every field of the session's; theta has a slider, too.

    A change calls `asked` with a function that makes the method, and raises what the method's
    own validation raises. The boxes only ask: `follow` sets them to what there is.
    """

    def __init__(self, asked: Callable[[Make], None]) -> None:
        self._asked = asked
        self.shown: Any = None  # the method whose parameters stand in the boxes
        self._hints: dict[str, Any] = {}
        self._kinds: dict[str, Any] = {}
        self._known: dict[str, Any] = {}  # the methods shown so far, with their parameters
        self._quiet = False  # whether the boxes change because `follow` sets them
        self.boxes: dict[str, Any] = {}
        self.method = box_of(text.METHOD, ())
        self.method.observe(lambda change: self._picked(change["new"]), "value")
        self.slider = ipw.FloatLogSlider(
            min=DECADES[0],
            max=DECADES[1],
            step=0.05,
            readout=False,
            continuous_update=False,
            tooltip=text.THETA_TIP,
            layout={"width": "260px", "margin": "2px 12px 2px 0"},
        )
        self.slider.observe(lambda change: self._slid(change["new"]), "value")
        self.about, self.words, self.note = (ipw.HTML() for _ in range(3))
        self._theta, self._rest = ipw.Box(layout=WRAP), ipw.Box(layout=WRAP)
        first = ipw.Box([self.method, self.about], layout=WRAP)
        self.fold = ipw.Accordion(
            [ipw.VBox([first, self._theta, self._rest, self.note])], selected_index=None
        )

    def follow(self, method: Any, state: State, busy: bool) -> None:
        """Show the parameters of `method`; they cannot be changed while a verb is at work."""
        self._quiet = True
        try:
            self._show(method)
        finally:
            self._quiet = False
        for box in (self.method, self.slider, *self.boxes.values()):
            box.disabled = busy
        outdated = state.pending is not None and others(state, method)
        self.note.value = said(text.OUTDATED if outdated else "", "hint", "status")

    def _show(self, method: Any) -> None:
        values = {f.name: getattr(method, f.name) for f in fields(method) if f.init}
        if type(method) is not type(self.shown):
            self._hints, self._kinds = hints_of(type(method)), {}
            self.about.value = said(text.about(inspect.getdoc(type(method))), "hint")
        self.shown = self._known[method.name] = method
        names = sorted({*METHODS, *self._known})
        self.method.options = [(words.method(name), name) for name in names]
        self.method.value = method.name
        kinds = {name: kind_of(self._hints.get(name), value) for name, value in values.items()}
        if kinds != self._kinds:
            self._kinds = kinds
            self._build()
        for name, box in self.boxes.items():
            box.value = written(values[name]) if kinds[name] is ipw.Text else values[name]
        if THETA in values:
            self.slider.value = max(values[THETA], 10.0 ** DECADES[0])
        self.words.value = said(text.theta(values[THETA]) if THETA in values else "", "words")
        self.fold.titles = (text.fold(method.name, values),)

    def _build(self) -> None:
        for box in self.boxes.values():
            box.close()
        self.boxes = {name: box_of(name, kind) for name, kind in self._kinds.items()}
        for name, box in self.boxes.items():
            box.observe(partial(self._changed, name), "value")
        theta = self.boxes.get(THETA)
        self._theta.children = () if theta is None else (theta, self.slider, self.words)
        self._rest.children = tuple(box for name, box in self.boxes.items() if name != THETA)

    def _picked(self, name: str) -> None:
        if not self._quiet:
            self._asked(lambda: self._known.get(name) or make_method(name))

    def _changed(self, name: str, change: Any) -> None:
        if self._quiet:
            return
        given, typed = change["new"], self._kinds[name] is ipw.Text

        def make() -> Any:
            value = read(given, self._hints.get(name)) if typed else given
            return replace(self.shown, **{name: value})

        self._asked(make)

    def _slid(self, value: float) -> None:
        if not self._quiet:
            self.boxes[THETA].value = float(f"{value:.2g}")


def others(state: State, method: Any, but: str = "") -> bool:
    """Whether the latest proposal was made with another method or parameter; `but` may differ."""
    latest = state.proposed
    if latest is None or latest.method != method.name:
        return True
    now = parameters(method)
    return any(now[name] != latest.parameters.get(name) for name in now if name != but)


def foreseen(state: State, method: Any) -> list[Any] | None:
    """What the latest search would have shown with the theta that `method` has now.

    None where that is what it did show, or where only a new search can tell.
    """
    latest, theta = state.proposed, getattr(method, THETA, None)
    if latest is None or theta is None:
        return None
    if not others(state, method) or others(state, method, but=THETA):
        return None
    of_now = latest.move is not None and latest.move.fingerprint == state.now.event.fingerprint
    return rejudged(latest.seen, theta) if of_now or state.exhausted else None


def hints_of(kind: type) -> dict[str, Any]:
    """The annotations of a dataclass; none where they name what only type checkers import."""
    try:
        return get_type_hints(kind)
    except NameError:
        return {}


def kind_of(hint: Any, value: Any) -> Any:
    """How a field of type `hint` (None: unknown) is set: a widget class, or the choices."""
    allowed = choices(hint)
    if value in allowed:
        return allowed
    plain = {bool: ipw.Checkbox, int: ipw.IntText, float: ipw.FloatText}
    if type(value) in plain and hint in (None, float, type(value)) and math.isfinite(value):
        return plain[float if hint is float else type(value)]
    return ipw.Text


def choices(hint: Any) -> tuple[Any, ...]:
    """What a field may be whose type is a Literal, or a Literal or None."""
    if get_origin(hint) is Literal:
        return get_args(hint)
    parts = get_args(hint) if get_origin(hint) in (Union, UnionType) else ()
    if parts and all(part is NoneType or get_origin(part) is Literal for part in parts):
        return (*chain.from_iterable(get_args(part) for part in parts), None)
    return ()


def box_of(name: str, kind: Any) -> Any:
    """The widget for a field."""
    look = {
        "description": text.parameter(name),
        "style": {"description_width": "initial"},
        "layout": {"width": "200px", "margin": "2px 12px 2px 0"},
    }
    if isinstance(kind, tuple):
        return ipw.Dropdown(options=[(text.choice(item), item) for item in kind], **look)
    if kind is ipw.Checkbox:
        return kind(indent=False, **look)
    if kind is ipw.Text:
        look["placeholder"] = text.choice(None)
    return kind(continuous_update=False, **look)


def written(value: Any) -> str:
    """`value` as it stands in a text box; nothing for None."""
    if value is None:
        return ""
    return value if isinstance(value, str) else repr(value)


def read(typed: str, hint: Any) -> Any:
    """What `typed` text stands for in a field of type `hint`; raises `InvalidValue`."""
    kinds = get_args(hint) or (hint,)
    if not typed.strip() and (NoneType in kinds or hint is None):
        return None
    if str in kinds:
        return typed.strip()
    try:
        return ast.literal_eval(typed.strip())
    except (ValueError, SyntaxError):
        raise InvalidValue(
            f"{typed!r} is no value in Python's notation; write 0.3, 'conv' or {{'conv1': 0.5}}."
        ) from None
