"""`repair="published"`: each method's own repair follows its moves."""

from __future__ import annotations

from typing import Any

import pytest
from torch import nn

import prunelab as pl
from prunelab.ledger.events import Repaired

FEW = {"images": 64}


@pytest.mark.parametrize(
    ("method", "kind"),
    [
        (pl.ThiNet(0.25, **FEW), "rescale"),
        (pl.ChannelPruning(0.25, **FEW), "lstsq"),
        (pl.Magnitude(0.25), "lstsq"),
        (pl.AOFP(theta=0.3, **FEW), None),
        (pl.GroupFisher(training=False, share=0.0, **FEW), None),
    ],
    ids=lambda given: getattr(given, "name", str(given)),
)
def test_the_repair_is_that_of_the_paper(
    method: Any, kind: str | None, trained: nn.Module, data: pl.Data
) -> None:
    session = pl.Session(trained, data, method, repair="published", repair_images=64)
    session.propose()
    session.approve()
    repairs = [event for event in session.ledger if isinstance(event, Repaired)]
    asked = {kind for event in repairs for kind in ([*event.tried][:1] or [event.kind])}
    assert asked == ({kind} if kind else set())
    session.method = pl.ThiNet(0.3, **FEW)
    session.propose()
    session.approve()
    last = [event for event in session.ledger if isinstance(event, Repaired)][-1]
    assert ([*last.tried][:1] or [last.kind]) == ["rescale"]


def test_it_is_no_repair_that_can_be_called(trained: nn.Module, data: pl.Data) -> None:
    session = pl.Session(trained, data, repair="published")
    with pytest.raises(pl.InvalidValue, match="rescale"):
        session.repair("published")
