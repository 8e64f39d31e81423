"""The method's parameters: the first beside the question, a box for each other in its section."""

from __future__ import annotations

import ast
import inspect
import math
import re
from collections.abc import Mapping
from dataclasses import fields, replace
from itertools import chain
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from prunelab.errors import InvalidValue
from prunelab.ledger import words
from prunelab.ledger.state import State
from prunelab.methods.base import parameters
from prunelab.notebook import text
from prunelab.notebook.markup import box, choose, say, tag, tick
from prunelab.notebook.view import View

THETA = "theta"  # has its own slider and texts
DECADES = (-4.0, 0.0)  # of the slider: theta from 0.0001 to 1
Kind = Literal["flag", "whole", "number", "text"]


def parameters_form(view: View) -> str:
    """A list of methods, and a box for each field of the current one but the leading one."""
    method, off = view.method, bool(view.at_work)
    head = choose(
        "method", text.METHOD_LABEL, text.METHOD_TIP,
        [(words.method(name), name) for name in view.known], method.name, disabled=off,
    )  # fmt: skip
    about = text.about(inspect.getdoc(type(method)))
    values = values_of(method)
    first = leading(values)
    boxes = (_box(method, name, value, off) for name, value in values.items() if name != first)
    outdated = view.state.pending is not None and others(view.state, method)
    return "".join((
        tag("div", head, say(about, "hint", "span"), kind="pl-line"),
        tag("div", *boxes, kind="pl-line"),
        say(text.OUTDATED if outdated else text.BLANK, "hint", role="status"),
    ))  # fmt: skip


def lead(view: View) -> str:
    """The parameter that decides most: theta with its slider, or the first of the method."""
    method, off = view.method, bool(view.at_work)
    values = values_of(method)
    first = leading(values)
    if first is None:
        return ""
    if first != THETA:
        return tag("div", _box(method, first, values[first], off), kind="pl-lead")
    shown = view.chosen.theta if view.chosen else None
    return tag("div", _theta(values[THETA] if shown is None else shown, off), kind="pl-lead")


def leading(values: Mapping[str, Any]) -> str | None:
    """The name of the parameter that stands beside the question; None where there is none."""
    return THETA if THETA in values else next(iter(values), None)


def _theta(value: float, off: bool) -> str:
    place = min(max(math.log10(max(value, 1e-9)), DECADES[0]), DECADES[1])
    slider = tag(
        "input", type="range", min=DECADES[0], max=DECADES[1], step=0.02, value=f"{place:.2f}",
        data_do="theta", data_live=True, disabled=off, title=text.THETA_TIP, kind="pl-theta",
        aria_label=text.THETA_LABEL, aria_valuetext=text.theta(value),
    )  # fmt: skip
    typed = box(
        "parameter", text.THETA_LABEL, text.THETA_TIP, data_arg=THETA, value=f"{value:g}",
        step="any", min=0, disabled=off,
    )  # fmt: skip
    return typed + slider + say(text.theta(value), "words", "span")


def _box(method: Any, name: str, value: Any, off: bool) -> str:
    tip = tips_of(type(method)).get(name, text.PARAMETER_TIP)
    kind, label = kind_of(hints_of(type(method)).get(name), value), text.parameter(name)
    more: dict[str, Any] = {"data_arg": name, "disabled": off}
    if isinstance(kind, tuple):
        options = [(text.choice(item), repr(item)) for item in kind]
        return choose("parameter", label, tip, options, repr(value), **more)
    if kind == "flag":
        return tick("parameter", label, tip, value, **more)
    if kind == "text":
        more |= {"type": "text", "placeholder": text.choice(None)}
        return box("parameter", label, tip, value=written(value), **more)
    step = "1" if kind == "whole" else "any"
    return box("parameter", label, tip, value=f"{value:.12g}", step=step, **more)


# ---------------------------------------------------------------- from boxes to a method


def values_of(method: Any) -> dict[str, Any]:
    """The parameters of `method` by name."""
    return {f.name: getattr(method, f.name) for f in fields(method) if f.init}


def with_parameter(method: Any, name: str, given: Any) -> Any:
    """`method` with the value in the box `name`; raises the errors of its own validation."""
    hint = hints_of(type(method)).get(name)
    kind = kind_of(hint, getattr(method, name))
    if isinstance(kind, tuple):
        value = next((item for item in kind if repr(item) == given), given)
    elif kind == "flag":
        value = bool(given)
    elif kind == "text":
        value = read(str(given), hint)
    else:
        value = _number(given, kind)
    return replace(method, **{name: value})


def _number(given: Any, kind: Any) -> float:
    try:
        return int(given) if kind == "whole" else float(given)
    except (TypeError, ValueError):
        wanted = "a whole number" if kind == "whole" else "a number"
        raise InvalidValue(f"{given!r} is not {wanted}.") from None


def slid(place: Any) -> float:
    """The theta at a position of the slider, with two digits."""
    return float(f"{10 ** float(place):.2g}")


def others(state: State, method: Any, but: str = "") -> bool:
    """Whether the latest proposal has another method or parameter, other than `but`."""
    latest = state.proposed
    if latest is None or latest.method != method.name:
        return True
    now = parameters(method)
    return any(now[name] != latest.parameters.get(name) for name in now if name != but)


def retuned(state: State, method: Any) -> bool:
    """Whether only theta differs from the latest search, and that was of the current network."""
    latest = state.proposed
    if latest is None or not hasattr(method, THETA):
        return False
    of_now = latest.move is not None and latest.move.fingerprint == state.now.event.fingerprint
    differs = others(state, method) and not others(state, method, but=THETA)
    return differs and (of_now or state.exhausted)


def hints_of(kind: type) -> Mapping[str, Any]:
    """The annotations of a dataclass; empty where they use names unknown at run time."""
    try:
        return get_type_hints(kind)
    except NameError:
        return {}


def tips_of(kind: type) -> dict[str, str]:
    """What the "Parameters" of a dataclass's docstring say about each field."""
    doc = inspect.getdoc(kind) or ""
    _, _, listed = doc.partition("Parameters\n----------\n")
    listed = re.split(r"\n\w.*\n-{3,}\n", listed)[0]  # up to the next heading
    found = re.findall(r"^(\w+)[^\n]*\n((?:[ ]+[^\n]*\n?|\n)+)", listed, re.MULTILINE)
    return {name: " ".join(told.split()) for name, told in found}


def kind_of(hint: Any, value: Any) -> Kind | tuple[Any, ...]:
    """The input for a field of type `hint` (None: unknown): a kind of box, or the choices."""
    allowed = choices(hint)
    if value in allowed:
        return allowed
    plain: dict[type, Kind] = {bool: "flag", int: "whole", float: "number"}
    if type(value) in plain and hint in (None, float, type(value)) and math.isfinite(value):
        return plain[float if hint is float else type(value)]
    return "text"


def choices(hint: Any) -> tuple[Any, ...]:
    """The allowed values of a field whose type is a Literal, or a Literal or None."""
    if get_origin(hint) is Literal:
        return get_args(hint)
    parts = get_args(hint) if get_origin(hint) in (Union, UnionType) else ()
    if parts and all(part is NoneType or get_origin(part) is Literal for part in parts):
        return (*chain.from_iterable(get_args(part) for part in parts), None)
    return ()


def written(value: Any) -> str:
    """`value` as the contents of a text box; empty for None."""
    if value is None:
        return ""
    return value if isinstance(value, str) else repr(value)


def read(typed: str, hint: Any) -> Any:
    """Parse `typed` as a value of type `hint`; raises `InvalidValue`."""
    kinds = get_args(hint) or (hint,)
    if not typed.strip() and (NoneType in kinds or hint is None):
        return None
    if str in kinds:
        return typed.strip()
    try:
        return ast.literal_eval(typed.strip())
    except (ValueError, SyntaxError):
        raise InvalidValue(
            f"{typed!r} is not a value in Python's notation; write 0.3, 'conv' or {{'conv1': 0.5}}."
        ) from None
