"""A factorisation's panels and sentences speak of components, and of the rank that is kept."""

from __future__ import annotations

import pytest
from torch import nn

import prunelab as pl
from prunelab.figures import importance_info
from prunelab.figures.importance import ImportanceInfo, draw_importance
from prunelab.notebook import text


def test_a_split_is_asked_for_and_explained_by_its_rank(trained: nn.Module, data: pl.Data) -> None:
    session = pl.Session(trained, data, method=pl.SpatialFactorisation())
    move = session.propose()
    assert move is not None
    name = next(iter(move.adds))
    info = importance_info(session.state, name)
    rank = move.adds[name] - len(move.drop.get(name, ()))
    kept = sum(v for v, fate in zip(info.values, info.fates, strict=True) if fate == "keep")
    assert info.noun == "component"
    assert info.how == (
        f"Each bar is a component (a singular value): its share of the kernel's energy. The {rank} "
        f"largest of {move.adds[name]} stay, which is the rank, and hold {100 * kept:.4g}% of it."
    )
    panel = draw_importance(info)
    assert panel.xaxis["title"]["text"].startswith("component ")
    assert panel.traces[-1].hovertext[0].startswith("component ")
    asked = text.question(session.state, session.proposal_graph[name], None)
    assert asked.startswith(f"Split {name.removesuffix('.0')} into two layers of rank {rank}")
    elsewhere = next(g for g in session.proposal_graph.groups if g.name not in move.drop)
    asked_there = text.question(session.state, elsewhere, None)
    assert asked_there.startswith(f"Split {len(move.adds)} layer")
    session.approve(repair=False)
    assert importance_info(session.state, name).how == info.how
    others = len(move.drop) - 1
    assert ("and split" in asked) == (others > 0)


@pytest.mark.parametrize(("units", "most"), [(range(90, 100), 10), (range(100, 500), 10)])
def test_labels_of_many_units_have_room(units: range, most: int) -> None:
    info = ImportanceInfo("a", tuple(units), (1.0,) * len(units), ("keep",) * len(units))
    assert len(draw_importance(info).xaxis["ticktext"]) <= most
