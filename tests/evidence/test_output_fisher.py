"""Fisher information at layers' outputs, against gradients of single images."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from toys import Tiny, batches

import prunelab as pl
from prunelab.evidence import output_fisher
from prunelab.evidence.fingerprint import fingerprint
from prunelab.evidence.output_fisher import Root, fisher_loss

LAYERS = ("conv1", "conv2", "conv3", "fc")


@pytest.fixture(scope="module")
def net(trained: nn.Module) -> Tiny:
    model = Tiny()
    model.load_state_dict(trained.state_dict())
    return model.double().eval()


@pytest.fixture(scope="module")
def seen() -> list[tuple[Tensor, Tensor]]:
    return [(x[:9].double(), y[:9]) for x, y in batches(64, 4)]


def labelled(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def measured(net: nn.Module, seen: list[tuple[Tensor, Tensor]], **how: object) -> pl.Evidence:
    graph = pl.trace(net, seen[0][0])
    return pl.measure(net, graph, seen, kinds=("curvature",), layers=LAYERS, **how)


def full(found: pl.Evidence, name: str) -> np.ndarray:
    """C of a layer [out, out]."""
    value = found.curvature[name]
    return value.whole if isinstance(value, Root) else value


def test_few_gradients_are_kept_and_their_products_once_there_are_more(
    net: Tiny, seen: list[tuple[Tensor, Tensor]]
) -> None:
    wide = nn.Sequential(nn.Flatten(), nn.Linear(144, 40), nn.ReLU(), nn.Linear(40, 4)).double()
    graph = pl.trace(wide, seen[0][0][:1])
    how = {"kinds": ("curvature",), "layers": ("1",), "loss": labelled}
    few, more = (pl.measure(wide, graph, seen[:1] * n, **how).curvature["1"] for n in (2, 3))
    assert isinstance(few, Root)
    assert few.rows.shape == (18, 40)
    np.testing.assert_allclose(few.whole / 2, more / 3, rtol=1e-12, atol=1e-18)


def test_it_is_the_second_moment_of_each_images_own_gradients(
    net: Tiny, seen: list[tuple[Tensor, Tensor]]
) -> None:
    found = measured(net, seen, loss=labelled).curvature
    outputs: dict[str, Tensor] = {}
    hooks = [
        net.get_submodule(name).register_forward_hook(
            lambda _m, _i, out, name=name: outputs.__setitem__(name, out)
        )
        for name in LAYERS
    ]
    want = dict.fromkeys(LAYERS, 0.0)
    for x, y in seen:
        for image, label in zip(x, y, strict=True):
            value = labelled(net, (image[None], label[None]))
            gradients = torch.autograd.grad(value, list(outputs.values()))
            for name, g in zip(LAYERS, gradients, strict=True):
                rows = g.movedim(1, -1).flatten(0, -2)
                want[name] += (rows.T @ rows).numpy()
    for hook in hooks:
        hook.remove()
    for name in LAYERS:
        np.testing.assert_allclose(found[name], want[name], rtol=1e-10, atol=1e-14)


@pytest.mark.long
def test_half_of_it_is_what_small_errors_cost(net: Tiny, seen: list[tuple[Tensor, Tensor]]) -> None:
    """KL divergence from the network's own answers, for errors without any relation to g."""
    batch = seen[0][0]
    one = [(batch, seen[0][1])]
    repeats = 400
    curvature = sum(full(measured(net, one, seed=seed), "fc") for seed in range(repeats))
    with torch.no_grad():
        logits = net(batch)
        p = logits.softmax(1)
        exact = (torch.diag(p.sum(0)) - p.T @ p).numpy()
        np.testing.assert_allclose(curvature / repeats, exact, atol=0.05 * np.abs(exact).max())
        errors = 1e-3 * torch.eye(4, dtype=torch.float64)
        for error in errors:
            log = logits.log_softmax(1) - (logits + error).log_softmax(1)
            cost = float((p * log).sum())
            assert cost == pytest.approx(float(error.numpy() @ exact @ error.numpy()) / 2, rel=0.01)


def test_the_fisher_loss_needs_no_labels_and_draws_from_its_generator(net: Tiny) -> None:
    x = torch.randn(3, 1, 12, 12, dtype=torch.float64)
    before = torch.get_rng_state()
    a, b, c = (fisher_loss(torch.Generator().manual_seed(s))(net, x).item() for s in (0, 0, 1))
    assert a == b != c
    assert torch.equal(torch.get_rng_state(), before)


def test_it_adds_up_over_batches_and_leaves_no_trace(
    net: Tiny, seen: list[tuple[Tensor, Tensor]]
) -> None:
    mark = fingerprint(net)
    for parameter in net.parameters():
        parameter.requires_grad_(False)
    graph = pl.trace(net, seen[0][0])
    how = {"kinds": ("curvature",), "layers": LAYERS, "loss": labelled}
    whole = pl.measure(net, graph, seen, **how)
    parts = pl.measure(net, graph, seen[:1], **how) + pl.measure(net, graph, seen[1:], **how)
    for name in LAYERS:
        np.testing.assert_allclose(full(parts, name), full(whole, name), rtol=1e-12, atol=1e-16)
    assert fingerprint(net) == mark
    assert not any(p.requires_grad or p.grad is not None for p in net.parameters())
    for parameter in net.parameters():
        parameter.requires_grad_(True)
    with pytest.raises(pl.StaleEvidence):
        whole + pl.measure(net, graph, seen, kinds=("patches",), layers=LAYERS)


def test_a_loss_that_is_not_differentiable_is_refused(
    net: Tiny, seen: list[tuple[Tensor, Tensor]]
) -> None:
    with pytest.raises(pl.InvalidValue, match="one number"):
        measured(net, seen, loss=lambda model, batch: model(batch[0]).detach().sum())
    with pytest.raises(pl.NotFinite, match="gradients at"):
        measured(net, seen, loss=lambda model, batch: model(batch[0]).sum() * float("nan"))


def test_of_a_wide_layer_a_root_is_kept(
    net: Tiny, seen: list[tuple[Tensor, Tensor]], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = measured(net, seen).curvature
    monkeypatch.setattr(output_fisher, "WIDE", 3)
    parts = [measured(net, [one]) for one in seen]
    root = measured(net, seen).curvature["fc"]
    assert root.rows.shape == (18, 4)
    np.testing.assert_allclose(root.rows.T @ root.rows, whole["fc"], rtol=1e-10)
    both = (parts[0] + parts[1]).curvature["fc"].rows
    assert both.shape == (18, 4)


def test_the_sketch_of_more_gradients_than_a_root_holds_is_right_on_average(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(output_fisher, "RANK", 16)
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(200, 6)) * np.arange(1, 7)
    want, found = rows.T @ rows, np.zeros((6, 6))
    for seed in range(200):
        root = np.zeros((16, 6))
        assert output_fisher._fill(root, 0, rows, np.random.default_rng(seed)) == 16
        found += root.T @ root / 200
    np.testing.assert_allclose(found, want, atol=0.05 * want.max())
