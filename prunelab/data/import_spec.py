"""What a person names in words: `module:function`, in a folder of theirs or installed."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

from prunelab.errors import InvalidValue


def call(spec: str, where: str, folder: Path) -> Any:
    """What the function named as module:function gives; the module may lie in `folder`.

    Raises `InvalidValue`, which begins with `where` the name was written, when there is none.
    """
    name, _, function = spec.partition(":")
    if (here := str(folder.resolve())) not in sys.path:
        sys.path.insert(0, here)
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise  # the module is there; something that it imports is not
        raise InvalidValue(
            f"{where} {spec}: there is no module {name!r}, neither in this folder nor installed."
        ) from None
    except ValueError:
        raise InvalidValue(f"{where} {spec}: write it as module:function.") from None
    if not callable(made := getattr(module, function, None)):
        raise InvalidValue(f"{where} {spec}: {name} has no function {function!r}.")
    return made()
