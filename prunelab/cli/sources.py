"""The network and the data that a command names, and the table that it prints at the end."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prunelab.data.import_spec import call
from prunelab.errors import InvalidValue
from prunelab.values import as_text, si, table

if TYPE_CHECKING:
    from torch import nn

    from prunelab.session.session import Session


def summary(
    session: Session, model: nn.Module, before: dict[str, float], after: dict[str, float]
) -> str:
    """The final table: widths, then cost, latency and test metrics, before and after."""
    import prunelab as pl

    state = session.state
    full, now = state.full_widths, state.widths()
    widths = [("layer", "before", "after"), *((g, str(full[g]), str(now[g])) for g in now)]
    inputs = _inputs(session.data)
    costs = [pl.cost(network, inputs) for network in (model, session.model)]
    times = [pl.latency(network, inputs) for network in (model, session.model)]
    name = getattr(session.data, "name", "")
    split = "validation" if getattr(session.data, "test_is_val", False) else "test"
    rows = [
        ("", "before", "after", ""),
        ("MACs", *(si(c.macs) for c in costs), f"{costs[1].macs / costs[0].macs:.1%}"),
        ("parameters", *(si(c.params) for c in costs), f"{costs[1].params / costs[0].params:.1%}"),
        ("latency", *(f"{1e3 * t.median:.2f} ms" for t in times), "median, one input"),
        *((f"{split} {k}", as_text(k, before[k]), as_text(k, after[k]), name) for k in before),
    ]
    return table(widths) + "\n\n" + table(rows)


def _inputs(data: Any) -> Any:
    batch = next(iter(data.val))
    return (batch[0] if isinstance(batch, tuple | list) else batch)[:1]


def data_of(options: argparse.Namespace) -> Any:
    """The data of --data: a named set in --root, or what module:function returns."""
    import prunelab as pl

    if ":" not in options.data:
        return pl.data.load(options.data, root=options.root)
    data = call(options.data, "--data", Path.cwd())
    if not isinstance(data, pl.Data):
        raise InvalidValue(
            f"--data {options.data} returned {type(data).__name__}; it must return "
            "pl.Data(train=, val=, test=)."
        )
    return data


def model_of(options: argparse.Namespace, data: Any) -> Any:
    """The network of --model: of the zoo, or what module:function returns."""
    from torch import nn

    import prunelab as pl

    if ":" not in options.model:
        shape, classes = data.input_shape or (1,), data.classes or range(10)
        return pl.zoo.load(options.model, in_channels=shape[0], classes=len(classes))
    model = call(options.model, "--model", Path.cwd())
    if not isinstance(model, nn.Module):
        raise InvalidValue(
            f"--model {options.model} returned {type(model).__name__}; it must return an nn.Module."
        )
    return model
