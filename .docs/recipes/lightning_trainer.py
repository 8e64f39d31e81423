"""Lightning: its Trainer tunes between moves, and a callback prunes while it trains."""

import lightning
import torch
from torch.nn import functional as F

import prunelab as pl


class Classifier(lightning.LightningModule):
    """The usual module around a network."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def training_step(self, batch, _):
        """The loss of a batch."""
        return F.cross_entropy(self.network(batch[0]), batch[1])

    def configure_optimizers(self):
        """SGD, over the parameters that the network has now."""
        return torch.optim.SGD(self.network.parameters(), lr=0.01, momentum=0.9)


class Prune(lightning.Callback):
    """A move of `session` before the training, which then tunes the smaller network."""

    def __init__(self, session, target_macs):
        self.session, self.target_macs = session, target_macs

    def setup(self, trainer, module, stage):
        """Prune; the optimiser is made afterwards."""
        self.session.run(self.target_macs, min_accuracy=None)
        module.network = self.session.model


def trainer(*callbacks):
    """Your Trainer, with its devices, strategy, precision and loggers."""
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    return lightning.Trainer(
        max_steps=3,
        accelerator="cpu",
        callbacks=list(callbacks),
        enable_model_summary=False,
        **quiet,
    )


data = pl.data.load("digits")
session = pl.Session(pl.zoo.load("mobilenet", pretrained=False), data, method="magnitude")

module = Classifier(session.original())
trainer(Prune(session, 0.8)).fit(module, data.train)  # as a callback
with session.tuning("Lightning") as network:  # or between moves, as a step that can be undone
    trainer().fit(Classifier(network), data.train)
print(session.state.line(), session.evaluate())
