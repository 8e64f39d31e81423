"""Sphinx configuration of the reference: python -m sphinx -nW --keep-going .docs build/docs."""

from __future__ import annotations

import re
from typing import Any

from sphinx.ext.napoleon import Config, NumpyDocstring

import prunelab

project = "prunelab"
release = version = prunelab.__version__
html_theme = "furo"
html_title = f"prunelab {release}"
extensions = ["sphinx.ext.autodoc"]
default_role = "code"
add_module_names = False
smartquotes = False  # texts in docstrings are often code
autodoc_member_order = "bysource"
python_display_short_literal_types = True

# Names in annotations that belong to other projects, or are private to prunelab's modules.
nitpick_ignore_regex = [
    ("py:.*", r"(torch|nn|np|numpy|collections|typing|t|pathlib|plotly|go)\..*"),
    ("py:.*", r"(ipywidgets|widgets|traitlets)\..*"),
    ("py:.*", r"(Any|Callable|Generator|Iterable|Iterator|Mapping|NDArray|Path|Sequence|Tensor)"),
    ("py:.*", r"prunelab\.values\.(plan\.(Graph|Group|PlanGraph|PlanGroup)|frozen\.V)"),
    ("py:.*", r"(.*\.)?(AtHand|BoardInfo|Bottom|Panel|Scope|Side|Sums|Theme|Timed)"),
    ("py:.*", r"prunelab\..*\.(Root|Store|WidthTimes)"),
]


def shape(_app: Any, _what: str, _name: str, _obj: Any, _options: Any, lines: list[str]) -> None:
    """Convert NumPy sections to reStructuredText, and link `Name` or `pl.name` to its page.

    Napoleon's own extension is not used, because it parses "A: b" in a property as a type.
    """

    def linked(word: re.Match[str]) -> str:
        known = word[2] in prunelab.__all__ and (word[1] or word[2][0].isupper())
        return f":py:obj:`~prunelab.{word[2]}`" if known else word[0]

    text = "\n".join(lines).rstrip()
    if "\nParameters\n---" in text:  # prose after them would be parsed as a parameter
        text = re.sub(r"\n\n((?:\S.*\n)*\S.*)\Z", r"\n\nNotes\n-----\n\1", text)
    text = str(NumpyDocstring(text, Config(), what="function"))
    lines[:] = re.sub(r"(?<!`)`(pl\.)?(\w+)`(?!`)", linked, text).splitlines()


def sign(
    _app: Any, _what: str, _name: str, _obj: Any, _options: Any, given: str | None, back: str | None
) -> tuple[str | None, str | None]:
    """Replace `<factory>`, which stands for a dataclass default and is not valid Python."""
    return given and given.replace("<factory>", "..."), back


def setup(app: Any) -> None:
    """Register the two functions; Sphinx calls this."""
    app.connect("autodoc-process-signature", sign)
    app.connect("autodoc-process-docstring", shape)
