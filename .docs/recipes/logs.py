"""Logs: each step of a session, and the loss of each batch of tuning, in TensorBoard and CSV."""

import csv
import os
import tempfile
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

import prunelab as pl


class Log:
    """Listens to a session: `tensorboard --logdir FOLDER`, and the same values in log.csv."""

    def __init__(self, session, folder):
        if int(os.environ.get("RANK", 0)) > 0:
            return  # of the processes of torchrun the first writes
        self.session, self.table = session, Path(folder) / "log.csv"
        self.board = SummaryWriter(folder)
        session.listen(self)
        self(session.state.now.event)

    def __call__(self, item):
        """Write what an item says: losses by batch, networks by the number of their event."""
        if isinstance(item, pl.Progress) and item.loss is not None:
            self.write(item.done, {f"loss of tune {len(self.session.ledger)}": item.loss})
        elif hasattr(item, "metrics"):  # an event that changed the network
            cost = {"MACs": item.cost.macs, "parameters": item.cost.params}
            self.write(item.seq, {**cost, **item.metrics})
        elif isinstance(item, pl.Ended):
            self.board.flush()

    def write(self, step, values):
        """Write values by their names."""
        with self.table.open("a", newline="") as file:
            csv.writer(file).writerows((name, step, value) for name, value in values.items())
        for name, value in values.items():
            self.board.add_scalar(name, value, step)


folder = tempfile.mkdtemp()  # yours: "logs/first"
session = pl.Session(pl.zoo.load("mobilenet"), pl.data.load("fashion", subset=True), "magnitude")
log = Log(session, folder)
session.run(target_macs=0.8)
session.tune(steps=5)
print(session.state.line(), *sorted(file.name for file in Path(folder).iterdir()))
