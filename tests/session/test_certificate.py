"""What the screen says of a set's distance from the best one."""

from __future__ import annotations

from prunelab.evidence.best_set import BestSet
from prunelab.session.certificate import Certificate


def test_the_best_set_is_called_so() -> None:
    found = Certificate(BestSet("conv1", (1, 2), 0.25, 0.25), 0.25)
    assert str(found) == "Proved: the best 2 channels."
    assert found.tip == (
        "By the share of the signal that is lost before a repair: these lose 25.000%, no other "
        "2 channels of this layer less than 25.000%."
    )


def test_a_worse_set_is_told_by_how_much_at_most() -> None:
    best = BestSet("conv1", (1, 2), 0.25, 0.2)
    assert str(Certificate(best, 0.25)) == "Proved: within 25% of the best 2 channels."
    assert str(Certificate(best, 0.3)) == "Proved: within 50% of the best 2 channels."
    single = Certificate(BestSet("conv1", (1,), 0.1, 0.1), 0.2)
    assert str(single) == "Proved: within 100% of the best 1 channel."
    assert "no other 1 channel of this layer less than 10.000%" in single.tip


def test_what_costs_nothing_is_the_best() -> None:
    assert str(Certificate(BestSet("a", (3, 4), 0.0, 0.0), 0.0)) == "Proved: the best 2 channels."
