"""A rubric: the network and images that hand-ins are graded with, and the points of each check.

It is read from TOML and validated before grading.
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from prunelab.errors import InvalidValue, UnknownName
from prunelab.values import FrozenMap
from prunelab.values.given import as_annotated

SPLITS = ("train", "val", "test")
VERBS = (
    *("propose", "adjust", "approve", "reject", "undo", "go", "repair", "tune"),
    *("predict", "answer", "note", "reason"),
)


@dataclass(frozen=True, slots=True)
class Check:
    """One check of a rubric: its `kind`, with `settings`, and its `points`."""

    name: str
    kind: str
    points: float
    settings: FrozenMap[Any]


@dataclass(frozen=True, slots=True)
class Rubric:
    """The rules for grading; `Rubric.read("lab.toml")` reads them from a file.

    `network` is a zoo name or a `module:function` of the lecturer, `data` likewise; functions are
    looked up in `folder`, where the rubric is, and never in a hand-in. With `same_start` the
    session must have begun with exactly that network's weights. Accuracy is measured on `split`,
    and, unless it is None, on `validation`, for comparison with the ledger.
    """

    title: str
    network: str
    same_start: bool
    data: str
    split: str
    validation: str | None
    checks: tuple[Check, ...]
    folder: Path

    @classmethod
    @as_annotated
    def read(cls, path: str | Path) -> Rubric:
        """The rubric in a TOML file.

        Raises `InvalidValue` for a file that is missing or not TOML and for invalid values,
        `UnknownName` for unknown keys, kinds and verbs.
        """
        try:
            text = Path(path).read_text(encoding="utf-8")
            content = tomllib.loads(text)
        except OSError as error:
            raise InvalidValue(f"The rubric {path} cannot be read: {error.strerror}.") from None
        except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise InvalidValue(f"The rubric {path} is not TOML: {error}.") from None
        return cls.of(content, Path(path).resolve().parent, str(path))

    @classmethod
    @as_annotated
    def of(cls, content: Mapping[str, Any], folder: Path, name: str = "The rubric") -> Rubric:
        """The rubric in `content`, as read by `tomllib`.

        Parameters
        ----------
        content
            The tables of the TOML file.
        folder
            Where to look up functions.
        name
            The name of the rubric in error messages.
        """
        _known(content, TOP, name)
        network = _table(content, "network", name)
        data = _table(content, "data", name)
        where = f"{name}, [network]"
        named = _one_of(network, ("zoo", "factory"), where)
        checks = _get(content, "check", _is_list, "one [[check]] or more", name)
        made = tuple(_check(check, number, name) for number, check in enumerate(checks, start=1))
        names = [check.name for check in made]
        if twice := [n for n in names if names.count(n) > 1]:
            raise InvalidValue(
                f"{name}: two checks are called {twice[0]!r}; give each a name of its own: "
                'name = "...".'
            )
        return cls(
            title=_get(content, "title", _is_text, "a text", name, ""),
            network=named,
            same_start=_get(
                network, "same_start", _is_bool, "true or false", where, "zoo" in network
            ),
            data=_one_of(data, ("set", "factory"), f"{name}, [data]"),
            split=_get(data, "split", _is_split, "train, val or test", f"{name}, [data]", "test"),
            validation=_get(
                data, "validation", _is_validation, "train, val, test or false", f"{name}, [data]",
                "val",
            )
            or None,
            checks=made,
            folder=folder,
        )  # fmt: skip

    @property
    def points(self) -> float:
        """The sum of the points of all checks."""
        return math.fsum(check.points for check in self.checks)


# ---------------------------------------------------------------- validation of values


Test = Callable[[Any], bool]


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_bool(value: Any) -> bool:
    return isinstance(value, bool)


def _is_list(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(x, dict) for x in value)


def _is_split(value: Any) -> bool:
    return value in SPLITS


def _is_validation(value: Any) -> bool:
    return value in SPLITS or value is False


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_share(value: Any) -> bool:
    return _is_number(value) and 0 <= value <= 1


def _is_positive(value: Any) -> bool:
    return _is_number(value) and value >= 0


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _is_counts(value: Any) -> bool:
    return isinstance(value, dict) and bool(value) and all(map(_is_count, value.values()))


def _is_answer(value: Any) -> bool:
    if isinstance(value, list):
        return all(map(_is_answer, value))
    return isinstance(value, bool | str) or _is_number(value)


class Key(NamedTuple):
    """A setting of a check: its test, a description of it, and whether it is required."""

    test: Test
    words: str
    needed: bool = True


SHARE = "a share between 0 and 1"
COUNT = Key(_is_count, "a whole number from 1 up", needed=False)
KINDS: dict[str, dict[str, Key]] = {
    "macs": {"at_most": Key(_is_share, SHARE), "none_at": Key(_is_share, SHARE, False)},
    "params": {"at_most": Key(_is_share, SHARE), "none_at": Key(_is_share, SHARE, False)},
    "accuracy": {"at_least": Key(_is_share, SHARE), "none_at": Key(_is_share, SHARE, False)},
    "verbs": {"least": Key(_is_counts, "a table of verbs and counts, as { undo = 1 }")},
    "predictions": {
        "of": Key(_is_text, "what was to be predicted, as \"accuracy\"", needed=False),
        "count": COUNT,
        "within": Key(_is_positive, "a number from 0 up", needed=False),
    },
    "reasons": {"count": COUNT},
    "answer": {
        "exercise": Key(_is_text, "the exercise's name"),
        "value": Key(_is_answer, "a number, a text, true or false, or a list of such"),
        "within": Key(_is_positive, "a number from 0 up", needed=False),
    },
}  # fmt: skip
TOP = ("title", "network", "data", "check")
TABLES = {
    "network": ("zoo", "factory", "same_start"),
    "data": ("set", "factory", "split", "validation"),
}
_MISSING = object()


def _check(content: Mapping[str, Any], number: int, rubric: str) -> Check:
    where = f"{rubric}, check {number}"
    kind = _get(content, "kind", _is_text, f"one of {', '.join(KINDS)}", where)
    if kind not in KINDS:
        raise UnknownName(f"kind of check ({where})", kind, KINDS)
    keys = KINDS[kind]
    _known(content, ("kind", "name", "points", *keys), where)
    settings = {
        key: _get(content, key, rule.test, rule.words, where)
        for key, rule in keys.items()
        if rule.needed or key in content
    }
    for verb in settings.get("least", ()):
        if verb not in VERBS:
            raise UnknownName(f"verb ({where})", verb, VERBS)
    full = settings.get("at_most", settings.get("at_least"))
    none = settings.get("none_at", _MISSING)
    if none is not _MISSING and (none <= full if "at_most" in settings else none >= full):
        side = "above at_most" if "at_most" in settings else "below at_least"
        raise InvalidValue(f"{where}: none_at = {none} must lie {side}, which is {full}.")
    said = " ".join(str(settings[k]) for k in ("exercise", "of") if k in settings)
    return Check(
        name=_get(content, "name", _is_text, "a text", where, f"{kind} {said}".strip()),
        kind=kind,
        points=float(_get(content, "points", _is_positive, "a number from 0 up", where)),
        settings=FrozenMap(settings),
    )


def _get(
    table: Mapping[str, Any], key: str, test: Test, words: str, where: str, default: Any = _MISSING
) -> Any:
    value = table.get(key, default)
    if value is _MISSING:
        raise InvalidValue(f"{where}: {key} is missing; it is {words}.")
    if key in table and not test(value):
        raise InvalidValue(f"{where}: {key} = {value!r} is not {words}.")
    return value


def _known(table: Mapping[str, Any], keys: tuple[str, ...], where: str) -> None:
    for key in table:
        if key not in keys:
            raise UnknownName(f"key in {where}:", key, keys)


def _table(content: Mapping[str, Any], key: str, where: str) -> Mapping[str, Any]:
    table: Mapping[str, Any] = _get(
        content, key, lambda value: isinstance(value, dict), f"a table [{key}]", where
    )
    _known(table, TABLES[key], f"{where}, [{key}]")
    return table


def _one_of(table: Mapping[str, Any], keys: tuple[str, str], where: str) -> str:
    """The value of whichever of the two keys is given; a factory is module:function."""
    given = [key for key in keys if key in table]
    if len(given) != 1:
        raise InvalidValue(f"{where}: give {keys[0]} or {keys[1]}, one of the two.")
    name: str = _get(table, given[0], _is_text, "a text", where)
    if (":" in name) != (given[0] == "factory"):
        raise InvalidValue(
            f"{where}: {given[0]} = {name!r}; a factory is written module:function, a {keys[0]} "
            "name has no colon."
        )
    return name
