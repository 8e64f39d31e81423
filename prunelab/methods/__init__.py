"""The methods that choose what to prune: each proposes moves, none changes the network."""

from typing import Any

from prunelab.errors import InvalidValue, UnknownName
from prunelab.methods.aofp import AOFP
from prunelab.methods.base import Context, Found, Method, Search
from prunelab.methods.baselines import (
    BatchNormScale,
    FirstK,
    Magnitude,
    MaxResponse,
    Random,
    Taylor,
)
from prunelab.methods.channel_pruning import ChannelPruning
from prunelab.methods.elimination import Elimination
from prunelab.methods.factorisation import ChannelFactorisation, SpatialFactorisation
from prunelab.methods.group_fisher import GroupFisher
from prunelab.methods.one_shot import OneShot
from prunelab.methods.oracle import Oracle
from prunelab.methods.surgeon import Surgeon
from prunelab.methods.thinet import ThiNet
from prunelab.methods.three_c import ThreeC

METHODS: dict[str, type] = {
    method.name: method
    for method in (
        AOFP,
        ThiNet,
        ChannelPruning,
        SpatialFactorisation,
        ChannelFactorisation,
        ThreeC,
        GroupFisher,
        Elimination,
        Surgeon,
        Oracle,
        Magnitude,
        BatchNormScale,
        Taylor,
        Random,
        FirstK,
        MaxResponse,
    )
}


def make_method(method: Any, **parameters: Any) -> Method:
    """A method by its lower-case name, with these parameters; a method object is returned as is.

    Raises `UnknownName` for an unknown name, `InvalidValue` for an object that is not a method or
    for parameters that the method does not have.
    """
    if isinstance(method, str):
        if method not in METHODS:
            raise UnknownName("method", method, METHODS)
        try:
            made: Method = METHODS[method](**parameters)
        except TypeError as error:
            raise InvalidValue(f"{method} does not take these parameters: {error}.") from None
        return made
    if isinstance(method, type) or not callable(getattr(method, "search", None)):
        raise InvalidValue(
            f"A method is an object with a search(context) generator, or a name "
            f"({', '.join(METHODS)}); not {method!r}."
        )
    return method


__all__ = [
    "AOFP",
    "METHODS",
    "BatchNormScale",
    "ChannelFactorisation",
    "ChannelPruning",
    "Context",
    "Elimination",
    "FirstK",
    "Found",
    "GroupFisher",
    "Magnitude",
    "MaxResponse",
    "Method",
    "OneShot",
    "Oracle",
    "Random",
    "Search",
    "SpatialFactorisation",
    "Surgeon",
    "Taylor",
    "ThiNet",
    "ThreeC",
    "make_method",
]
