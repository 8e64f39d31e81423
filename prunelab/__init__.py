"""prunelab: prune a convolutional network in Jupyter, move by move.

The public names are listed in `__init__.pyi`; each is imported when it is first used, so that
`prunelab --help` and `prunelab doctor` load neither torch nor a widget.
"""

from typing import Any

import lazy_loader

__version__ = "0.1.0"

_public, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)


def __getattr__(name: str) -> Any:
    try:
        return _public(name)
    except ImportError as error:
        if name not in ("Screen", "figures", "show"):
            raise
        from prunelab.errors import MissingPackage

        raise MissingPackage(
            f"pl.{name} needs the widget stack, and {error.name} is missing: "
            "pip install 'prunelab[lab]', then restart the kernel."
        ) from error
