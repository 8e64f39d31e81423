"""Small immutable values: plans, moves, evidence, costs.

Each prints on one line, compares by content, is hashable, and converts to JSON and back. None needs
torch, so that values can be read without it.
"""

from prunelab.values.frozen import (
    Codec,
    FrozenMap,
    revive,
    thaw,
)
from prunelab.values.plan import (
    Graph,
    Group,
    Units,
    WidthPlan,
    factors_in,
    parts_of,
    plan_json,
    units_of,
)
from prunelab.values.search import (
    Cost,
    Ended,
    Importance,
    Move,
    PathPoint,
    Progress,
    Rung,
    Verdict,
    verdict_of,
)
from prunelab.values.wording import (
    as_text,
    listed,
    many,
    si,
    table,
)

__all__ = [
    "Codec",
    "Cost",
    "Ended",
    "FrozenMap",
    "Graph",
    "Group",
    "Importance",
    "Move",
    "PathPoint",
    "Progress",
    "Rung",
    "Units",
    "Verdict",
    "WidthPlan",
    "as_text",
    "factors_in",
    "listed",
    "many",
    "parts_of",
    "plan_json",
    "revive",
    "si",
    "table",
    "thaw",
    "units_of",
    "verdict_of",
]
