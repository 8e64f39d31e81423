"""Parameters that several methods share: how they are checked, and which groups they select.

Every check raises `InvalidValue`, which says what was given and what is allowed.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import inf
from typing import Any

from prunelab.errors import InvalidValue
from prunelab.graph.channels.channel_graph import ChannelGroup
from prunelab.values import FrozenMap


def check_choice(method: Any, name: str, *allowed: object) -> None:
    """Refuse a field whose value is not one of `allowed`."""
    value = getattr(method, name)
    if value not in allowed:
        *most, last = map(repr, allowed)
        listed = f"{', '.join(most)} or {last}" if most else last
        raise InvalidValue(f"{name} is {listed}, not {value!r}.")


def check_groups(method: Any) -> None:
    """Refuse a `groups` that is neither "internal" nor "all", see `selects`."""
    check_choice(method, "groups", "internal", "all")


def check_counts(method: Any, *names: str) -> None:
    """Refuse fields below 1."""
    for name in names:
        if getattr(method, name) < 1:
            raise InvalidValue(f"{name} must be at least 1, not {getattr(method, name)}.")


def check_lr(method: Any) -> None:
    """Refuse a learning rate that is not positive."""
    if not 0 < method.lr < inf:
        raise InvalidValue(f"lr is a learning rate above 0, not {method.lr}.")


def freeze_ratio(method: Any) -> None:
    """Check a method's `pruning_ratio`, a share or a mapping of shares, and freeze a mapping."""
    given = method.pruning_ratio
    if isinstance(given, Mapping) and not given:
        raise InvalidValue(
            "pruning_ratio is {}: name at least one group, or give one number for all of them."
        )
    for ratio in given.values() if isinstance(given, Mapping) else [given]:
        if isinstance(ratio, bool) or not isinstance(ratio, (int, float)) or not 0 <= ratio < 1:
            raise InvalidValue(
                "pruning_ratio is the share of a group's units to remove, from 0 to below 1, not "
                f"{ratio!r}; give one number, or a mapping from groups to numbers."
            )
    if isinstance(given, Mapping):
        object.__setattr__(method, "pruning_ratio", FrozenMap(given))


def selects(groups: str, group: ChannelGroup) -> bool:
    """Whether a layer reads the group and, for "internal", it is no residual stream.

    A stream, or the input of a block that projects it, see `ChannelGroup`.
    """
    return bool(group.consumers) and (groups == "all" or not group.residual)
