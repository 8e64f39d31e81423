"""Mask gradients: the fast form against explicit masks, image by image."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional as F
from torchvision.ops import MultiScaleRoIAlign, roi_align
from toys import Couplings, batches

import prunelab as pl
from prunelab.evidence.mask_gradients import MaskWatch, differentiable

EXACT = 1e-10


def couplings(seed: int = 0) -> tuple[Couplings, Tensor, Tensor]:
    """The network in double precision with lively BatchNorm statistics, images and labels."""
    torch.manual_seed(seed)
    model = Couplings().double().eval()
    for norm in (model.norm, model.norm2):
        norm.running_mean.uniform_(-0.5, 0.5)
        norm.running_var.uniform_(0.5, 1.5)
    return model, torch.randn(5, 2, 8, 8, dtype=torch.float64), torch.tensor([0, 1, 2, 3, 1])


def masked_by(model: Couplings, graph: pl.ChannelGraph, mask: Tensor, masks: str) -> None:
    """Let `mask` [..., units + 1] multiply the input of every reader in `model`."""
    places = {layer.name: layer for layer in graph.layers}

    def see(name: str, x: Tensor) -> Tensor:
        layer = places[name]
        if masks == "consumers" and not layer.dense:
            return x
        of_input = mask[..., torch.from_numpy(layer.in_units)]
        return x * of_input.reshape(*of_input.shape, *([1] * (x.ndim - 2)))

    model.see = see


def each_image(
    model: Couplings, graph: pl.ChannelGraph, x: Tensor, y: Tensor, masks: str
) -> Tensor:
    """dL_n/dm [images, units + 1], one image at a time, by torch.func on explicit masks."""

    def loss(mask: Tensor, image: Tensor, label: Tensor) -> Tensor:
        masked_by(model, graph, mask, masks)
        return F.cross_entropy(functional_call(model, {}, (image[None],)), label[None])

    ones = torch.ones(graph.units + 1, dtype=torch.float64)
    found = vmap(grad(loss), in_dims=(None, 0, 0))(ones, x, y)
    model.see = lambda name, x: x
    return found


@pytest.mark.parametrize("masks", ["readers", "consumers"])
def test_mask_gradients_are_those_of_explicit_masks(masks: str) -> None:
    model, x, y = couplings()
    graph = pl.trace(model, x[:1])
    assert {group.name for group in graph if group.prunable} == {
        "stem", "wide", "side", "lateral", "head",
    }  # fmt: skip
    want = each_image(model, graph, x, y, masks).detach().numpy()
    found = pl.measure(model, graph, [(x, y)], kinds=("gradient",), masks=masks)
    for group in graph:
        if group.prunable:
            mine = want[:, group.first : group.first + group.width]
            got = found.gradient(group.name)
            assert got.units == group.units
            np.testing.assert_allclose(got.signed, mine.sum(0), rtol=EXACT, atol=EXACT)
            np.testing.assert_allclose(got.absolute, abs(mine).sum(0), rtol=EXACT, atol=EXACT)
            np.testing.assert_allclose(got.square, (mine**2).sum(0), rtol=EXACT, atol=EXACT)
            assert got.fisher.min() > 0


def test_layers_are_summed_before_the_square() -> None:
    model, x, y = couplings()
    graph = pl.trace(model, x[:1])
    trunk = graph["stem"]
    assert set(trunk.consumers) == {"point", "wide", "lateral"}
    alone = np.zeros(trunk.width)
    for layer in graph.layers:
        if not np.isin(layer.in_units, trunk.first + np.arange(trunk.width)).any():
            continue

        mask = torch.ones(5, graph.units + 1, dtype=torch.float64, requires_grad=True)
        of_input = mask[:, torch.from_numpy(layer.in_units)][..., None, None]

        def see(name: str, x: Tensor, here: str = layer.name, by: Tensor = of_input) -> Tensor:
            return x * by if name == here else x

        model.see = see
        F.cross_entropy(model(x), y, reduction="sum").backward()
        alone += mask.grad[:, : trunk.width].square().sum(0).numpy()
    model.see = lambda name, x: x
    square = pl.measure(model, graph, [(x, y)], kinds=("gradient",)).gradient("stem").square
    assert abs(alone / square - 1).min() > 1e-3


def test_central_differences_of_each_image_s_masked_loss_agree() -> None:
    model, x, y = couplings(1)
    graph = pl.trace(model, x[:1])
    found = pl.measure(model, graph, [(x, y)], kinds=("gradient",)).gradient("wide")
    step = 1e-5
    for unit in range(graph["wide"].width):
        losses = []
        for sign in (1, -1):
            mask = torch.ones(graph.units + 1, dtype=torch.float64)
            mask[graph["wide"].first + unit] += sign * step
            masked_by(model, graph, mask, "readers")
            losses.append(F.cross_entropy(model(x), y, reduction="none").detach().numpy())
            model.see = lambda name, x: x
        each = (losses[0] - losses[1]) / (2 * step)  # dL_n/dm [images]
        assert found.signed[unit] == pytest.approx(each.sum(), abs=1e-8)
        assert found.square[unit] == pytest.approx((each**2).sum(), abs=1e-8)


def test_in_training_batch_norm_it_is_the_summed_loss_that_answers() -> None:
    model, x, y = couplings()
    graph = pl.trace(model, x[:1])
    found = pl.measure(model, graph, [(x, y)], kinds=("gradient",), bn="batch")
    mask = torch.ones(5, graph.units + 1, dtype=torch.float64, requires_grad=True)
    model.train()
    masked_by(model, graph, mask, "readers")
    F.cross_entropy(model(x), y, reduction="sum").backward()
    model.see = lambda name, x: x
    want = mask.grad.square().sum(0).numpy()
    for name in ("stem", "wide", "lateral"):
        group = graph[name]
        np.testing.assert_allclose(
            found.gradient(name).square, want[group.first : group.first + group.width], rtol=EXACT
        )
    model.eval()
    own = pl.measure(model, graph, [(x, y)], kinds=("gradient",)).gradient("stem").square
    assert abs(found.gradient("stem").square / own - 1).max() > 0.01
    with pytest.raises(pl.StaleEvidence):
        found + pl.measure(model, graph, [(x, y)], kinds=("gradient",))
    with pytest.raises(pl.InvalidValue, match="alone"):
        pl.measure(model, graph, [(x, y)], bn="batch")


def test_micro_batches_add_up(trained: nn.Module) -> None:
    few = batches(96, 4)
    graph = pl.trace(trained, few[0][0])
    whole = pl.measure(trained, graph, few, kinds=("gradient",))
    parts = [(x[i : i + 8], y[i : i + 8]) for x, y in few for i in range(0, 32, 8)]
    one = pl.measure(trained, graph, parts[:5], kinds=("gradient",))
    two = pl.measure(trained, graph, parts[5:], kinds=("gradient",))
    np.testing.assert_allclose((one + two).gradients, whole.gradients, rtol=1e-4, atol=1e-6)
    assert (one + two).images == 96


@settings(max_examples=5, deadline=None)
@given(scale=st.floats(0.01, 100))
def test_a_scaled_loss_scales_the_square_and_keeps_the_order(scale: float) -> None:
    model, x, y = couplings()
    graph = pl.trace(model, x[:1])

    def loss(network: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return scale * F.cross_entropy(network(batch[0]), batch[1])

    plain = pl.measure(model, graph, [(x, y)], kinds=("gradient",)).gradient("wide").fisher
    scaled = pl.measure(model, graph, [(x, y)], kinds=("gradient",), loss=loss)
    np.testing.assert_allclose(scaled.gradient("wide").fisher, scale**2 * plain, rtol=1e-9)
    assert scaled.gradient("wide").fisher.argmin() == plain.argmin()


@settings(max_examples=10, deadline=None)
@given(order=st.permutations(range(12)))
def test_permuting_channels_permutes_the_gradients(trained: nn.Module, order: list[int]) -> None:
    x, y = batches(32, 4)[0]
    graph = pl.trace(trained, x)
    permuted = type(trained)()
    permuted.load_state_dict(trained.state_dict())
    permuted.eval()
    with torch.no_grad():
        permuted.conv1.weight.copy_(trained.conv1.weight[order])
        for name in ("weight", "bias", "running_mean", "running_var"):
            getattr(permuted.bn1, name).copy_(getattr(trained.bn1, name)[order])
        permuted.conv2.weight.copy_(trained.conv2.weight[:, order])
    before = pl.measure(trained, graph, [(x, y)], kinds=("gradient",)).gradient("conv1")
    after = pl.measure(permuted, graph, [(x, y)], kinds=("gradient",)).gradient("conv1")
    np.testing.assert_allclose(after.fisher, before.fisher[order], rtol=1e-3)


def test_a_unit_that_nothing_reads_has_no_gradient(trained: nn.Module) -> None:
    model = type(trained)()
    model.load_state_dict(trained.state_dict())
    model.eval()
    x, y = batches(32, 4)[0]
    with torch.no_grad():
        model.conv2.weight[:, 3] = 0
    graph = pl.trace(model, x)
    found = pl.measure(model, graph, [(x, y)], kinds=("gradient",)).gradient("conv1")
    assert found.square[3] == 0
    assert np.delete(found.square, 3).min() > 0


def test_measuring_gradients_leaves_no_trace(trained: nn.Module) -> None:
    model = type(trained)()
    model.load_state_dict(trained.state_dict())
    model.train()
    for parameter in model.stem.parameters():
        parameter.requires_grad_(False)
    model.bn1.eval()
    x, y = batches(32, 4)[0]
    graph = pl.trace(model, x)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    flags = [(m, m.training) for m in model.modules()]
    wanted = [(p, p.requires_grad) for p in model.parameters()]
    rng = torch.get_rng_state()
    for bn in ("running", "batch"):
        found = pl.measure(model, graph, [(x, y)], kinds=("gradient",), bn=bn)
        assert found.gradient("stem").square.min() > 0  # below the frozen layer, too
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])
    assert all(m.training is flag for m, flag in flags)
    assert all(p.requires_grad is flag and p.grad is None for p, flag in wanted)
    assert torch.equal(torch.get_rng_state(), rng)


def test_it_looks_on_while_a_network_trains(trained: nn.Module) -> None:
    x, y = batches(32, 4)[0]
    graph = pl.trace(trained, x)

    def gradients(watched: bool) -> tuple[list[Tensor], MaskWatch]:
        model = type(trained)()
        model.load_state_dict(trained.state_dict())
        model.train()
        watch = MaskWatch(model, graph)
        if watched:
            with watch.on((x, y)):
                loss = F.cross_entropy(model(x), y)
        else:
            loss = F.cross_entropy(model(x), y)
        loss.backward()
        return [p.grad for p in model.parameters()] + list(model.buffers()), watch

    (plain, _), (seen, watch) = gradients(False), gradients(True)
    assert all(torch.equal(a, b) for a, b in zip(plain, seen, strict=True))
    watch.add()
    want = pl.measure(trained, graph, [(x, y)], kinds=("gradient",), bn="batch").gradients
    np.testing.assert_allclose(watch.sums.numpy(), want, rtol=1e-4, atol=1e-7)


def test_a_batch_may_be_lists_as_detectors_take_them() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2)).double()
    images = list(torch.randn(4, 3, 8, 8, dtype=torch.float64))
    labels = [torch.tensor(n % 2) for n in range(4)]
    graph = pl.trace(model, images[0][None])

    def loss(network: nn.Module, batch: tuple[list[Tensor], list[Tensor]]) -> Tensor:
        return F.cross_entropy(network(torch.stack(batch[0])), torch.stack(batch[1]))

    kinds = {"kinds": ("gradient",), "loss": loss}
    whole = pl.measure(model, graph, [(images, labels)], **kinds)
    parts = pl.measure(model, graph, [(images[:1], labels[:1]), (images[1:], labels[1:])], **kinds)
    assert whole.images == parts.images == 4
    np.testing.assert_allclose(whole.gradients, parts.gradients, rtol=EXACT, atol=EXACT)


class Rows(nn.Module):
    """A linear layer on `per` rows for each image, as on regions of interest."""

    def __init__(self, per: int) -> None:
        super().__init__()
        self.per = per
        self.conv, self.fc = nn.Conv2d(1, 5, 3), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        pooled = F.adaptive_avg_pool2d(torch.tanh(self.conv(x)), (self.per, 1))
        rows = pooled.flatten(2).transpose(1, 2).reshape(-1, 5)
        return self.fc(rows).view(len(x), self.per, 3).mean(1)


def test_rows_of_one_image_count_as_one() -> None:
    model = Rows(4).double()
    x, y = torch.randn(6, 1, 8, 8, dtype=torch.float64), torch.tensor([0, 1, 2, 0, 1, 2])
    graph = pl.trace(model, x[:1])
    whole = pl.measure(model, graph, [(x, y)], kinds=("gradient",)).gradients
    single = [(x[i : i + 1], y[i : i + 1]) for i in range(6)]
    parts = pl.measure(model, graph, single, kinds=("gradient",)).gradients
    np.testing.assert_allclose(whole, parts, rtol=EXACT, atol=EXACT)


def of_one_trunk(model: nn.Module, x: Tensor, y: Tensor) -> np.ndarray:
    """dL_n/dm [images, channels] of a mask on `model.trunk(x)`, image by image."""
    rows = []
    for image, label in zip(x.split(1), y.split(1), strict=True):
        mask = torch.ones(5, dtype=x.dtype, requires_grad=True)
        out = model.rest(model.trunk(image), mask.view(1, -1, 1, 1))
        rows.append(torch.autograd.grad(F.cross_entropy(out, label), mask)[0])
    return torch.stack(rows).numpy()


class Regions(nn.Module):
    """Two stages: a proposal head on the map, a linear layer on the flattened regions of it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.rpn = nn.Conv2d(1, 5, 3, padding=1), nn.Conv2d(5, 3, 1)
        self.fc = nn.Linear(5 * 4, 3)

    def trunk(self, x: Tensor) -> Tensor:
        return torch.tanh(self.conv(x))

    def rest(self, x: Tensor, mask: Tensor | float = 1.0) -> Tensor:
        corners = torch.tensor([[0.0, 0, 4, 4], [2, 1, 7, 6], [1, 3, 5, 8]], dtype=x.dtype)
        regions = roi_align(x, [corners] * len(x), (2, 2), aligned=True)
        scores = self.fc((regions * mask).flatten(1)).view(len(x), 3, -1).mean(1)
        return scores + self.rpn(x * mask).mean((2, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.rest(self.trunk(x))


class Pyramid(nn.Module):
    """A feature pyramid: laterals that a top-down sum couples, a head shared by both levels."""

    def __init__(self) -> None:
        super().__init__()
        self.low, self.high = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 6, 3, 2, 1)
        self.lateral_low, self.lateral_high = nn.Conv2d(4, 5, 1), nn.Conv2d(6, 5, 1)
        self.head = nn.Conv2d(5, 3, 3, padding=1)

    def trunk(self, x: Tensor) -> tuple[Tensor, Tensor]:
        low = torch.tanh(self.low(x))
        top = self.lateral_high(torch.tanh(self.high(low)))
        return self.lateral_low(low) + F.interpolate(top, scale_factor=2.0), top

    def rest(self, levels: tuple[Tensor, Tensor], mask: Tensor | float = 1.0) -> Tensor:
        return sum(self.head(torch.tanh(level) * mask).mean((2, 3)) for level in levels)

    def forward(self, x: Tensor) -> Tensor:
        return self.rest(self.trunk(x))


@pytest.mark.parametrize(("net", "group"), [(Regions, "conv"), (Pyramid, "lateral_high")])
def test_regions_and_levels_of_an_image_are_summed_before_the_square(
    net: type[nn.Module], group: str
) -> None:
    model = net().double()
    x = torch.randn(4, 1, 8, 8, dtype=torch.float64)
    y = torch.tensor([0, 1, 2, 1])
    graph = pl.trace(model, x[:1])
    assert graph[group].prunable
    assert graph[group].width == 5
    want = of_one_trunk(model, x, y)
    found = pl.measure(model, graph, [(x, y)], kinds=("gradient",)).gradient(group)
    np.testing.assert_allclose(found.square, (want**2).sum(0), rtol=EXACT)
    np.testing.assert_allclose(found.signed, want.sum(0), rtol=EXACT)


class Detector(nn.Module):
    """Images of other sizes in one padded batch, two levels, regions of unequal numbers.

    Regions are written to the rows of their level, as torchvision's detectors do, or joined image
    by image; the loss of an image is the mean over its regions.
    """

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.conv = nn.Conv2d(3, 5, 3, padding=1)
        self.down, self.fc = nn.Conv2d(5, 5, 3, 2, 1), nn.Linear(5 * 4, 3)
        self.pool = MultiScaleRoIAlign(["0", "1"], 2, 2, canonical_scale=8, canonical_level=3)

    def forward(self, images: list[Tensor], boxes: list[Tensor]) -> list[Tensor]:
        x = images[0].new_zeros(len(images), 3, 12, 12)
        for image, place in zip(images, x.unbind(0), strict=True):
            place[:, : image.shape[1], : image.shape[2]].copy_(image)
        low = torch.tanh(self.conv(x))
        high = torch.tanh(self.down(low))
        if self.how == "levels":
            sizes = [(12, 12)] * len(images)
            regions = self.pool({"0": low, "1": high}, boxes, sizes)
            rows = regions.flatten(1)
        else:
            pooled = [roi_align(one[None], [b], (2, 2)) for one, b in zip(low, boxes, strict=True)]
            rows = torch.cat([one.flatten(1) for one in pooled])
        return list(self.fc(rows).split([len(b) for b in boxes]))


def detected(network: nn.Module, batch: Any) -> Tensor:
    images, boxes, labels = batch
    found = network(images, boxes)
    each = [
        F.cross_entropy(rows.mean(0)[None], label[None]) if len(rows) else rows.sum()
        for rows, label in zip(found, labels, strict=True)
    ]
    return torch.stack(each).mean()


@pytest.mark.parametrize("how", ["levels", "joined"])
@pytest.mark.parametrize("counts", [(4, 2), (4, 1), (3, 3, 3), (2, 0, 1), (3, 0, 0)])
def test_unequal_numbers_of_regions_go_to_their_images(how: str, counts: tuple[int, ...]) -> None:
    torch.manual_seed(sum(counts))
    model = Detector(how).double()
    images = [torch.randn(3, 12 - n, 9 + n, dtype=torch.float64) for n in range(len(counts))]
    corners = [torch.rand(count, 2, dtype=torch.float64) * 4 for count in counts]
    boxes = [torch.cat([at, at + 2 + 5 * torch.rand(len(at), 1)], 1) for at in corners]
    labels = [torch.tensor(n % 3) for n in range(len(counts))]
    batch = (images, boxes, labels)
    graph = pl.trace(model, (images, boxes))
    assert graph["conv"].prunable
    kinds = {"kinds": ("gradient",), "loss": detected}
    whole = pl.measure(model, graph, [batch], **kinds)
    single = [tuple([column[n]] for column in batch) for n in range(len(counts)) if counts[n]]
    parts = pl.measure(model, graph, single, **kinds)
    assert whole.images == len(counts)
    np.testing.assert_allclose(whole.gradients, parts.gradients, rtol=EXACT, atol=EXACT)


def test_rows_that_mix_images_are_refused(trained: nn.Module) -> None:
    batch = batches(32, 4)[0]
    graph = pl.trace(trained, batch[0])

    def mixed(network: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        x = batch[0]
        return F.cross_entropy(network(x + x.flip(0)), batch[1])

    with pytest.raises(pl.BadData, match="followed"):
        pl.measure(trained, graph, [batch], kinds=("gradient",), loss=mixed)


def test_groups_do_not_depend_on_the_order_in_which_modules_stand() -> None:
    model, x, _ = couplings()
    want = [(g.name, g.width, g.producers, g.consumers, g.why) for g in pl.trace(model, x[:1])]
    for seed in range(4):
        rng = np.random.default_rng(seed)
        for module in model.modules():
            for table in (module._modules, module._parameters):
                items = [*table.items()]
                table.clear()
                table.update(items[index] for index in rng.permutation(len(items)))
        found = pl.trace(model, x[:1])
        assert [(g.name, g.width, g.producers, g.consumers, g.why) for g in found] == want


def test_what_cannot_be_measured_is_told(trained: nn.Module) -> None:
    x, y = batches(32, 4)[0]
    graph = pl.trace(trained, x)

    def flat(network: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        with torch.no_grad():
            return network(batch[0]).sum()

    with pytest.raises(pl.BadModel, match=r"torch\.no_grad"):
        pl.measure(trained, graph, [(x, y)], kinds=("gradient",), loss=flat)
    with pytest.raises(pl.InvalidValue, match="one number"):
        pl.measure(trained, graph, [(x, y)], kinds=("gradient",), loss=lambda net, b: net(b[0]))
    with pytest.raises(pl.BadData, match="labels"):
        pl.measure(trained, graph, [x], kinds=("gradient",))
    with pytest.raises(pl.NotFinite):
        nan = torch.full_like(x, torch.nan)
        pl.measure(trained, graph, [(nan, y)], kinds=("gradient",))
    with pytest.raises(pl.UnknownName, match="gradient"):
        pl.measure(trained, graph, [x]).gradient("conv1")
    with pytest.raises(pl.InvalidValue, match="readers"):
        pl.measure(trained, graph, [(x, y)], kinds=("gradient",), masks="all")
    with pytest.raises(pl.BadData, match="rows"), differentiable(trained):
        watch = MaskWatch(trained, graph)
        with watch.on(x[:5]):
            loss = F.cross_entropy(trained(x), y)
        loss.backward()
        trained.zero_grad(set_to_none=True)
        watch.add()
