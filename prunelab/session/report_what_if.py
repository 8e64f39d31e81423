"""What a report takes along of a session's evidence, so that it goes on answering."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from prunelab.cost.by_width import cost_by_width
from prunelab.evidence import damage_curve
from prunelab.figures.what_if import WhatIf, WhatIfGroup

if TYPE_CHECKING:
    from prunelab.session.session import Session


def what_if(session: Session) -> WhatIf:
    """The contributions of every group of the current network, measured if they are not at hand."""
    found = session.evidence
    if found is None or found.stale:
        found = session.measure()
    plan, groups = session.plan, []
    for group in session.graph.groups:
        if not group.prunable or group.name not in found.evidence.groups:
            continue
        gram = found.evidence[group.name]
        curve = damage_curve(gram)
        energy = gram.energy
        shares = gram.gram / energy if energy > 0 else np.zeros_like(gram.gram)
        groups.append(
            WhatIfGroup(
                group.name, group.producers, group.width, gram.units, group.narrowest, group.step,
                shares, curve.order, curve.damages,
            )
        )  # fmt: skip
    costs = cost_by_width(session._evaluator.graph_of(plan), plan)
    if costs is None:
        return WhatIf(groups, None, {}, {}, str(found))
    return WhatIf(groups, costs.start, costs.linear, costs.pairs, str(found))
