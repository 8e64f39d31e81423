"""`Evidence`: what one pass over the data measured; results of several passes add up."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from prunelab.errors import BadData, StaleEvidence, UnknownName
from prunelab.evidence.ablation import Ablation
from prunelab.evidence.contribution import ConsumerGram, ContributionGram
from prunelab.evidence.gram_collector import Sums, distinct_units
from prunelab.evidence.mask_gradients import BatchNorm, MaskGradients, Masks
from prunelab.evidence.output_fisher import Curvature, added
from prunelab.evidence.patch_moments import PatchMoments
from prunelab.graph.channels.channel_graph import FIXED, ChannelGraph, ChannelGroup
from prunelab.loops.ranks import gathered, ranks, summed
from prunelab.values.given import as_annotated

KINDS = ("contribution", "patches", "gradient", "ablation", "curvature")


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class Evidence:
    """The measurements of one pass; `evidence[group]` gives a group's contributions.

    Evidence of the same network, measured in the same way, adds up with +.

    Attributes
    ----------
    graph
        The graph of the network that was measured.
    fingerprint
        Names the exact state of that network.
    images
        How many inputs were measured.
    at, masks, bn
        The arguments of `measure`.
    grams, sums
        By layer: G over the distinct units that it reads, and the sums of their contributions.
        Inputs that belong to no unit share the last row and column.
    moments
        By layer: the second moments of the patches that it reads.
    gradients
        Sums over images of the mask gradients, signed, absolute and squared [3, units + 1].
    ablated
        The loss, summed over images, without each unit [units + 1]; last, with all of them.
    curvature
        By layer: the sum of g g' [out, out], where g is the loss gradient of its outputs; of few
        gradients, or a layer with more than 2048 outputs, its `Root`.
    """

    graph: ChannelGraph
    fingerprint: str
    images: int
    at: str
    grams: Mapping[str, np.ndarray] = field(default_factory=dict)
    moments: Mapping[str, PatchMoments] = field(default_factory=dict)
    sums: Mapping[str, Sums] = field(default_factory=dict)
    gradients: np.ndarray | None = None
    ablated: np.ndarray | None = None
    masks: Masks = "readers"
    bn: BatchNorm = "running"
    curvature: Mapping[str, Curvature] = field(default_factory=dict)
    _groups: dict[str, ContributionGram] = field(default_factory=dict, init=False, repr=False)
    _totals: dict[str, np.ndarray] = field(default_factory=dict, init=False, repr=False)

    def __getitem__(self, name: str) -> ContributionGram:
        group = self.graph[name]
        if group.name not in self._groups:
            self._groups[group.name] = self._contributions(group)
        return self._groups[group.name]

    def _contributions(self, group: ChannelGroup) -> ContributionGram:
        """A group's contributions; the arrays are views of the evidence's, not copies."""
        wanted = group.first + np.asarray(group.units, dtype=np.int64)
        consumers = {}
        for layer in self.graph.consumers(group):
            if layer.name not in self.grams:
                continue
            gram = self.grams[layer.name]
            if layer.name not in self._totals:
                self._totals[layer.name] = gram.sum(1)  # <z_i, y>
            total = self._totals[layer.name]
            first = int(np.searchsorted(distinct_units(layer), wanted[0]))
            rows = slice(first, first + len(wanted))  # units are numbered group by group
            consumers[layer.name] = ConsumerGram(
                name=layer.name,
                units=group.units,
                gram=gram[rows, rows],
                cross=total[rows],
                energy=float(total.sum()),
            )
        if not consumers and group.consumers:
            raise UnknownName("measured group", group.name, self.groups)
        return ContributionGram(group.name, group.units, consumers)

    def gradient(self, name: str) -> MaskGradients:
        """The mask gradients of a group; raises `UnknownName` if they were not measured."""
        sums = self._of(name, self.gradients, "gradient")
        return MaskGradients(self.graph[name].name, self.graph[name].units, self.images, *sums)

    def ablation(self, name: str) -> Ablation:
        """The loss without each unit of a group; raises `UnknownName` if it was not measured."""
        losses = self._of(name, self.ablated, "ablation") / self.images
        base = float(self.ablated[FIXED]) / self.images  # type: ignore[index]
        group = self.graph[name]
        return Ablation(group.name, group.units, self.images, losses, base)

    def _of(self, name: str, sums: np.ndarray | None, kind: str) -> np.ndarray:
        """The columns of `sums` that belong to a group's units."""
        group = self.graph[name]
        if sums is None or not group.prunable:
            known = [g.name for g in self.graph.groups if g.prunable] if sums is not None else []
            raise UnknownName(f"group measured with kinds=({kind!r},)", name, known)
        found: np.ndarray = sums[..., group.first + np.asarray(group.units, dtype=np.int64)]
        return found

    def release(self, layer: str) -> None:
        """Give up a layer's patches, whose least squares are solved, and keep their number."""
        if isinstance(self.moments, dict) and layer in self.moments:
            self.moments[layer] = PatchMoments(self.moments[layer].rows)

    @property
    def groups(self) -> list[str]:
        """The prunable groups that were measured."""
        return [
            group.name
            for group in self.graph.groups
            if group.prunable and any(name in self.grams for name in group.consumers)
        ]

    @property
    def centred(self) -> Evidence:
        """The evidence of centred contributions: least squares on it has a free intercept.

        The layer's bias, or a BatchNorm behind it, absorbs the constant.
        """
        grams = {}
        for name, gram in self.grams.items():
            total = self.sums[name]
            grams[name] = gram - total.sums @ total.sums.T / max(1, total.rows)
        return replace(self, grams=grams)

    @as_annotated
    def __add__(self, other: Evidence) -> Evidence:
        if self._measured() != other._measured():
            raise StaleEvidence(
                "Only evidence of the same network, measured in the same way, can be added; "
                f"these are {self._measured()} and {other._measured()}. Measure again."
            )
        return Evidence(
            self.graph,
            self.fingerprint,
            self.images + other.images,
            self.at,
            {name: self.grams[name] + other.grams[name] for name in self.grams},
            {name: self.moments[name] + other.moments[name] for name in self.moments},
            {name: self.sums[name] + other.sums[name] for name in self.sums},
            None if self.gradients is None else self.gradients + other.gradients,
            None if self.ablated is None else self.ablated + other.ablated,
            self.masks,
            self.bn,
            {name: added(value, other.curvature[name]) for name, value in self.curvature.items()},
        )

    def all_reduce(self) -> Evidence:
        """The sum over all processes that `torchrun` started, each of which measured its batches.

        Every rank must call it; in a single process it is the evidence itself. Raises `BadData`
        where none measured any, `StaleEvidence` where they measured other things, `RankLost`.
        """
        if ranks() == 1:
            return self
        every = gathered((self.images, self._measured()))
        measured = {how for images, how in every if images}
        if not measured:
            raise BadData("There are no batches to measure on; give at least one.")
        if len(measured) > 1:
            raise StaleEvidence(f"The processes measured other things: {measured}. Measure again.")
        parts: dict[str, Any] = {"images": self.images}
        parts |= {f"moments {name}": m.moment for name, m in self.moments.items()}
        parts |= {f"patches {name}": m.rows for name, m in self.moments.items()}
        parts |= {f"grams {name}": gram for name, gram in self.grams.items()}
        parts |= {f"sums {name}": total.sums for name, total in self.sums.items()}
        parts |= {f"rows {name}": total.rows for name, total in self.sums.items()}
        parts |= {f"curvature {name}": value for name, value in self.curvature.items()}
        alone = {"gradients": self.gradients, "ablated": self.ablated}
        parts |= {name: value for name, value in alone.items() if value is not None}
        total = summed(parts)

        def of(kind: str) -> dict[str, Any]:
            start = f"{kind} "
            return {n[len(start) :]: value for n, value in total.items() if n.startswith(start)}

        moments, sums, patches, rows = map(of, ("moments", "sums", "patches", "rows"))
        return replace(
            self,
            images=total["images"],
            grams=of("grams"),
            moments={name: PatchMoments(patches[name], moments[name]) for name in moments},
            sums={name: Sums(sums[name], rows[name]) for name in sums},
            gradients=total.get("gradients"),
            ablated=total.get("ablated"),
            curvature=of("curvature"),
        )

    def _measured(self) -> tuple[object, ...]:
        """The network, the way it was measured, and the kinds of evidence."""
        kinds = (
            self.grams,
            self.moments,
            self.gradients is not None,
            self.ablated is not None,
            self.curvature,
        )
        found = [kind for kind, have in zip(KINDS, kinds, strict=True) if have]
        return (self.fingerprint, self.at, self.masks, self.bn, *found)

    def __repr__(self) -> str:
        return f"<Evidence on {self.images} images of network {self.fingerprint}, at {self.at!r}>"
