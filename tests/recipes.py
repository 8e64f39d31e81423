"""Small networks from a recipe: a list of blocks with known couplings.

A recipe is plain data, so a failing one can be printed, shrunk and typed in again:
`Network(Recipe((Block("residual", 8), Block("shuffle", 4)), head="linear"))`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SIDE = 8  # inputs are [N, 3, SIDE, SIDE]


@dataclass(frozen=True)
class Block:
    """A block by its `kind`, a key of BLOCKS; `width` is what it widens or narrows to."""

    kind: str
    width: int


@dataclass(frozen=True)
class Recipe:
    """Blocks in order, what ends them (a key of HEADS), the norm, and how many inputs there are."""

    blocks: tuple[Block, ...]
    head: str = "pooled"
    norm: str = "batch"
    inputs: int = 1


def conv(into: int, out: int, size: int = 3, **more: Any) -> nn.Conv2d:
    return nn.Conv2d(into, out, size, padding=size // 2, **more)


class Norm(nn.Sequential):
    """A normalisation of its kind, whose numbers are not those of a fresh one."""

    def __init__(self, width: int, kind: str) -> None:
        if kind == "batch":
            made = nn.BatchNorm2d(width)
            nn.init.uniform_(made.running_mean, -1, 1)
            nn.init.uniform_(made.running_var, 0.5, 2)
        elif kind == "group":
            made = nn.GroupNorm(2, width)
        else:
            made = nn.Identity()
        for parameter in made.parameters():
            nn.init.uniform_(parameter, 0.5, 1.5)
        super().__init__(made)


class Layer(nn.Module):
    """One block, as its `build` makes it: takes [N, into, H, W], gives [N, self.out, H, W]."""

    def __init__(self, into: int, width: int, norm: str) -> None:
        super().__init__()
        self.out = width
        self.build(into, width, norm)


class Plain(Layer):
    def build(self, into: int, width: int, norm: str) -> None:
        self.conv, self.norm = conv(into, width, bias=norm != "batch"), Norm(width, norm)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.norm(self.conv(x)))


class Residual(Layer):
    """The stream is added to; nothing else is as wide as it."""

    def build(self, into: int, width: int, norm: str) -> None:
        self.out = into
        self.a, self.norm_a = conv(into, width), Norm(width, norm)
        self.b, self.norm_b = conv(width, into), Norm(into, norm)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.norm_b(self.b(F.relu(self.norm_a(self.a(x))))))


class Projected(Layer):
    """A residual block that changes the width: the shortcut is a 1x1 convolution."""

    def build(self, into: int, width: int, norm: str) -> None:
        self.a, self.norm = conv(into, width), Norm(width, norm)
        self.b, self.shortcut = conv(width, width), conv(into, width, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.b(F.relu(self.norm(self.a(x))))
        y += self.shortcut(x)
        return F.relu(y)


class Dense(Layer):
    """New channels stand beside the old ones."""

    def build(self, into: int, width: int, norm: str) -> None:
        self.out = into + width
        self.norm, self.conv = Norm(into, norm), conv(into, width)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.conv(F.relu(self.norm(x)))], 1)


class Branches(Layer):
    def build(self, into: int, width: int, norm: str) -> None:
        self.out = width + 4
        self.a, self.b = conv(into, width, 1), conv(into, 4)
        self.norm = Norm(width + 4, norm)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.norm(torch.cat([self.a(x), self.b(F.max_pool2d(x, 3, 1, 1))], 1)))


class Depthwise(Layer):
    def build(self, into: int, width: int, norm: str) -> None:
        self.out = into
        self.conv, self.norm = conv(into, into, groups=into), Norm(into, norm)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu6(self.norm(self.conv(x)))


class Multiplied(Layer):
    """A depth-wise convolution that makes two channels of each."""

    def build(self, into: int, width: int, norm: str) -> None:
        self.out = 2 * into
        self.conv, self.back = conv(into, 2 * into, groups=into), conv(2 * into, 2 * into, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.back(F.relu(self.conv(x)))


class Grouped(Layer):
    def build(self, into: int, width: int, norm: str) -> None:
        self.conv, self.norm = conv(into, width, groups=2), Norm(width, norm)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.norm(self.conv(x)))


class Inverted(Layer):
    """MobileNet's: expand, depth-wise, gate, project, add."""

    def build(self, into: int, width: int, norm: str) -> None:
        self.out, wide = into, 2 * width
        self.expand, self.norm = conv(into, wide, 1), Norm(wide, norm)
        self.depthwise, self.gate = conv(wide, wide, groups=wide), Gate(wide, width, norm)
        self.project = conv(wide, into, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.depthwise(F.hardswish(self.norm(self.expand(x))))
        return x + self.project(self.gate(y))


class Gate(Layer):
    """Squeeze and excitation, by 1x1 convolutions."""

    def build(self, into: int, width: int, norm: str) -> None:
        self.out = into
        self.squeeze, self.excite = conv(into, width, 1), conv(width, into, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.excite(F.relu(self.squeeze(F.adaptive_avg_pool2d(x, 1)))))


class LinearGate(Layer):
    """Squeeze and excitation, by linear layers."""

    def build(self, into: int, width: int, norm: str) -> None:
        self.out = into
        self.squeeze, self.excite = nn.Linear(into, width), nn.Linear(width, into)

    def forward(self, x: Tensor) -> Tensor:
        scale = self.excite(F.relu(self.squeeze(x.mean((2, 3)))))
        return x * torch.sigmoid(scale)[:, :, None, None]


class Scaled(Layer):
    """A learnt factor per channel, and a bias that is a parameter of its own."""

    def build(self, into: int, width: int, norm: str) -> None:
        self.out = into
        self.gamma = nn.Parameter(torch.rand(into, 1, 1) + 0.5)
        self.beta = nn.Parameter(torch.rand(1, into, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(x * self.gamma + self.beta)


class Functional(Layer):
    """A convolution without a module, and a PReLU with a slope per channel."""

    def build(self, into: int, width: int, norm: str) -> None:
        self.weight = nn.Parameter(torch.randn(width, into, 3, 3) / into)
        self.bias, self.act = nn.Parameter(torch.randn(width)), nn.PReLU(width)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(F.conv2d(x, self.weight, self.bias, padding=1))


class Shared(Layer):
    """One convolution, and one norm, run twice."""

    def build(self, into: int, width: int, norm: str) -> None:
        self.first, self.again, self.norm = conv(into, width), conv(width, width), Norm(width, norm)

    def forward(self, x: Tensor) -> Tensor:
        return self.again(F.relu(self.norm(self.again(F.relu(self.norm(self.first(x)))))))


class Siblings(Layer):
    """Two branches go through one convolution; the two results stand side by side."""

    def build(self, into: int, width: int, norm: str) -> None:
        self.out = 2 * width
        self.a, self.b, self.shared = conv(into, 4), conv(into, 4, 1), conv(4, width)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.shared(F.relu(self.a(x))), self.shared(F.relu(self.b(x)))], 1)


class Transposed(Layer):
    def build(self, into: int, width: int, norm: str) -> None:
        self.up, self.norm = nn.ConvTranspose2d(into, width, 2, stride=2), Norm(width, norm)

    def forward(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(F.relu(self.norm(self.up(x))), 2)


class TransposedGrouped(Layer):
    def build(self, into: int, width: int, norm: str) -> None:
        self.up = nn.ConvTranspose2d(into, width, 2, stride=2, groups=2)

    def forward(self, x: Tensor) -> Tensor:
        return F.max_pool2d(F.leaky_relu(self.up(x)), 2)


class Pyramid(Layer):
    """A level above is resized and added, as in a feature pyramid."""

    def build(self, into: int, width: int, norm: str) -> None:
        self.down, self.top = conv(into, 2 * width, stride=2), conv(2 * width, width, 1)
        self.side, self.smooth = conv(into, width, 1), conv(width, width)

    def forward(self, x: Tensor) -> Tensor:
        top = self.top(F.relu(self.down(x)))
        return self.smooth(F.interpolate(top, size=x.shape[2:], mode="nearest") + self.side(x))


class PixelShuffled(Layer):
    """Four channels become four pixels of one."""

    def build(self, into: int, width: int, norm: str) -> None:
        self.wide, self.back = conv(into, 4 * width), conv(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(self.back(F.pixel_shuffle(self.wide(x), 2)), 2)


def shuffle(x: Tensor) -> Tensor:
    """Channels of two halves in turns."""
    n, _, h, w = x.shape
    return x.view(n, 2, -1, h, w).transpose(1, 2).reshape(n, -1, h, w)


class Shuffled(Layer):
    """ShuffleNet's second version: two branches are dealt out in turns."""

    def build(self, into: int, width: int, norm: str) -> None:
        self.out = 2 * width
        self.a, self.b, self.norm = conv(into, width), conv(into, width, 1), Norm(width, norm)

    def forward(self, x: Tensor) -> Tensor:
        return shuffle(torch.cat([F.relu(self.norm(self.a(x))), self.b(x)], 1))


class ShuffledGrouped(Layer):
    """ShuffleNet's first version: channels are dealt out between two grouped convolutions."""

    def build(self, into: int, width: int, norm: str) -> None:
        self.a, self.b = conv(into, width, 1, groups=2), conv(width, width, groups=2)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.b(shuffle(self.a(x))))


class Chunked(Layer):
    """One half goes through a convolution, the other around it."""

    def build(self, into: int, width: int, norm: str) -> None:
        self.wide, self.conv = conv(into, width), conv(width // 2, width // 2)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.wide(x).chunk(2, 1)
        return torch.cat([a, F.relu(self.conv(b))], 1)


class Gated(Layer):
    """One half gates the other."""

    def build(self, into: int, width: int, norm: str) -> None:
        self.wide = conv(into, 2 * width)

    def forward(self, x: Tensor) -> Tensor:
        return F.glu(self.wide(x), 1)


class Sliced(Layer):
    """Forward code that knows how many channels there are."""

    def build(self, into: int, width: int, norm: str) -> None:
        self.out, self.half = width, width // 2
        self.wide, self.conv = conv(into, width), conv(width // 2, width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.wide(x)
        return self.conv(x[:, : self.half] * x[:, self.half :])


class Repeated(Layer):
    """The same channels twice, side by side."""

    def build(self, into: int, width: int, norm: str) -> None:
        self.conv = conv(2 * into, width)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.conv(torch.cat([x, -x], 1)))


class Pooled(Layer):
    """No layer of its own: pooling there and back, and dropout."""

    def build(self, into: int, width: int, norm: str) -> None:
        self.out, self.drop = into, nn.Dropout2d(0.1)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(F.interpolate(F.avg_pool2d(x, 3, 2, 1), size=x.shape[2:]))


BLOCKS: dict[str, type[Layer]] = {
    "plain": Plain, "residual": Residual, "projected": Projected, "dense": Dense,
    "branches": Branches, "depthwise": Depthwise, "multiplied": Multiplied, "grouped": Grouped,
    "inverted": Inverted, "gate": Gate, "linear gate": LinearGate, "scaled": Scaled,
    "functional": Functional, "shared": Shared, "siblings": Siblings, "transposed": Transposed,
    "transposed grouped": TransposedGrouped, "pyramid": Pyramid, "pixel shuffle": PixelShuffled,
    "shuffled": Shuffled, "shuffled grouped": ShuffledGrouped, "chunked": Chunked,
    "gated": Gated, "sliced": Sliced, "repeated": Repeated, "pooled": Pooled,
}  # fmt: skip
HEADS = ("pooled", "linear", "two linear", "map", "several")


class Network(nn.Module):
    """The network that `recipe` describes."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        self.recipe = recipe
        width = recipe.blocks[0].width
        self.stems = nn.ModuleList(conv(3, width) for _ in range(recipe.inputs))
        self.blocks = nn.ModuleList()
        for block in recipe.blocks:
            layer = BLOCKS[block.kind](width, block.width, recipe.norm)
            self.blocks.append(layer)
            width = layer.out
        self.hidden, self.head = nn.Identity(), nn.Linear(width, 3)
        if recipe.head == "linear":
            self.head = nn.Linear(width * 4, 3)
        elif recipe.head == "two linear":
            self.hidden, self.head = nn.Linear(width * 4, 6), nn.Linear(6, 3)
        elif recipe.head in ("map", "several"):
            self.head = conv(width, 2, 1)
        self.side = nn.Linear(width, 2) if recipe.head == "several" else nn.Identity()

    def forward(self, *inputs: Tensor) -> Any:
        x = sum(stem(x) for stem, x in zip(self.stems, inputs, strict=True))
        for block in self.blocks:
            x = block(x)
        if self.recipe.head == "map":
            return self.head(x)
        if self.recipe.head == "several":
            return {"map": self.head(x), "class": [self.side(x.mean((2, 3)))]}
        if self.recipe.head == "pooled":
            return self.head(x.mean((2, 3)))
        return self.head(F.relu(self.hidden(F.adaptive_avg_pool2d(x, 2).flatten(1))))


def build(recipe: Recipe, seed: int = 0) -> tuple[Network, tuple[Tensor, ...]]:
    """The network in evaluation mode and in float64, and inputs for it; both follow from `seed`."""
    torch.manual_seed(seed)
    model = Network(recipe).eval().double()
    inputs = tuple(torch.randn(2, 3, SIDE, SIDE, dtype=torch.float64) for _ in range(recipe.inputs))
    return model, inputs
