"""HTML elements; the texts are in text.py. No Jupyter."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from typing import Any


def tag(name: str, *inside: str, **attributes: Any) -> str:
    """An element around HTML; `data_do` becomes data-do, `kind` class; None is left out."""
    pairs = []
    for key, value in attributes.items():
        key = {"kind": "class"}.get(key, key.rstrip("_").replace("_", "-"))
        if value is True:
            pairs.append(key)
        elif value is not None and value is not False:
            pairs.append(f'{key}="{escape(str(value), quote=True)}"')
    start = " ".join([name, *pairs])
    return f"<{start}>" if name in ("input", "br") else f"<{start}>{''.join(inside)}</{name}>"


def say(words: str, kind: str, name: str = "p", **more: Any) -> str:
    """`words` as an element; empty where there are none."""
    return tag(name, escape(words), kind=f"pl-{kind}", **more) if words else ""


def number(shown: str, tip: str) -> str:
    """A number with its unit; `tip` says what it is, its source, and which direction is good."""
    return tag("b", escape(shown), kind="pl-number", title=tip or None)


def button(verb: str, label: str, tip: str, *, on: bool = True, kind: str = "", **more: Any) -> str:
    """A button that presses `verb`."""
    given = {"data_do": "press", "data_arg": verb, **more}
    return tag(
        "button", escape(label), kind=f"pl-button {kind}".strip(), type="button", title=tip,
        disabled=not on, **given,
    )  # fmt: skip


def box(do: str, label: str, tip: str, unit: str = "", **more: Any) -> str:
    """A labelled input that sends `do` to the kernel, followed by `unit`."""
    field = tag("input", data_do=do, **{"type": "number", **more})
    return tag("label", tag("span", escape(label)), field, escape(unit), kind="pl-box", title=tip)


def tick(do: str, label: str, tip: str, on: bool, **more: Any) -> str:
    """A labelled checkbox."""
    field = tag("input", type="checkbox", data_do=do, checked=on, **more)
    return tag("label", field, tag("span", escape(label)), kind="pl-box pl-tick", title=tip)


def choose(
    do: str, label: str, tip: str, options: Iterable[tuple[str, str]], chosen: str, **more: Any
) -> str:
    """A labelled list of (words, value)."""
    inside = [
        tag("option", escape(words), value=value, selected=value == chosen)
        for words, value in options
    ]
    field = tag("select", *inside, data_do=do, **more)
    return tag("label", tag("span", escape(label)), field, kind="pl-box", title=tip)


def table(heads: Iterable[tuple[str, str]], rows: Iterable[Iterable[str]], **more: Any) -> str:
    """A table; a head is (words, tip), a cell ready HTML."""
    head = "".join(tag("th", escape(words), scope="col", title=tip or None) for words, tip in heads)
    body = "".join(tag("tr", *(tag("td", cell) for cell in row)) for row in rows)
    inside = tag("thead", tag("tr", head)) + tag("tbody", body)
    return tag("div", tag("table", inside, **more), kind="pl-scroll")


def section(name: str, title: str, inside: str, tip: str = "", revealed: int = 0) -> str:
    """A section that can be opened; `inside` is made when it is open.

    A page opens it by itself when `revealed` grows.
    """
    head = tag("summary", escape(title), title=tip or None)
    return tag(
        "details", head, tag("div", inside, kind="pl-inside"), data_section=name, data_key=name,
        data_reveal=revealed or None,
    )  # fmt: skip
