"""Several processes prune as one: equal sums, equal decisions, and an end when one has ended."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import workload
import world

import prunelab as pl

HEAD = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n" + (
    "import workload, prunelab as pl\nfrom pathlib import Path\n"
    "from prunelab.loops.ranks import join, rank\njoin()\n"
)


def results(script: str, ranks: int, folder: Path) -> list[Any]:
    """The result of every rank; all must have ended well."""
    ended = world.run(HEAD + script, ranks, folder)
    assert [one.code for one in ended] == [0] * ranks, "\n".join(one.said for one in ended)
    return [one.result for one in ended]


def difference(found: dict[str, list[float]], wanted: dict[str, list[float]]) -> float:
    """The largest difference, relative to the largest value of its array."""
    assert found.keys() == wanted.keys()
    return max(
        float(np.abs(np.subtract(found[name], wanted[name])).max() / np.abs(wanted[name]).max())
        for name in wanted
    )


@pytest.mark.long
@pytest.mark.parametrize(("ranks", "batches"), [(2, 5), pytest.param(4, 3, marks=pytest.mark.slow)])
def test_ranks_measure_and_train_as_one_process(ranks: int, batches: int, tmp_path: Path) -> None:
    measured, weights = workload.measured(batches), torch.tensor(workload.tuned(ranks))
    script = f"""
result['measured'] = workload.measured({batches})
result['weights'] = workload.tuned(1)
"""
    every = results(script, ranks, tmp_path)
    for found in every:
        assert difference(found["measured"], measured) < 1e-9
        assert found == every[0]  # bitwise, so that all decide alike
        torch.testing.assert_close(torch.tensor(found["weights"]), weights, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(torch.tensor(workload.tuned(1)), weights, atol=1e-4)


@pytest.mark.long
def test_ranks_decide_alike_and_as_one_process(tmp_path: Path) -> None:
    exact = [workload.pruned(method) for method in ("aofp", "surgeon")]
    script = """
result['exact'] = [workload.pruned(method) for method in ('aofp', 'surgeon')]
train = pl.GroupFisher(training=True, interval=1)
result['trained'] = workload.pruned(train, tune=4)
sampled = pl.AOFP(scoring='sampled', batches=1)
result['sampled'] = workload.pruned(sampled)
"""
    found = results(script, 2, tmp_path)
    assert found[0] == found[1]
    for one, other in zip(exact, found[0]["exact"], strict=True):
        assert one == other
    assert found[0]["trained"]["same"]
    assert found[0]["trained"]["events"][-1] in ("Tuned", "Noted")


@pytest.mark.long
def test_only_the_first_rank_writes_and_all_resume(tmp_path: Path) -> None:
    script = """
work = workload.session('aofp', 'run.prunelab', resume=True)
result['before'] = len(work.ledger)
work.propose()
work.approve()
result['plan'] = work.plan.to_json()
work.export('small.safetensors')
result['fingerprint'] = work.state.now.event.fingerprint
"""
    first = results(script, 2, tmp_path)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {
        "run.prunelab", "small.safetensors", "small.card.json", "result-0.json", "result-1.json",
    }  # fmt: skip
    data = pl.Data(workload.batches(8), workload.batches(5))
    again = pl.Session.open(tmp_path / "run.prunelab", model=workload.network(), data=data)
    assert again.plan.to_json() == first[0]["plan"] == first[1]["plan"]
    more = results(script, 2, tmp_path)
    assert [one["before"] for one in more] == [len(again.ledger)] * 2
    assert more[0] == more[1]


@pytest.mark.long
def test_a_dead_rank_ends_the_others_and_the_session_goes_on(tmp_path: Path) -> None:
    script = """
import os
work = workload.session('aofp', 'run.prunelab')
work.propose()
work.approve()
steps = []
def listen(item):
    steps.append(item)
    if rank() == 1 and len(steps) == 3:
        os._exit(9)
work.listen(listen)
work.tune(steps=50)
"""
    ended = world.run(HEAD + script, 2, tmp_path, timeout=120)
    assert ended[1].code == 9
    assert ended[0].code == 1
    assert "RankLost: Another of the processes that work together has ended" in ended[0].said
    assert "resume=True goes on after its last event" in ended[0].said
    data = pl.Data(workload.batches(8), workload.batches(5))
    again = pl.Session.open(tmp_path / "run.prunelab", model=workload.network(), data=data)
    assert again.state.moves == 1
    again.tune(steps=2)


@pytest.mark.slow
def test_nan_on_one_rank_is_told_on_all(tmp_path: Path) -> None:
    script = """
import torch
def loss(model, batch):
    value = workload.loss(model, batch)
    return value * float('nan') if rank() == 1 and model.training else value
work = workload.session('random', loss=loss, metrics={'accuracy': workload.accuracy})
try:
    work.tune(steps=2)
except pl.NotFinite as error:
    result['said'] = str(error)
"""
    found = results(script, 2, tmp_path)
    assert all(one["said"].startswith("The loss is nan") for one in found)


def test_one_process_knows_no_ranks() -> None:
    from prunelab.loops import ranks

    assert (ranks.ranks(), ranks.rank()) == (1, 0)
    assert list(ranks.sharded([1, 2])) == [1, 2] == ranks.in_order([1, 2])
    assert ranks.summed({"a": 1}) == {"a": 1}
    assert ranks.own_file("a") == Path("a")
    model = workload.network().eval()
    given = workload.batches(2)
    ev = pl.measure(model, pl.trace(model, given[0][0]), given)
    assert ev.all_reduce() is ev


@pytest.mark.parametrize("given", [0, -1, 1.5, True])
def test_accumulation_is_a_number_of_batches(given: Any) -> None:
    with pytest.raises(pl.InvalidValue, match="accumulate"):
        pl.Training(accumulate=given)


def test_bfloat16_trains_in_bfloat16_and_keeps_float32() -> None:
    seen = []

    def loss(model: Any, batch: Any) -> torch.Tensor:
        out = model(batch[0])
        seen.append(out.dtype)
        return torch.nn.functional.cross_entropy(out, batch[1])

    train = pl.Training(amp=True, distil=False)
    data = pl.Data(workload.batches(4), workload.batches(2))
    work = pl.Session(
        workload.network(), data, method="random", loss=loss, train=train,
        metrics={"accuracy": workload.accuracy},
    )  # fmt: skip
    work.tune(steps=2)
    assert seen[-2:] == [torch.bfloat16] * 2
    assert {p.dtype for p in work.model.parameters()} == {torch.float32}
