"""What the screen says of a set's distance from the best one."""

from __future__ import annotations

from prunelab.evidence.best_set import BestSet
from prunelab.notebook.certificate import Certificate


def test_the_best_set_is_called_so() -> None:
    best = BestSet("conv1", (1, 2), 0.25, 0.25)
    assert str(Certificate(best, 0.25)) == (
        "No other 2 channels of this layer would cost less of the signal (proved)."
    )


def test_a_worse_set_is_told_by_how_much_and_that_a_better_one_is_known() -> None:
    best = BestSet("conv1", (1, 2), 0.25, 0.2)
    assert str(Certificate(best, 0.25)) == (
        "Before a repair these cost 25.00% of the signal: at most 25.0% more than any 2 channels "
        "of this layer (proved)."
    )
    assert str(Certificate(best, 0.3)).endswith(", and ones are known that cost 25.00%.")
    single = Certificate(BestSet("conv1", (1,), 0.1, 0.1), 0.2)
    assert "than any other channel of this layer" in str(single)
