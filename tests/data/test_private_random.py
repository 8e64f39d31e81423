"""Private random numbers: equal to those after `manual_seed`, and none from global generators."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms
from torchvision.transforms import v2

from prunelab.data.private_random import private_random, privately
from prunelab.errors import BadModel

X = torch.rand(3, 4, generator=torch.Generator().manual_seed(1))
DRAWS: dict[str, Callable[[], Tensor]] = {
    "rand": lambda: torch.rand(3),
    "rand_out": lambda: torch.rand(3, out=torch.empty(3)),
    "rand_like": lambda: torch.rand_like(X),
    "randn": lambda: torch.randn(3, 2),
    "randn_like": lambda: torch.randn_like(X),
    "randint": lambda: torch.randint(9, (4,)),
    "randint_low": lambda: torch.randint(2, 9, (4,)),
    "randint_like": lambda: torch.randint_like(X, 2, 7),
    "randperm": lambda: torch.randperm(9),
    "uniform_": lambda: X.clone().uniform_(),
    "normal_": lambda: X.clone().normal_(),
    "normal": lambda: torch.normal(0.0, X),
    "random_": lambda: X.clone().random_(),
    "bernoulli": lambda: torch.bernoulli(X),
    "bernoulli_": lambda: X.clone().bernoulli_(X),
    "multinomial": lambda: torch.multinomial(X, 2),
    "exponential_": lambda: X.clone().exponential_(),
    "geometric_": lambda: X.clone().geometric_(0.5),
    "cauchy_": lambda: X.clone().cauchy_(),
    "log_normal_": lambda: X.clone().log_normal_(),
    "poisson": lambda: torch.poisson(X),
    "binomial": lambda: torch.binomial(5 * torch.ones(3, 4), X),
    "dirichlet": lambda: torch.distributions.Dirichlet(X).sample(),
    "dropout": lambda: F.dropout(X, 0.5),
    "native_dropout": lambda: torch.native_dropout(X, 0.5, True)[0],
    "dropout2d": lambda: F.dropout2d(X[None, :, :, None], 0.5),
    "alpha_dropout": lambda: F.alpha_dropout(X, 0.5, True),
    "rrelu": lambda: F.rrelu(X - 0.5, training=True),
    "fractional_max_pool2d": lambda: F.fractional_max_pool2d(X[None, None], 2, output_size=2),
    "attention": lambda: F.scaled_dot_product_attention(X[None], X[None], X[None], dropout_p=0.5),
    "lstm": lambda: nn.LSTM(4, 4, 2, dropout=0.5)(X)[0].detach(),
    "kaiming": lambda: nn.init.kaiming_normal_(torch.empty(3, 3)),
}


@pytest.mark.parametrize("mode", [nullcontext, torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("name", DRAWS)
def test_a_draw_is_that_after_manual_seed_and_leaves_the_global_generator(
    name: str, mode: Callable[[], AbstractContextManager[None]]
) -> None:
    state = torch.get_rng_state()
    with mode(), private_random(3):
        private = DRAWS[name]()
    assert torch.equal(torch.get_rng_state(), state)
    with mode():
        torch.manual_seed(3)
        assert torch.equal(DRAWS[name](), private)


def test_an_operation_that_is_given_a_generator_keeps_it() -> None:
    def drawn() -> Tensor:
        generator = torch.Generator().manual_seed(8)
        return torch.rand(3, generator=generator) + torch.poisson(X[0, :3], generator)

    with private_random(3):
        private = drawn()
        assert torch.equal(torch.rand(2), torch.rand(2, generator=torch.Generator().manual_seed(3)))
    assert torch.equal(drawn(), private)


def test_dropout_has_the_gradient_of_its_mask() -> None:
    for dropped in (F.dropout, lambda x, p: torch.native_dropout(x, p, True)[0]):
        x = torch.ones(64, requires_grad=True)
        with private_random():
            y = dropped(x, 0.25)
        y.sum().backward()
        assert torch.equal(x.grad, y.detach()) and 0 < int((y == 0).sum()) < 64  # type: ignore[operator,arg-type]


def test_draws_go_on_inside_and_begin_anew_at_each_call() -> None:
    with private_random(3):
        first = torch.rand(2)
        with private_random(3):
            assert torch.equal(torch.rand(2), first)
        assert not torch.equal(torch.rand(2), first)


def test_steps_draw_privately_and_what_comes_between_them_does_not() -> None:
    def steps() -> Iterator[Tensor]:
        for _ in range(3):
            yield torch.rand(2)

    torch.manual_seed(0)
    private, between = [], []
    for item in privately((item for item in steps()), 3):
        private.append(item)
        between.append(torch.rand(2))
    torch.manual_seed(0)
    assert torch.equal(torch.stack(between), torch.stack(list(steps())))
    torch.manual_seed(3)
    assert torch.equal(torch.stack(private), torch.stack(list(steps())))


def test_activations_that_are_computed_anew_in_the_backward_pass_cannot_be_random() -> None:
    x = torch.ones(8, requires_grad=True)
    with private_random():
        value = checkpoint(lambda x: F.dropout(x, 0.5), x, use_reentrant=False).sum()
        with pytest.raises(BadModel, match="checkpointing off"):
            value.backward()


class Augmented(Dataset[Tensor]):
    """Sixteen images, augmented at random."""

    def __init__(self, augment: Callable[[Tensor], Tensor]) -> None:
        generator = torch.Generator().manual_seed(0)
        self.images = torch.randint(256, (16, 3, 20, 20), dtype=torch.uint8, generator=generator)
        self.augment = augment

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        return self.augment(self.images[index])


AUGMENTATIONS = {
    "v1": transforms.Compose(
        [
            transforms.ToPILImage(),
            transforms.RandomResizedCrop(12),
            transforms.RandomHorizontalFlip(),
            transforms.ColorJitter(0.2, 0.2, 0.2),
            transforms.RandAugment(),
            transforms.ToTensor(),
            transforms.RandomErasing(),
        ]
    ),
    "v2": v2.Compose(
        [
            v2.RandomResizedCrop(12, antialias=True),
            v2.RandomHorizontalFlip(),
            v2.ColorJitter(0.2, 0.2, 0.2),
            v2.ToDtype(torch.float32, scale=True),
            v2.GaussianNoise(),
        ]
    ),
}


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("version", AUGMENTATIONS)
def test_a_loader_gives_the_same_augmented_images_at_each_call(version: str, workers: int) -> None:
    loader = DataLoader(
        Augmented(AUGMENTATIONS[version]), 4, shuffle=True, num_workers=workers,
        multiprocessing_context="fork" if workers else None,
    )  # fmt: skip
    state = torch.get_rng_state()
    private = []
    for _ in range(2):
        with private_random(3):
            private.append(torch.cat(list(loader)))
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(3)
    expected = torch.cat(list(loader))
    assert torch.equal(private[0], expected) and torch.equal(private[1], expected)


@pytest.mark.filterwarnings("ignore:.torch.jit")
def test_a_scripted_network_draws_privately() -> None:
    network = torch.jit.script(nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5)))
    state = torch.get_rng_state()
    with private_random(3):
        private = network(X)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(3)
    assert torch.equal(network(X), private)


def test_a_compiled_network_draws_privately() -> None:
    network = torch.compile(nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5)), backend="aot_eager")
    network(X)
    state = torch.get_rng_state()
    private = []
    for _ in range(2):
        with private_random(3):
            private.append(network(X))
    assert torch.equal(*private) and torch.equal(torch.get_rng_state(), state)
