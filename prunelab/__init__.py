"""prunelab: prune a convolutional network in Jupyter, move by move."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

from prunelab import data, zoo
from prunelab.allocate import allocate
from prunelab.channels import ChannelGraph, ChannelGroup
from prunelab.classroom.grading import Grade, grade
from prunelab.classroom.handin import submit
from prunelab.classroom.marking import Mark
from prunelab.classroom.rubric import Rubric
from prunelab.compare import compare
from prunelab.comparison import Comparison
from prunelab.cost.counting import Latency, cost, latency
from prunelab.coupling.explain import Explanation
from prunelab.data import Data
from prunelab.errors import (
    AtChance,
    BadData,
    BadModel,
    BudgetUnreachable,
    HandInError,
    IllegalPlan,
    InvalidValue,
    MissingPackage,
    NotFinite,
    PruneLabError,
    SessionBusy,
    SessionFileError,
    StaleEvidence,
    Stopped,
    TraceError,
    UnknownName,
    WrongState,
)
from prunelab.evidence import Evidence, ablate, measure
from prunelab.export import load_pruned
from prunelab.fidelity import Fidelity, fidelity
from prunelab.ledger.ledger import Ledger
from prunelab.ledger.predictions import Prediction
from prunelab.ledger.state import State
from prunelab.methods import (
    AOFP,
    BatchNormScale,
    ChannelPruning,
    Elimination,
    FirstK,
    GroupFisher,
    Magnitude,
    MaxResponse,
    OneShot,
    Oracle,
    Random,
    Surgeon,
    Taylor,
    ThiNet,
    make_method,
)
from prunelab.prune import Pruned, prune
from prunelab.redesign import Redesign, redesign
from prunelab.session import Session
from prunelab.surgery.editing import cut, masked, rebuild, sampled
from prunelab.surgery.widening import widened
from prunelab.tracing.tracer import trace
from prunelab.training import Metric, Training
from prunelab.trial import Trial
from prunelab.values import (
    Cost,
    Ended,
    Importance,
    Move,
    PathPoint,
    Progress,
    Rung,
    WidthPlan,
)
from prunelab.workshop.foresight import Foresight

if TYPE_CHECKING:
    from prunelab import figures
    from prunelab.notebook import Screen, show

_LAB = {"show", "Screen", "figures"}

__all__ = [
    "AOFP",
    "AtChance",
    "BadData",
    "BadModel",
    "BatchNormScale",
    "BudgetUnreachable",
    "ChannelGraph",
    "ChannelGroup",
    "ChannelPruning",
    "Comparison",
    "Cost",
    "Data",
    "Elimination",
    "Ended",
    "Evidence",
    "Explanation",
    "Fidelity",
    "FirstK",
    "Foresight",
    "Grade",
    "GroupFisher",
    "HandInError",
    "IllegalPlan",
    "Importance",
    "InvalidValue",
    "Latency",
    "Ledger",
    "Magnitude",
    "Mark",
    "MaxResponse",
    "Metric",
    "MissingPackage",
    "Move",
    "NotFinite",
    "OneShot",
    "Oracle",
    "PathPoint",
    "Prediction",
    "Progress",
    "PruneLabError",
    "Pruned",
    "Random",
    "Redesign",
    "Rubric",
    "Rung",
    "Screen",
    "Session",
    "SessionBusy",
    "SessionFileError",
    "StaleEvidence",
    "State",
    "Stopped",
    "Surgeon",
    "Taylor",
    "ThiNet",
    "TraceError",
    "Training",
    "Trial",
    "UnknownName",
    "WidthPlan",
    "WrongState",
    "ablate",
    "allocate",
    "compare",
    "cost",
    "cut",
    "data",
    "fidelity",
    "figures",
    "grade",
    "latency",
    "load_pruned",
    "make_method",
    "masked",
    "measure",
    "prune",
    "rebuild",
    "redesign",
    "sampled",
    "show",
    "submit",
    "trace",
    "widened",
    "zoo",
]


def __getattr__(name: str) -> Any:
    """Screen and figures need packages of their own, so they are imported when asked for."""
    if name not in _LAB:
        raise AttributeError(f"module 'prunelab' has no attribute {name!r}")
    try:
        if name == "figures":
            return import_module("prunelab.figures")
        return getattr(import_module("prunelab.notebook"), name)
    except ImportError as error:
        raise MissingPackage(
            f"pl.{name} needs the widget stack, and {error.name} is missing: "
            "pip install 'prunelab[lab]', then restart the kernel."
        ) from error
