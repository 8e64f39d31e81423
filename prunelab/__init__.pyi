# The public names, and the module that each is imported from when it is first used.

__version__: str

from . import data as data
from . import figures as figures
from .classroom.grading import Grade as Grade
from .classroom.grading import grade as grade
from .classroom.handin import submit as submit
from .classroom.marking import Mark as Mark
from .classroom.rubric import Rubric as Rubric
from .cost.allocate import allocate as allocate
from .cost.counting import Latency as Latency
from .cost.counting import cost as cost
from .cost.counting import latency as latency
from .cost.latency_table import LatencyTable as LatencyTable
from .cost.latency_table import latency_table as latency_table
from .data import zoo as zoo
from .data.data import Data as Data
from .errors import (
    AtChance as AtChance,
)
from .errors import (
    BadData as BadData,
)
from .errors import (
    BadModel as BadModel,
)
from .errors import (
    BudgetUnreachable as BudgetUnreachable,
)
from .errors import (
    HandInError as HandInError,
)
from .errors import (
    IllegalPlan as IllegalPlan,
)
from .errors import (
    InvalidValue as InvalidValue,
)
from .errors import (
    MissingPackage as MissingPackage,
)
from .errors import (
    NotFinite as NotFinite,
)
from .errors import (
    OverBudget as OverBudget,
)
from .errors import (
    PruneLabError as PruneLabError,
)
from .errors import (
    RankLost as RankLost,
)
from .errors import (
    SessionBusy as SessionBusy,
)
from .errors import (
    SessionFileError as SessionFileError,
)
from .errors import (
    StaleEvidence as StaleEvidence,
)
from .errors import (
    Stopped as Stopped,
)
from .errors import (
    TraceError as TraceError,
)
from .errors import (
    UnknownName as UnknownName,
)
from .errors import (
    WrongState as WrongState,
)
from .evidence.ablation import ablate as ablate
from .evidence.best_set import BestSet as BestSet
from .evidence.best_set import best_set as best_set
from .evidence.evidence import Evidence as Evidence
from .evidence.jackknife import Interval as Interval
from .evidence.jackknife import Jackknife as Jackknife
from .evidence.jackknife import jackknife as jackknife
from .evidence.measure import measure as measure
from .evidence.redundancy import Redundancy as Redundancy
from .evidence.redundancy import redundancy as redundancy
from .experiments.compare import compare as compare
from .experiments.fidelity import Fidelity as Fidelity
from .experiments.fidelity import fidelity as fidelity
from .experiments.redesign import Redesign as Redesign
from .experiments.redesign import redesign as redesign
from .experiments.results import Comparison as Comparison
from .graph.channels.channel_graph import ChannelGraph as ChannelGraph
from .graph.channels.channel_graph import ChannelGroup as ChannelGroup
from .graph.channels.explain import Explanation as Explanation
from .graph.surgery.editing import (
    cut as cut,
)
from .graph.surgery.editing import (
    masked as masked,
)
from .graph.surgery.editing import (
    rebuild as rebuild,
)
from .graph.surgery.editing import (
    with_channel_selectors as with_channel_selectors,
)
from .graph.surgery.widening import widened as widened
from .graph.trace import trace as trace
from .ledger.ledger import Ledger as Ledger
from .ledger.predictions import Prediction as Prediction
from .ledger.state import State as State
from .loops.detection import detection_loss as detection_loss
from .loops.training import Metric as Metric
from .loops.training import Training as Training
from .methods import make_method as make_method
from .methods.aofp import AOFP as AOFP
from .methods.baselines import (
    APoZ as APoZ,
)
from .methods.baselines import (
    BatchNormScale as BatchNormScale,
)
from .methods.baselines import (
    FirstK as FirstK,
)
from .methods.baselines import (
    Magnitude as Magnitude,
)
from .methods.baselines import (
    MaxResponse as MaxResponse,
)
from .methods.baselines import (
    Random as Random,
)
from .methods.baselines import (
    Taylor as Taylor,
)
from .methods.channel_pruning import ChannelPruning as ChannelPruning
from .methods.elimination import Elimination as Elimination
from .methods.factorisation import ChannelFactorisation as ChannelFactorisation
from .methods.factorisation import SpatialFactorisation as SpatialFactorisation
from .methods.group_fisher import GroupFisher as GroupFisher
from .methods.one_shot import OneShot as OneShot
from .methods.oracle import Oracle as Oracle
from .methods.surgeon import Surgeon as Surgeon
from .methods.thinet import ThiNet as ThiNet
from .methods.three_c import ThreeC as ThreeC
from .notebook import Screen as Screen
from .notebook import show as show
from .session.export import load_pruned as load_pruned
from .session.preview import Foresight as Foresight
from .session.prune import Pruned as Pruned
from .session.prune import prune as prune
from .session.session import Session as Session
from .values import (
    Cost as Cost,
)
from .values import (
    Ended as Ended,
)
from .values import (
    Importance as Importance,
)
from .values import (
    Move as Move,
)
from .values import (
    PathPoint as PathPoint,
)
from .values import (
    Progress as Progress,
)
from .values import (
    Rung as Rung,
)
from .values import (
    WidthPlan as WidthPlan,
)
from .values.paired_comparison import PairedComparison as PairedComparison
from .values.sensitivity import Frontier as Frontier
from .values.sensitivity import Sensitivity as Sensitivity
