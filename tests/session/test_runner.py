"""Verbs: one at a time, with notifications for each step and at the end."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from prunelab.errors import Stopped
from prunelab.session.runner import Runner, Work
from prunelab.values import Ended, Progress


class Toy(Runner):
    """Counts to three; `at(step)` is called on the way."""

    def __init__(self, at: Callable[[int], None] = lambda step: None) -> None:
        super().__init__()
        self.at = at

    def count(self) -> int:
        return self.run("count", self._counting())

    def _counting(self) -> Work[int]:
        for step in range(3):
            self.at(step)
            yield Progress(step + 1, 3, "counting")
        return 3


def listening(toy: Toy) -> list[tuple[Any, str | None]]:
    """What `toy` tells from now on, each with the verb at work at that moment."""
    heard: list[tuple[Any, str | None]] = []
    toy.listen(lambda told: heard.append((told, toy.busy)))
    return heard


def test_listeners_hear_once_that_a_verb_is_over_when_the_next_may_begin() -> None:
    toy = Toy()
    heard = listening(toy)
    assert toy.count() == 3
    assert [busy for _, busy in heard] == ["count"] * 3 + [None]
    assert heard[-1][0] == Ended("count")


def test_they_hear_it_too_when_the_verb_failed_or_was_stopped() -> None:
    failing = Toy(lambda step: 1 // (1 - step))
    heard = listening(failing)
    with pytest.raises(ZeroDivisionError):
        failing.count()
    assert [told for told, _ in heard] == [Progress(1, 3, "counting"), Ended("count")]

    stopping = Toy()
    heard = listening(stopping)
    stopping.listen(lambda told: stopping.stop())
    with pytest.raises(Stopped):
        stopping.count()
    assert [told for told, _ in heard] == [Progress(1, 3, "counting"), Ended("count")]


def test_a_listener_may_begin_the_next_verb_when_one_is_over() -> None:
    toy = Toy()
    again: list[int] = []

    def once_more(told: Any) -> None:
        if isinstance(told, Ended) and not again:
            again.append(0)
            again.append(toy.count())

    toy.listen(once_more)
    toy.count()
    assert again == [0, 3]
