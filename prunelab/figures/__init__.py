"""State and evidence as plotly figures: pure functions, independent of Jupyter and torch.

Each panel has an `..._info` function, from a State to the numbers that are drawn, and a
`draw_...` function, from those numbers to traces and axes. The coupling figure does the same for a
channel graph.
"""

from prunelab.figures.bars import bars
from prunelab.figures.board import BoardInfo, board, board_info
from prunelab.figures.class_recall import class_recall, class_recall_info
from prunelab.figures.costs import costs, costs_info
from prunelab.figures.frontier import frontier, frontier_info
from prunelab.figures.graph import coupling
from prunelab.figures.graph_info import coupling_info
from prunelab.figures.importance import importance, importance_info
from prunelab.figures.ladder import ladder, ladder_info
from prunelab.figures.lasso_path import path, path_info
from prunelab.figures.method_comparison import methods, methods_info
from prunelab.figures.plan_comparison import Side, compare, compare_info, plan_side, point_side
from prunelab.figures.report import report
from prunelab.figures.sensitivity import sensitivity, sensitivity_info
from prunelab.figures.svg import svg
from prunelab.figures.tiles import tiles
from prunelab.figures.trajectory import trajectory, trajectory_info
from prunelab.figures.widths import widths, widths_info

__all__ = [
    "BoardInfo",
    "Side",
    "bars",
    "board",
    "board_info",
    "class_recall",
    "class_recall_info",
    "compare",
    "compare_info",
    "costs",
    "costs_info",
    "coupling",
    "coupling_info",
    "frontier",
    "frontier_info",
    "importance",
    "importance_info",
    "ladder",
    "ladder_info",
    "methods",
    "methods_info",
    "path",
    "path_info",
    "plan_side",
    "point_side",
    "report",
    "sensitivity",
    "sensitivity_info",
    "svg",
    "tiles",
    "trajectory",
    "trajectory_info",
    "widths",
    "widths_info",
]
