"""Arguments are checked against a function's own annotations before it begins."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from numbers import Integral, Real
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

from prunelab.errors import InvalidValue

Checked = TypeVar("Checked", bound=Callable[..., Any])
FUNCTION: Any = Callable
LONGEST = 60  # characters of a value that a message repeats


def _number(kind: type) -> Callable[[Any], bool]:
    return lambda x: isinstance(x, kind) and not isinstance(x, bool) and x == x


SIMPLE: dict[Any, tuple[str, Callable[[Any], bool]]] = {
    int: ("a whole number", _number(Integral)),
    float: ("a number", _number(Real)),
    bool: ("True or False", lambda x: isinstance(x, bool)),
    str: ("a text", lambda x: isinstance(x, str)),
    Path: ("a path", lambda x: isinstance(x, Path)),
    NoneType: ("None", lambda x: x is None),
}


def as_annotated(thing: Checked) -> Checked:
    """Decorator: what is given as an argument must be what its annotation says.

    Whole numbers, numbers (never NaN), choices, texts, paths, functions, lists, mappings and the
    package's own classes are checked, and what lists and mappings hold; other annotations, and
    networks, which `checked_network` explains, are not. Of a class its `__init__` is decorated.
    Raises `InvalidValue`, which names the argument, what it may be, and what was given.
    """
    if isinstance(thing, type):
        thing.__init__ = as_annotated(thing.__init__)  # type: ignore[misc]
        return thing
    signature = inspect.signature(thing)

    @functools.cache
    def hints() -> dict[str, Any]:  # evaluated at the first call, when all modules are there
        return {
            name: _evaluated(parameter.annotation, thing)
            for name, parameter in signature.parameters.items()
            if parameter.annotation is not parameter.empty
            and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        }

    @functools.wraps(thing)
    def checked(*args: Any, **kwargs: Any) -> Any:
        known = hints()
        for name, value in signature.bind(*args, **kwargs).arguments.items():
            if name in known and not _fits(value, known[name]):
                raise InvalidValue(f"{name} is {_words(known[name])}, not {_shown(value)}.")
        return thing(*args, **kwargs)

    return checked  # type: ignore[return-value]


def _evaluated(annotation: Any, function: Any) -> Any:
    """An annotation's value; Any for that of a package which is imported for types only."""
    if not isinstance(annotation, str):
        return annotation
    try:
        return eval(annotation, inspect.unwrap(function).__globals__)
    except (NameError, AttributeError):
        return Any


def _fits(value: Any, hint: Any) -> bool:
    if hint in SIMPLE:
        return SIMPLE[hint][1](value)
    origin, inner = get_origin(hint), get_args(hint)
    kind = origin or hint
    if kind in (Union, UnionType):
        named = isinstance(value, str) and Path in inner
        return not (named and "\0" in value) and any(_fits(value, one) for one in inner)
    if kind is Literal:
        return any(type(value) is type(one) and value == one for one in inner)
    if kind is Any or not isinstance(kind, type) or kind.__name__ == "Module":
        return True
    if kind.__module__ == "collections.abc":
        return _holds(value, kind, inner)
    unchecked = getattr(kind, "_is_protocol", False) and not getattr(
        kind, "_is_runtime_protocol", False
    )
    return unchecked or isinstance(value, kind)


def _holds(value: Any, kind: type, inner: tuple[Any, ...]) -> bool:
    """Whether a value is a function, list or mapping, and what it holds fits `inner`."""
    if kind is FUNCTION:
        return callable(value)
    if issubclass(kind, Mapping):
        whole = isinstance(value, Mapping)  # unknown keys are told by whoever knows them
        return whole and (not inner or all(_fits(item, inner[1]) for item in value.values()))
    # a text is no list of letters; a tensor of one number can be iterated over by name only
    if isinstance(value, str | bytes) or not hasattr(value, "__iter__"):
        return False
    if kind is Sequence and isinstance(value, Mapping):
        return False
    items = value if isinstance(value, list | tuple) and inner else ()
    return getattr(value, "ndim", 1) != 0 and all(_fits(item, inner[0]) for item in items)


def _words(hint: Any) -> str:
    if hint in SIMPLE:
        return SIMPLE[hint][0]
    kind, inner = get_origin(hint) or hint, get_args(hint)
    if kind is Literal:
        return " or ".join(map(repr, inner))
    if kind in (Union, UnionType):
        return " or ".join(dict.fromkeys(map(_words, inner)))
    if kind is Any or not isinstance(kind, type):
        return "any value"
    if kind is FUNCTION:
        return "a function"
    if issubclass(kind, Mapping):
        return f"a dict, each value {_words(inner[1])}" if inner else "a dict"
    if kind.__module__ == "collections.abc":
        return f"a list, each item {_words(inner[0])}" if inner else "a list"
    return f"a {kind.__name__}"


def _shown(value: Any) -> str:
    text = f"the class {value.__name__}" if isinstance(value, type) else repr(value)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}... (a {type(value).__name__})"
