"""AOFP's destructive re-design of a zoo network: other widths at the same MACs.

    python tests/benchmarks/redesign.py [NETWORK] [--widen 1.5] [--method aofp] [--steps 400]
        [--tune 400] [--scratch 800] [--seeds 3] [--full]

Prints the widths and the comparison at equal MACs and equal steps. Nothing here is asserted.
"""

from __future__ import annotations

import argparse
import sys

import torch

import prunelab as pl
from prunelab.cli.terminal import Terminal


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("network", nargs="?", default="vgg8")
    parser.add_argument("--widen", type=float, default=1.5)
    parser.add_argument("--method", default="aofp")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--tune", type=int, default=400)
    parser.add_argument("--scratch", type=int, default=800)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--full", action="store_true", help="the full Fashion-MNIST")
    given = parser.parse_args()
    torch.set_num_threads(1)
    print(
        pl.redesign(
            pl.zoo.load(given.network),
            pl.data.load("fashion", subset=not given.full),
            given.widen,
            method=given.method,
            steps=given.steps,
            tune=given.tune,
            scratch=given.scratch,
            seeds=given.seeds,
            listen=Terminal(sys.stderr),
        )
    )


if __name__ == "__main__":
    main()
