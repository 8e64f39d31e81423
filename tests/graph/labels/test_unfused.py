"""Recurrent layers: one graph for every dtype, and features that they read are cut exactly."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from toys import assert_exact

import prunelab as pl
from prunelab.graph.labels.unfused import Unfused

DTYPES = (torch.float32, torch.bfloat16, torch.float64)
LAYERS = (nn.LSTM, nn.GRU, nn.RNN)
WAYS: dict[str, dict[str, Any]] = {
    "plain": {}, "packed": {}, "bidirectional": {"bidirectional": True},
    "packed bidirectional": {"bidirectional": True}, "deep": {"num_layers": 2},
    "without bias": {"bias": False}, "projected": {"proj_size": 6},
}  # fmt: skip
CASES = [(kind, way) for kind in LAYERS for way in WAYS if kind is nn.LSTM or way != "projected"]


class Sequences(nn.Module):
    """Features of sequences [N, 3, 16], read step by step."""

    def __init__(self, kind: Any, way: str = "cell") -> None:
        super().__init__()
        options = WAYS.get(way)
        self.a, self.b = nn.Conv1d(3, 8, 3, padding=1), nn.Conv1d(8, 12, 3, padding=1)
        self.read = kind(12, 10) if options is None else kind(12, 10, batch_first=True, **options)
        self.out = nn.Linear({"bidirectional": 20, "projected": 6}.get(way.split()[-1], 10), 5)
        self.way = way

    def forward(self, x: Tensor) -> Tensor:
        x = self.b(self.a(x).relu()).relu().transpose(1, 2)
        if self.way == "cell":
            state = None
            for step in range(4):
                state = self.read(x[:, step], state)
            return self.out(state[0] if isinstance(state, tuple) else state)
        if self.way.startswith("packed"):
            packed = pack_padded_sequence(x, [9, 16], batch_first=True, enforce_sorted=False)
            return self.out(pad_packed_sequence(self.read(packed)[0], batch_first=True)[0][:, 4])
        return self.out(self.read(x)[0][:, -1])


def described(model: nn.Module, dtype: torch.dtype) -> Any:
    x = torch.randn(2, 3, 16, dtype=dtype)
    graph = pl.trace(model.to(dtype), x)
    return [(group.name, group.why) for group in graph.groups], pl.cost(model, x).macs


@pytest.mark.parametrize("kind, way", CASES)
def test_the_graph_of_a_recurrent_layer_depends_on_no_dtype(kind: Any, way: str) -> None:
    model = Sequences(kind, way).eval()
    first, *others = (described(model, dtype) for dtype in DTYPES)
    assert others == [first, first]
    graph = pl.trace(model, torch.randn(2, 3, 16).double())
    assert {group.name for group in graph.groups if group.prunable} == {"a", "b"}
    assert_exact(model, graph, torch.randn(2, 3, 16), seeds=2)


@pytest.mark.parametrize("kind", [nn.LSTMCell, nn.GRUCell, nn.RNNCell])
def test_features_that_cells_read_are_cut(kind: Any) -> None:
    model = Sequences(kind).eval()
    first, *others = (described(model, dtype) for dtype in DTYPES)
    assert others == [first, first]
    graph = pl.trace(model, torch.randn(2, 3, 16).double())
    assert {group.name for group in graph.groups if group.prunable} == {"a", "b"}
    assert_exact(model, graph, torch.randn(2, 3, 16), seeds=2)


@pytest.mark.parametrize("kind, way", CASES)
def test_a_layer_taken_apart_gives_the_same(kind: Any, way: str) -> None:
    model, x = Sequences(kind, way).double(), torch.randn(2, 3, 16, dtype=torch.double)
    want = model(x)
    with Unfused():
        torch.testing.assert_close(model(x), want)


def test_dropout_between_layers_stays_in_training() -> None:
    layer = nn.LSTM(3, 200, num_layers=2, dropout=0.5)
    with Unfused(), torch.no_grad():
        one, other = layer(torch.ones(4, 1, 3))[0], layer(torch.ones(4, 1, 3))[0]
    assert not torch.equal(one, other)
