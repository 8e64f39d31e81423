"""Functions given by name, `module:function`, in a local folder or installed."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

from prunelab.errors import InvalidValue


def call(spec: str, where: str, folder: Path) -> Any:
    """Call the function `spec`, written module:function, and return its result.

    Parameters
    ----------
    spec
        The name of the function.
    where
        Where that name was given; error messages begin with it.
    folder
        A folder that may contain the module.

    Raises `InvalidValue` when there is no such function.
    """
    name, _, function = spec.partition(":")
    if (here := str(folder.resolve())) not in sys.path:
        sys.path.insert(0, here)
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise  # the module exists; something that it imports does not
        raise InvalidValue(
            f"{where} {spec}: there is no module {name!r}, neither in this folder nor installed."
        ) from None
    except ValueError:
        raise InvalidValue(f"{where} {spec}: write it as module:function.") from None
    if not callable(made := getattr(module, function, None)):
        raise InvalidValue(f"{where} {spec}: {name} has no function {function!r}.")
    return made()
