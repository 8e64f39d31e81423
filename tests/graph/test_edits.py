"""Widths that code holds as integers: attributes are rewritten, each tried out, or it stays."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from toys import assert_exact, conv

import prunelab as pl

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
WIDE = 24


class Sizes(nn.Module):
    """Sizes of a split, unequal, as InceptionNeXt and MixNet keep them."""

    def __init__(self, sizes: tuple[int, ...] = (6, 6, 12)) -> None:
        super().__init__()
        self.sizes = sizes
        self.before, self.after = conv(WIDE, WIDE, 1), conv(WIDE, WIDE, 1)
        self.square, self.row = conv(6, 6, groups=6), nn.Conv2d(6, 6, (1, 3), padding=(0, 1))

    def forward(self, x: Tensor) -> Tensor:
        a, b, c = torch.split(self.before(x), self.sizes, 1)
        return self.after(torch.cat([self.square(a), self.row(b), c], 1).relu())


class Partial(nn.Module):
    """A convolution of the first channels, as FasterNet has it."""

    def __init__(self) -> None:
        super().__init__()
        self.part, self.rest = 9, WIDE - 9
        self.before, self.inner, self.after = conv(WIDE, WIDE, 1), conv(9, 9), conv(WIDE, WIDE, 1)

    def forward(self, x: Tensor) -> Tensor:
        first, rest = torch.split(self.before(x), [self.part, self.rest], 1)
        return self.after(torch.cat([self.inner(first), rest], 1).relu())


class Untouched(nn.Module):
    """The same of the stream itself, of which no parameter here has the rest."""

    def __init__(self) -> None:
        super().__init__()
        self.part, self.rest = 9, WIDE - 9
        self.inner = conv(9, 9)

    def forward(self, x: Tensor) -> Tensor:
        first, rest = torch.split(x, [self.part, self.rest], 1)
        return torch.cat([self.inner(first), rest], 1).relu()


class Cached(nn.Module):
    """A value of an attention, with a table that is made once, as LeViT has it."""

    def __init__(self) -> None:
        super().__init__()
        self.key_dim, self.value_dim, self.table = 6, 12, {}
        self.qkv, self.after = conv(WIDE, WIDE, 1), conv(12, WIDE, 1)

    def forward(self, x: Tensor) -> Tensor:
        sizes = [self.key_dim, self.key_dim, self.value_dim]
        q, k, v = self.qkv(x).flatten(2).split(sizes, 1)
        scale = self.table.setdefault("scale", torch.ones(1, dtype=x.dtype))
        scores = (q.transpose(1, 2) @ k * scale.to(x)).softmax(-1)
        return self.after((v @ scores).view(len(x), self.value_dim, 8, 8))


class Behind(nn.Module):
    """Two paths behind one convolution, by slices, as DPN has them."""

    def __init__(self) -> None:
        super().__init__()
        self.inside = 10
        self.before, self.left, self.right = conv(WIDE, WIDE, 1), conv(10, WIDE), conv(14, WIDE)

    def forward(self, x: Tensor) -> Tensor:
        x = self.before(x).relu()
        return self.left(x[:, : self.inside]) + self.right(x[:, self.inside :])


class Heads(nn.Module):
    """Channels viewed as heads, and joined again."""

    def __init__(self) -> None:
        super().__init__()
        self.dim, self.heads, self.head_dim = WIDE, 4, 6
        self.value, self.after = conv(WIDE, WIDE, 1), conv(WIDE, WIDE, 1)

    def forward(self, x: Tensor) -> Tensor:
        n, _, h, w = x.shape
        values = self.value(x).view(n, self.heads, self.head_dim, h * w).softmax(-1)
        return self.after(values.reshape(n, self.dim, h, w))


class Equal(nn.Module):
    """Parts of one width, convolved one after another, as Res2Net has them."""

    def __init__(self) -> None:
        super().__init__()
        self.width = 8
        self.before, self.after = conv(WIDE, WIDE, 1), conv(WIDE, WIDE, 1)
        self.convs = nn.ModuleList([conv(8, 8), conv(8, 8)])

    def forward(self, x: Tensor) -> Tensor:
        parts = torch.split(self.before(x).relu(), self.width, 1)
        done = [parts[0]]
        for layer, part in zip(self.convs, parts[1:], strict=True):
            done.append(layer(part + done[-1]).relu())
        return self.after(torch.cat(done, 1))


class Own(nn.Module):
    """A depth-wise convolution written out, which holds its number of groups."""

    def __init__(self) -> None:
        super().__init__()
        self.channels = WIDE
        self.before, self.after = conv(WIDE, WIDE, 1), conv(WIDE, WIDE, 1)
        self.filters = nn.Parameter(torch.rand(WIDE, 1, 3, 3))

    def forward(self, x: Tensor) -> Tensor:
        x = F.conv2d(self.before(x), self.filters, padding=1, groups=self.channels)
        return self.after(x.relu())


class Alike(nn.Module):
    """Two paths of one width, each with an attribute, and a third that means something else."""

    def __init__(self) -> None:
        super().__init__()
        self.a_width = self.b_width = self.power = 6
        self.a, self.b, self.after = conv(WIDE, 6, 1), conv(WIDE, 6, 1), conv(12, WIDE, 1)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.a(x).view(len(x), self.a_width, -1), self.b(x).view(len(x), self.b_width, -1)
        x = torch.cat([a, b], 1).tanh() ** self.power
        return self.after(x.view(len(x), -1, 8, 8))


class Literal(nn.Module):
    """A width in the code, equal to an attribute that means something else."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel = 9
        self.before, self.after = conv(WIDE, WIDE, 1), conv(9, WIDE, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.before(x)[:, :9])


class Factor(nn.Module):
    """A width by which the code multiplies, too."""

    def __init__(self) -> None:
        super().__init__()
        self.width = 9
        self.before, self.after = conv(WIDE, 9, 1), conv(9, WIDE, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.before(x).view(len(x), self.width, -1) / self.width
        return self.after(x.tanh().view(len(x), -1, 8, 8))


class Shared(nn.Module):
    """One attribute for two widths that are not coupled."""

    def __init__(self) -> None:
        super().__init__()
        self.width = 9
        self.a, self.b, self.after = conv(WIDE, 9, 1), conv(WIDE, 9, 1), conv(9, WIDE, 1)
        self.other = conv(9, WIDE, 1)

    def forward(self, x: Tensor) -> Tensor:
        a, b = (m(x).view(len(x), self.width, 8, 8).relu() for m in (self.a, self.b))
        return self.after(a) + self.other(b)


class Scaled(Factor):
    """A width from which the code computes a scale."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.before(x).view(len(x), self.width, 8, 8) * self.width**-0.5
        return self.after(x)


class Size(Factor):
    """A width that is a size of images, too."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.before(x).view(len(x), self.width, 8, 8)
        return F.interpolate(self.after(F.interpolate(x, size=(self.width, self.width))), size=8)


class AtLeast(Factor):
    """A width that the code bounds from below."""

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.before(x).view(len(x), max(self.width, 4), 8, 8).relu())


class Offsets(Factor):
    """Sums of widths, where parts begin."""

    def __init__(self) -> None:
        super().__init__()
        self.at = [0, 2, 5, 9]

    def forward(self, x: Tensor) -> Tensor:
        x = self.before(x)
        parts = [x[:, a:b] for a, b in zip(self.at, self.at[1:], strict=False)]
        return self.after(torch.cat(parts[::-1], 1).relu())


class Net(nn.Module):
    """Blocks in a row, each added to its input."""

    def __init__(self, *blocks: nn.Module) -> None:
        super().__init__()
        self.stem, self.blocks, self.fc = conv(3, WIDE), nn.Sequential(*blocks), nn.Linear(WIDE, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = x + block(x)
        return self.fc(x.mean((2, 3)))


HELD: dict[str, tuple[Callable[[], nn.Module], set[str], int]] = {
    "sizes of a split": (Sizes, {"sizes[0]", "sizes[1]", "sizes[2]"}, 4),
    "a partial convolution": (Partial, {"part", "rest"}, 3),
    "a part of the stream": (Untouched, {"part", "rest"}, 0),
    "values of an attention with a table": (Cached, {"value_dim"}, 1),
    "paths behind one convolution": (Behind, {"inside"}, 2),
    "heads": (Heads, {"dim", "head_dim"}, 1),
    "equal parts": (Equal, {"width"}, 2),
    "a number of groups": (Own, {"channels"}, 1),
    "sums of widths": (Offsets, {"at[1]", "at[2]"}, 3),
    "two of one width": (Alike, {"a_width", "b_width"}, 2),
}
STAYS = {
    "a width in the code": (Literal, "fixed numbers"),
    "a width as a number": (Factor, "hard-codes"),
    "one attribute for two widths": (Shared, "hard-codes"),
    "a width for a scale": (Scaled, "hard-codes"),
    "a width that is a size": (Size, "as a number"),
    "a width with a bound": (AtLeast, "hard-codes"),
}


@pytest.mark.parametrize("name", HELD)
def test_attributes_that_hold_a_width_are_rewritten(name: str) -> None:
    block, attributes, free = HELD[name]
    model = Net(block(), block()).eval()
    own = copy.deepcopy({key: vars(module) for key, module in model.named_modules()})
    before, graph = pl.trace(model, X), pl.trace(model, X, edit=True)
    assert {g.name for g in before if g.prunable} < {g.name for g in graph if g.prunable} | {"stem"}
    assert {*graph.edits} == {f"blocks.{i}.{key}" for i in (0, 1) for key in attributes}
    inside = [g for g in graph if g.prunable and g.name.startswith("blocks")]
    assert len(inside) == 2 * free
    assert_exact(model, graph, X, seeds=8)
    fewest = {g.name: range(1, g.width) for g in graph if g.prunable}
    small = pl.cut(model, graph, pl.WidthPlan.full(graph).drop(fewest))
    assert small.train()(X.to(model.fc.weight)).shape == (2, 4)
    for key, module in model.named_modules():
        for attribute, value in vars(module).items():
            if isinstance(value, int | tuple | list):
                assert value == own[key][attribute]


@pytest.mark.parametrize("name", STAYS)
def test_a_width_that_no_attribute_holds_alone_stays(name: str) -> None:
    block, why = STAYS[name]
    model = Net(block(), Equal()).eval()
    graph = pl.trace(model, X, edit=True)
    assert {*graph.edits} == {"blocks.1.width"}, "the neighbour's is found all the same"
    made = [g for g in graph if g.name.startswith("blocks.0")]
    assert any(why in g.why for g in made)
    assert_exact(model, graph, X, seeds=8)


class Prefix(nn.Module):
    """Adds to as many channels as another layer has."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.more, self.after = conv(WIDE, 14), conv(WIDE, 9), conv(14, WIDE)

    def forward(self, x: Tensor) -> Tensor:
        out, more = self.before(x).clone(), self.more(x)
        out[:, : more.shape[1]] += more
        return self.after(out.relu())


def test_a_part_as_wide_as_a_layer_needs_no_attribute() -> None:
    model = Net(Prefix())
    assert not pl.trace(model, X)["blocks.0.before"].prunable
    graph = pl.trace(model, X, edit=True)
    assert not graph.edits
    assert graph["blocks.0.before"] is graph["blocks.0.more"]
    assert [g.width for g in graph if g.name.startswith("blocks") and g.prunable] == [9, 5]
    assert_exact(model, graph, X, seeds=8)


def test_the_table_names_what_is_rewritten() -> None:
    graph = pl.trace(Net(Heads()), X, edit=True)
    assert "a cut rewrites 2 attributes: blocks.0.dim, blocks.0.head_dim" in str(graph)
    assert "a cut rewrites" in graph._repr_html_()


def test_rewritten_attributes_follow_later_cuts_and_plans_in_json() -> None:
    model = Net(Sizes()).eval()
    graph = pl.trace(model, X, edit=True)
    first = pl.WidthPlan.full(graph).drop({"blocks.0.before": [0, 5], "stem": [3]})
    then = first.drop({"blocks.0.before": [2], "blocks.0.before#3": [4, 5, 6]})
    small = pl.cut(model, graph, first)
    again = pl.cut(small, graph.after(first), then)
    whole = pl.rebuild(model, pl.WidthPlan.from_json(then.to_json(), graph))
    assert small.blocks[0].sizes == (4, 6, 12)
    assert again.blocks[0].sizes == whole.blocks[0].sizes == (3, 6, 9)
    assert model.blocks[0].sizes == (6, 6, 12)
    torch.testing.assert_close(again(X), whole(X))


def test_a_widened_network_has_wider_attributes() -> None:
    model = Net(Equal()).eval()
    wide = pl.widened(model, pl.trace(model, X, edit=True), 1.5)
    assert wide.blocks[0].width == 12
    assert wide(X).shape == (2, 4)


def test_an_export_rewrites_them_again_and_says_so(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Net(Heads(), Partial())
    batches = [(torch.randn(8, 3, 8, 8), torch.arange(8) % 4) for _ in range(2)]
    graph = pl.trace(model, X, edit=True)
    session = pl.Session(model, pl.Data(batches, batches), graph=graph)
    session.propose(drop={"blocks.0.value": [0, 3], "blocks.1.before": [1]})
    session.approve()
    path = session.export(tmp_path / "net.safetensors")
    loaded = pl.load_pruned(lambda: Net(Heads(), Partial()), path)
    heads, partial = loaded.blocks
    assert (heads.dim, heads.head_dim, partial.part, partial.rest) == (16, 4, 8, 15)
    torch.testing.assert_close(loaded(X), session.model.eval()(X))
    card = json.loads(path.with_suffix(".card.json").read_text())
    assert card["rewritten"] == {
        "blocks.0.dim": 16, "blocks.0.head_dim": 4, "blocks.1.part": 8, "blocks.1.rest": 15,
    }  # fmt: skip
    session.export(tmp_path / "folder")
    assert "`blocks.0.head_dim` to 4" in (tmp_path / "folder" / "README.md").read_text()


def test_a_file_for_a_network_without_the_attribute_is_refused(tmp_path: Path) -> None:
    class Renamed(Heads):
        def __init__(self) -> None:
            super().__init__()
            self.per_head = self.__dict__.pop("head_dim")

    model = Net(Heads())
    batches = [(torch.randn(8, 3, 8, 8), torch.arange(8) % 4) for _ in range(2)]
    graph = pl.trace(model, X, edit=True)
    session = pl.Session(model, pl.Data(batches, batches), graph=graph)
    session.propose(drop={"blocks.0.value": [0]})
    session.approve()
    path = session.export(tmp_path / "net.safetensors")
    with pytest.raises(pl.BadModel, match=r"rewrites blocks\.0\.head_dim"):
        pl.load_pruned(lambda: Net(Renamed()), path)
