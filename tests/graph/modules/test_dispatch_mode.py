"""Modes load torch's compiler only where it is in use, and are shielded from it there."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import torch

import prunelab as pl
from prunelab.graph.modules.dispatch_mode import DispatchMode

OPENED = """
import sys
import prunelab as pl
data = pl.data.load("fashion", subset=True)
session = pl.Session(pl.zoo.load("resnet20"), data)
session.propose()
print("torch._dynamo" in sys.modules)
"""


def test_a_session_opens_and_proposes_without_torchs_compiler() -> None:
    done = subprocess.run([sys.executable, "-c", OPENED], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "False"


class _Counting(DispatchMode):
    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.ran: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        self.ran.append(str(func))
        return func(*args, **(kwargs or {}))


class _Doubling(_Counting):
    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        return super().__torch_dispatch__(func, types, args, kwargs) * 2


def test_modes_see_every_operation_once_where_the_compiler_is_loaded() -> None:
    import torch._dynamo

    for kind, factor in ((_Counting, 1), (_Doubling, 2)):
        for _ in range(2):  # the second time it is shielded already
            mode = kind()
            with mode:
                out = torch.ones(3) + 1
            assert len(mode.ran) == 2
            assert out.tolist() == [factor * (factor + 1)] * 3
        assert hasattr(vars(kind)["__torch_dispatch__"], "shielded")


def test_a_compiled_part_of_a_network_is_traced() -> None:
    class Compiled(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = torch.nn.Conv2d(3, 8, 3), torch.nn.Conv2d(8, 4, 3)
            self.act = torch.compile(torch.nn.functional.relu, backend="eager")

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.two(self.act(self.one(x)))

    graph = pl.trace(Compiled().eval(), torch.rand(1, 3, 8, 8))
    assert [group.name for group in graph.groups if group.prunable] == ["one"]
