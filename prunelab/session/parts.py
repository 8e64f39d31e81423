"""The parts of a session that its verbs are given."""

from __future__ import annotations

from dataclasses import dataclass

from prunelab.methods import Method
from prunelab.session.evaluator import Evaluator
from prunelab.session.history import History
from prunelab.session.preview import Preview


@dataclass(slots=True)
class Parts:
    """A session without its verbs and its lock; `method` is the one that proposes."""

    evaluator: Evaluator
    history: History
    preview: Preview
    method: Method
