"""Whether what was read from a file fits the annotations of a dataclass: its types, all the way."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import fields
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

Test = Callable[[Any], bool]


def misfit(kind: type, values: Mapping[str, Any]) -> str | None:
    """The name of a value that does not fit its field of the dataclass `kind`; None: all fit.

    A whole number fits where a number is wanted; names that `kind` does not have are left to it.
    """
    tests = _tests(kind)
    return next((n for n, v in values.items() if n in tests and not tests[n](v)), None)


@functools.cache
def _tests(kind: type) -> dict[str, Test]:
    hints = get_type_hints(kind)
    return {field.name: _test(hints[field.name]) for field in fields(kind)}


def _test(hint: Any) -> Test:
    """A function that says whether a value fits an annotation."""
    origin, args = get_origin(hint), get_args(hint)
    if hint is float:
        return lambda value: type(value) in (int, float)
    if hint in (int, bool, str, NoneType):
        return lambda value: type(value) is hint
    if origin in (Union, UnionType):
        tests = [_test(one) for one in args]
        return lambda value: any(test(value) for test in tests)
    if origin is Literal:
        return lambda value: type(value) in map(type, args) and value in args
    if origin is tuple and args[-1] is ...:
        each = _test(args[0])
        return lambda value: type(value) is tuple and all(map(each, value))
    if origin is tuple:
        tests = [_test(one) for one in args]
        return lambda value: (
            type(value) is tuple
            and len(value) == len(tests)
            and all(test(one) for test, one in zip(tests, value, strict=True))
        )
    if isinstance(origin, type) and issubclass(origin, Mapping):
        each = _test(args[-1])
        return lambda value: isinstance(value, Mapping) and all(map(each, value.values()))
    if hint is Any or isinstance(hint, TypeVar):
        return lambda value: True
    return lambda value: isinstance(value, hint)
