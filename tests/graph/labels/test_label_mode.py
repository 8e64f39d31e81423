"""One small network per mechanism: couplings, frozen channels with reasons, exact cuts.

Every network is cut at several random plans and compared, in float64, with the masked one; then
it runs in training mode.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations
from toys import Net, Toy, ab, assert_exact, conv

import prunelab as pl


def shuffle(x: Tensor, groups: int) -> Tensor:
    n, c, h, w = x.shape
    return x.view(n, groups, c // groups, h, w).transpose(1, 2).reshape(n, c, h, w)


def write_halves(net: Any, x: Tensor) -> Tensor:
    first, second = net.c(x), net.d(x)
    out = x.new_zeros(x.shape[0], first.shape[1] + second.shape[1], *x.shape[2:])
    out[:, : first.shape[1]] = first
    out[:, first.shape[1] :] = second
    return net.b(out)


def written(mask: Tensor) -> Tensor:
    mask[3:5] = 0.5
    return mask


def attention(net: Any, x: Tensor) -> Tensor:
    x = net.a(x).flatten(2).transpose(1, 2)
    q, k, v = (net.qkv(x).view(x.shape[0], -1, 3, 2, 4).permute(2, 0, 3, 1, 4)).unbind(0)
    x = (q @ k.transpose(-2, -1)).softmax(-1) @ v
    return net.b(x.transpose(1, 2).flatten(2))


def patches(net: Any, x: Tensor) -> Tensor:
    x = F.unfold(net.a(x), 3, padding=1)
    return net.b(x.transpose(1, 2))


def detokenised(net: Any, x: Tensor) -> Tensor:
    x = net.norm(net.a(x).permute(0, 2, 3, 1))
    return net.b(net.c(x).relu())


def unpooled(net: Any, x: Tensor) -> Tensor:
    pooled, indices = F.max_pool2d(net.a(x), 2, return_indices=True)
    return net.b(F.max_unpool2d(net.c(pooled), indices, 2))


def strongest(net: Any, x: Tensor) -> Tensor:
    x, other = net.a(x).flatten(2), net.c(x).flatten(2)
    return net.b(other.gather(2, x.topk(9, 2).indices).unflatten(2, (3, 3)))


def best_first(net: Any, x: Tensor) -> Tensor:
    x, other = net.a(x).flatten(2), net.c(x).flatten(2)
    return net.b(other.take_along_dim(x.argsort(2), 2).unflatten(2, (8, 8)))


def chosen_tokens(net: Any, x: Tensor) -> Tensor:
    x = net.a(x).flatten(2).transpose(1, 2)
    first = x[..., :3].detach().mul(0).add(torch.arange(3.0)).long()[:, :9, :1]
    return net.b(x.gather(1, first.expand(-1, -1, x.shape[2])).transpose(1, 2).unflatten(2, (3, 3)))


def peaks(net: Any, x: Tensor) -> Tensor:
    x = net.a(x)
    flat = x.flatten(2)
    marks = torch.zeros_like(flat).scatter_(2, flat.argmax(2, keepdim=True), 1.0)
    return net.b(net.c(x) * marks.view_as(x))


def looked_up(net: Any, x: Tensor) -> Tensor:
    return net.b(net.table(net.a(x).flatten(2).argmax(2)).transpose(1, 2)[..., None])


def cost_volume(net: Any, x: Tensor) -> Tensor:
    left, right = net.a(x), net.a(x.flip(3))
    n, c, h, w = left.shape
    volume = left.new_zeros(n, 2 * c, 3, h, w)
    for shift in range(3):
        volume[:, :c, shift, :, shift:] = left[..., shift:]
        volume[:, c:, shift, :, shift:] = right[..., : w - shift]
    return net.b(volume)


def in_steps(net: Any, x: Tensor) -> Tensor:
    x = net.a(x)
    wide = x.new_zeros(*x.shape[:2], 2 * x.shape[2], 2 * x.shape[3])
    wide[:, :, ::2, ::2] = x
    wide[:, :, 1::2, 1::2] = -x
    return net.b(wide.relu())


def tokens(net: Any, x: Tensor) -> Tensor:
    x = net.a(x).flatten(2).transpose(1, 2)
    hidden = (torch.arange(x.shape[1]) % 3 == 0).to(x)[None, :, None]
    x = torch.cat([net.first.expand(x.shape[0], -1, -1), x * (1 - hidden) + net.mask * hidden], 1)
    return net.b(x[:, 1:].transpose(1, 2).unflatten(2, (8, 8)))


def conditioned(net: Any, x: Tensor) -> Tensor:
    scale, shift = net.table(torch.arange(x.shape[0]))[..., None, None].chunk(2, 1)
    return net.b(net.n(net.a(x)) * (1 + scale) + shift)


def involution(net: Any, x: Tensor) -> Tensor:
    x = net.a(x)
    n, c, h, w = x.shape
    windows = F.unfold(x, 3, padding=1).view(n, c, 9, h, w)
    return net.b((windows * net.k(x).view(n, 1, 9, h, w)).sum(2))


def spectrum(net: Any, x: Tensor) -> Tensor:
    x = net.a(x)
    waves = torch.fft.rfft2(x)
    waves = net.c(torch.cat([waves.real, waves.imag], 1))
    return net.b(torch.fft.irfft2(torch.complex(*waves.chunk(2, 1)), s=x.shape[-2:]))


def windows(net: Any, x: Tensor) -> Tensor:
    x = net.a(x).contiguous()
    (n, c, h, w), (a, b, d, e) = x.shape, x.stride()
    return net.b(x.as_strided((n, c, h - 2, w - 2, 3, 3), (a, b, d, e, d, e)).amax((-2, -1)))


def windows_of_a_part(net: Any, x: Tensor) -> Tensor:
    x = net.a(x).to(memory_format=torch.channels_last)[..., 1:]
    (n, c, h, w), (a, b, d, e) = x.shape, x.stride()
    return net.b(x.as_strided((n, c, h, w - 2, 3), (a, b, d, e, e)).amax(-1))


def written_by_strides(net: Any, x: Tensor) -> Tensor:
    x = net.a(x).to(memory_format=torch.channels_last)
    (n, c, h, w), (a, b, d, e) = x.shape, x.stride()
    x.as_strided((n, c, h, w), (a, b, d, e))[:, : c // 2] = net.c(x)
    return net.b(x)


def masked_tokens(net: Any, x: Tensor) -> Tensor:
    x = net.a(x).flatten(2).transpose(1, 2)
    hidden = torch.zeros(*x.shape[:2], 1).to(x)
    hidden[:, ::3] = 1
    x = x * (1 - hidden) + net.mask.expand(*x.shape[:2], -1) * hidden
    return net.b(x.transpose(1, 2).unflatten(2, (8, 8)))


def global_filter(net: Any, x: Tensor) -> Tensor:
    waves = torch.fft.rfft2(net.a(x).movedim(1, -1), dim=(1, 2))
    waves = waves * torch.view_as_complex(net.filter)
    return net.b(torch.fft.irfft2(waves, s=x.shape[-2:], dim=(1, 2)).movedim(-1, 1))


def turned(net: Any, x: Tensor) -> Tensor:
    x = net.a(x)
    grid = F.affine_grid(net.p(x.mean((2, 3))).unflatten(1, (2, 3)), x.shape, align_corners=False)
    return net.b(F.grid_sample(x, grid, align_corners=False))


TOYS = {
    "more groups than channels in each": Toy(**ab(lambda net, x: shuffle(x, 4)), groups={"a": 2}),
    "the largest of a fixed number of channels": Toy(
        **ab(lambda net, x: x.reshape(len(x), x.size(1) // 4, 4, *x.shape[2:]).amax(2), into=2),
        groups={"a": 2},
    ),
    "a size that leaves the integers": Toy(
        **ab(lambda net, x: x.view(len(x), int(x.shape[1] / 2), 2, *x.shape[2:]).amax(2), into=4),
        groups={"a": 4},
    ),
    "windows of a part by strides": Toy(
        lambda: {"a": conv(3, 8), "b": conv(8, 5)}, windows_of_a_part, {"a": 8}
    ),
    "a write by strides": Toy(
        lambda: {"a": conv(3, 8), "c": conv(8, 4), "b": conv(8, 5)},
        written_by_strides,
        {"a": "a write into a part", "c": "a write into a part"},
    ),
    "tokens masked by a parameter": Toy(
        lambda: {"a": conv(3, 8), "b": conv(8, 5), "mask": nn.Parameter(torch.rand(1, 1, 8))},
        masked_tokens,
        {"a": 8},
    ),
    "a filter of the spectrum": Toy(
        lambda: {
            "a": conv(3, 8),
            "b": conv(8, 5),
            "filter": nn.Parameter(torch.rand(8, 5, 8, 2)),
        },
        global_filter,
        {"a": 8},
        (2, 3, 8, 8),
    ),
    "an affine map": Toy(
        lambda: {"a": conv(3, 8), "p": nn.Linear(8, 6), "b": conv(8, 5)},
        turned,
        {"a": 8, "p": "affine maps"},
    ),
    "a cost volume": Toy(
        lambda: {"a": conv(3, 8), "b": nn.Conv3d(16, 5, 1)}, cost_volume, {"a": 8}
    ),
    "written in steps over space": Toy(
        lambda: {"a": conv(3, 8), "b": conv(8, 5)}, in_steps, {"a": 8}
    ),
    "tokens that are parameters": Toy(
        lambda: {
            "a": conv(3, 8),
            "b": conv(8, 5),
            "first": nn.Parameter(torch.zeros(1, 1, 8)),
            "mask": nn.Parameter(torch.zeros(8)),
        },
        tokens,
        {"a": 8},
    ),
    "noise of a strength per channel": Toy(
        **ab(
            lambda net, x: x + 0 * torch.randn(x.shape[0], 1, *x.shape[2:]).to(x) * net.strength,
            strength=lambda: nn.Parameter(torch.rand(8, 1, 1)),
        ),
        groups={"a": 8},
    ),
    "batch norm of a condition": Toy(
        lambda: {
            "a": conv(3, 8),
            "n": nn.BatchNorm2d(8),
            "table": nn.Embedding(4, 16),
            "b": conv(8, 5),
        },
        conditioned,
        {"a": 8},
    ),
    "involution": Toy(
        lambda: {"a": conv(3, 8), "k": conv(8, 9), "b": conv(8, 5)},
        involution,
        {"a": 8, "k": "broadcast over other channels"},
    ),
    "a convolution of the spectrum": Toy(
        lambda: {"a": conv(3, 8), "c": conv(16, 16, 1), "b": conv(8, 5)},
        spectrum,
        {"a": 8, "c": 8},
        (2, 3, 8, 8),
    ),
    "windows by strides": Toy(lambda: {"a": conv(3, 8), "b": conv(8, 5)}, windows, {"a": 8}),
    "unsafe chunk": Toy(
        **ab(lambda net, x: torch.mul(*torch.unsafe_chunk(x, 2, 1)), into=4), groups={"a": 4}
    ),
    "a layer whose bias is not used": Toy(
        **ab(lambda net, x: F.conv2d(x, net.c.weight, padding=1), into=6, c=lambda: conv(8, 6)),
        groups={"a": 8, "c": 6},
    ),
    "max unpooling": Toy(
        lambda: {"a": conv(3, 8), "c": conv(8, 8), "b": conv(8, 5)}, unpooled, {"a": 8, "c": 8}
    ),
    "gathering by another layer's order": Toy(
        lambda: {"a": conv(3, 8), "c": conv(3, 8), "b": conv(8, 5)}, strongest, {"a": 8, "c": 8}
    ),
    "gathering in sorted order": Toy(
        lambda: {"a": conv(3, 8), "c": conv(3, 8), "b": conv(8, 5)}, best_first, {"a": 8, "c": 8}
    ),
    "gathering in a layer of another width": Toy(
        lambda: {"a": conv(3, 6), "c": conv(3, 8), "b": conv(6, 5)},
        strongest,
        {"a": "selected by index", "c": "selected by index"},
    ),
    "scattering at maxima": Toy(
        lambda: {"a": conv(3, 8), "c": conv(8, 8), "b": conv(8, 5)}, peaks, {"a": 8, "c": 8}
    ),
    "a table looked up at maxima": Toy(
        lambda: {"a": conv(3, 8), "table": nn.Embedding(64, 6), "b": conv(6, 5)},
        looked_up,
        {"a": "no rule"},
    ),
    "batch norm": Toy(
        **ab(lambda net, x: net.n(x).relu(), n=lambda: nn.BatchNorm2d(8)), groups={"a": 8}
    ),
    "prelu": Toy(**ab(lambda net, x: net.p(x), p=lambda: nn.PReLU(8)), groups={"a": 8}),
    "one slope for all": Toy(**ab(lambda net, x: net.p(x), p=nn.PReLU), groups={"a": 8}),
    "group norm": Toy(**ab(lambda net, x: net.n(x), n=lambda: nn.GroupNorm(4, 8)), groups={"a": 4}),
    "group norm of one": Toy(
        **ab(lambda net, x: net.n(x), n=lambda: nn.GroupNorm(1, 8)), groups={"a": "one unit"}
    ),
    "group norm per channel": Toy(
        **ab(lambda net, x: net.n(x), n=lambda: nn.GroupNorm(8, 8)), groups={"a": 8}
    ),
    "group norm without parameters": Toy(
        **ab(lambda net, x: net.n(x), n=lambda: nn.GroupNorm(4, 8, affine=False)), groups={"a": 4}
    ),
    "instance norm": Toy(
        **ab(lambda net, x: net.n(x), n=lambda: nn.InstanceNorm2d(8, affine=True)), groups={"a": 8}
    ),
    "instance norm with statistics": Toy(
        **ab(
            lambda net, x: net.n(x),
            n=lambda: nn.InstanceNorm2d(8, affine=True, track_running_stats=True),
        ),
        groups={"a": 8},
    ),
    "instance norm without parameters": Toy(
        **ab(lambda net, x: net.n(x), n=lambda: nn.InstanceNorm2d(8)), groups={"a": 8}
    ),
    "layer norm, channels last": Toy(
        lambda: {
            "a": conv(3, 8),
            "norm": nn.LayerNorm(8),
            "c": nn.Linear(8, 12),
            "b": nn.Linear(12, 5),
        },
        detokenised,
        {"a": "LayerNorm", "c": 12},
    ),
    "squeeze and excitation": Toy(
        **ab(
            lambda net, x: x * net.e(net.s(x.mean((2, 3), keepdim=True)).relu()).sigmoid(),
            s=lambda: conv(8, 4, 1),
            e=lambda: conv(4, 8, 1),
        ),
        groups={"a": 8, "s": 4, "e": 8},
    ),
    "a gate over space": Toy(
        **ab(lambda net, x: x * net.g(x).sigmoid(), g=lambda: conv(8, 1)),
        groups={"a": 8, "g": "broadcast"},
    ),
    "attention over channels": Toy(
        **ab(lambda net, x: x * x.mean((2, 3), keepdim=True).softmax(1)), groups={"a": "softmax"}
    ),
    "mean over channels": Toy(
        **ab(lambda net, x: x * x.mean(1, keepdim=True)), groups={"a": "mean"}
    ),
    "convolution over channels": Toy(
        **ab(
            lambda net, x: x * net.e(x.mean((2, 3))[:, None])[:, 0, :, None, None],
            e=lambda: nn.Conv1d(1, 1, 3, padding=1),
        ),
        groups={"a": "over space"},
    ),
    "channel shuffle": Toy(**ab(lambda net, x: shuffle(x, 2)), groups={"a": 4}),
    "channel shuffle of PyTorch": Toy(
        **ab(lambda net, x: F.channel_shuffle(x, 2)), groups={"a": 4}
    ),
    "pixel shuffle": Toy(**ab(lambda net, x: F.pixel_shuffle(x, 2), into=2), groups={"a": 2}),
    "pixel unshuffle": Toy(**ab(lambda net, x: F.pixel_unshuffle(x, 2), into=32), groups={"a": 8}),
    "focus": Toy(
        **ab(lambda net, x: torch.cat([x[..., ::2, ::2], x[..., 1::2, ::2]], 1), into=16),
        groups={"a": 8},
    ),
    "chunk": Toy(
        **ab(lambda net, x: x.chunk(2, 1)[0] * x.chunk(2, 1)[1].sigmoid(), into=4), groups={"a": 4}
    ),
    "glu": Toy(**ab(lambda net, x: F.glu(x, 1), into=4), groups={"a": 4}),
    "parts joined again": Toy(
        **ab(lambda net, x: torch.cat([part.relu() for part in x.chunk(4, 1)][::-1], 1)),
        groups={"a": 2},
    ),
    "even and odd channels": Toy(
        **ab(lambda net, x: x[:, ::2] + x[:, 1::2], into=4), groups={"a": 4}
    ),
    "a sum over parts": Toy(
        **ab(lambda net, x: x.view(x.shape[0], 2, -1, *x.shape[2:]).sum(1), into=4), groups={"a": 4}
    ),
    "a stack of two": Toy(
        **ab(lambda net, x: torch.stack([x, net.c(x)], 1).amax(1), c=lambda: conv(8, 8)),
        groups={"a": 8, "c": 8},
    ),
    "split by fixed numbers": Toy(
        **ab(lambda net, x: torch.cat(x.split([3, 5], 1)[::-1], 1)), groups={"a": "unequal parts"}
    ),
    "a slice by fixed numbers": Toy(
        **ab(lambda net, x: x[:, :3], into=3), groups={"a": "fixed numbers"}
    ),
    "one channel by number": Toy(**ab(lambda net, x: x * x[:, 7:8]), groups={"a": "broadcast"}),
    "channels by number": Toy(
        **ab(lambda net, x: x[:, [0, 2, 1]], into=3), groups={"a": "by index"}
    ),
    "rolled channels": Toy(
        **ab(lambda net, x: x.roll(1, 1)), groups={"a": "shifted by a fixed offset"}
    ),
    "a stored width": Toy(
        **ab(lambda net, x: x.reshape(x.shape[0], 8, -1).reshape(x.shape[0], 8, *x.shape[2:])),
        groups={"a": "hard-codes"},
    ),
    "a scale by the stored width": Toy(
        **ab(lambda net, x: x / net.a.weight.new_tensor(x.shape[1])), groups={"a": "as a number"}
    ),
    "a scale of zero of what depends on the width": Toy(
        **ab(
            lambda net, x: x + net.gamma * torch.tanh(x * x.shape[1]),
            gamma=lambda: nn.Parameter(torch.zeros(8, 1, 1)),
        ),
        groups={"a": "as a number"},
    ),
    "squeezed without an axis": Toy(
        **ab(lambda net, x: x.mean((2, 3), keepdim=True).squeeze()[..., None, None]),
        groups={"a": 7},
    ),
    "squeezed beside other channels": Toy(
        **ab(
            lambda net, x: (
                torch.cat([x, net.c(x)], 1).mean((2, 3), keepdim=True).squeeze()[..., None, None]
            ),
            into=14,
            c=lambda: conv(8, 6),
        ),
        groups={"a": 8, "c": 6},
    ),
    "flipped channels": Toy(**ab(lambda net, x: x.flip(1)), groups={"a": 8}),
    "padding": Toy(**ab(lambda net, x: F.pad(x, (0, 1, 0, 1))), groups={"a": 8}),
    "padding by channels": Toy(
        **ab(lambda net, x: F.pad(x, (0, 0, 0, 0, 2, 2)), into=12), groups={"a": 8}
    ),
    "a shortcut of padded channels": Toy(
        **ab(
            lambda net, x: F.pad(x, (0, 0, 0, 0, 2, 2)) + net.c(x), into=12, c=lambda: conv(8, 12)
        ),
        groups={"a": 8, "c": "fixed width"},
    ),
    "written halves": Toy(
        lambda: {"b": conv(14, 5), "c": conv(3, 8), "d": conv(3, 6)}, write_halves, {"c": 8, "d": 6}
    ),
    "layer scale": Toy(
        **ab(
            lambda net, x: x + net.gamma * net.c(x),
            gamma=lambda: nn.Parameter(torch.rand(8, 1, 1)),
            c=lambda: conv(8, 8),
        ),
        groups={"a": 8},
    ),
    "layer scale in a view": Toy(
        **ab(
            lambda net, x: x * net.gamma.view(1, -1, 1, 1),
            gamma=lambda: nn.Parameter(torch.rand(8)),
        ),
        groups={"a": 8},
    ),
    "a map over space": Toy(
        **ab(lambda net, x: x + net.pos, pos=lambda: nn.Parameter(torch.rand(1, 8, 8, 8))),
        groups={"a": 8},
    ),
    "half of a parameter": Toy(
        **ab(
            lambda net, x: x * net.gamma[:8, None, None], gamma=lambda: nn.Parameter(torch.rand(16))
        ),
        groups={"a": "a part of gamma"},
    ),
    "a constant for each channel": Toy(
        **ab(lambda net, x: x + torch.arange(8.0).to(x).view(8, 1, 1)), groups={"a": "fixed width"}
    ),
    "a mask by number": Toy(
        **ab(lambda net, x: x * written(torch.ones(x.shape[1]).to(x)).view(-1, 1, 1)),
        groups={"a": "fixed width"},
    ),
    "a dynamic weight": Toy(
        **ab(
            lambda net, x: F.conv2d(x[:1], net.w(x[:1].mean((2, 3))).view(8, 8, 1, 1)),
            w=lambda: nn.Linear(8, 64),
        ),
        groups={"a": "from data", "w": "from data"},
    ),
    "noise": Toy(
        **ab(lambda net, x: x + 0 * torch.randn((*x.shape[:2], 1, 1)).to(x)), groups={"a": 8}
    ),
    "dropout of channels": Toy(
        **ab(lambda net, x: F.dropout2d(x, 0.5, net.training)), groups={"a": 8}
    ),
    "transposed convolution": Toy(
        **ab(lambda net, x: net.t(x), into=6, t=lambda: nn.ConvTranspose2d(8, 6, 2, 2)),
        groups={"a": 8, "t": 6},
    ),
    "grouped transposed convolution": Toy(
        **ab(lambda net, x: net.t(x), into=12, t=lambda: nn.ConvTranspose2d(8, 12, 2, 2, groups=4)),
        groups={"a": 4, "t": 4},
    ),
    "depthwise convolution": Toy(
        **ab(lambda net, x: net.d(x), into=16, d=lambda: conv(8, 16, groups=8)), groups={"a": 8}
    ),
    "grouped convolution": Toy(
        **ab(lambda net, x: net.d(x), into=12, d=lambda: conv(8, 12, groups=4)), groups={"a": 4}
    ),
    "dilated and strided": Toy(
        **ab(
            lambda net, x: net.d(x), into=6, d=lambda: conv(8, 6, dilation=2, stride=2, padding=2)
        ),
        groups={"a": 8, "d": 6},
    ),
    "x @ W": Toy(
        **ab(
            lambda net, x: (x.movedim(1, -1) @ net.w).movedim(-1, 1),
            into=6,
            w=lambda: nn.Parameter(torch.randn(8, 6)),
        ),
        groups={"a": 8, "w": 6},
    ),
    "einsum": Toy(
        **ab(
            lambda net, x: torch.einsum("nchw,cd->ndhw", x, net.w),
            into=6,
            w=lambda: nn.Parameter(torch.randn(8, 6)),
        ),
        groups={"a": 8, "w": 6},
    ),
    "a product of two maps": Toy(
        **ab(
            lambda net, x: torch.einsum("nchw,ncvw->nhv", x, net.c(x))[:, None],
            into=1,
            c=lambda: conv(8, 8),
        ),
        groups={"a": "summed in a matrix product", "c": "summed in a matrix product"},
    ),
    "attention": Toy(
        lambda: {"a": conv(3, 8), "qkv": nn.Linear(8, 24), "b": nn.Linear(8, 5)},
        attention,
        {"a": 8, "qkv": "product"},
    ),
    "tokens mixed": Toy(
        **ab(lambda net, x: net.m(x.flatten(2)).view_as(x), m=lambda: nn.Linear(64, 64)),
        groups={"a": 8},
    ),
    "unfold": Toy(lambda: {"a": conv(3, 8), "b": nn.Linear(72, 5)}, patches, {"a": 8}),
    "grid sample": Toy(
        **ab(
            lambda net, x: F.grid_sample(x, net.g(x).movedim(1, -1).tanh(), align_corners=False),
            g=lambda: conv(8, 2),
        ),
        groups={"a": 8, "g": "coordinates"},
    ),
    "shared convolution": Toy(
        **ab(lambda net, x: net.s(net.s(x).relu()), s=lambda: conv(8, 8)), groups={"a": 8, "s": 8}
    ),
    "a linear layer behind a flatten": Toy(
        lambda: {"a": conv(3, 8), "b": nn.Linear(8 * 64, 5)},
        lambda net, x: net.b(net.a(x).flatten(1)),
        {"a": 8},
    ),
    "mean over space in a sequence": Toy(
        lambda: {
            "s": nn.Sequential(conv(3, 8), nn.ReLU(), conv(8, 6), nn.Flatten()),
            "b": nn.Linear(6, 5),
        },
        lambda net, x: net.b(net.s[:-1](x).mean((2, 3))),
        {"s.0": 8, "s.2": 6},
    ),
    "one dimension": Toy(
        lambda: {"a": nn.Conv1d(3, 8, 3), "n": nn.BatchNorm1d(8), "b": nn.Conv1d(8, 5, 3)},
        lambda net, x: net.b(F.max_pool1d(net.n(net.a(x)), 2)),
        {"a": 8},
        (2, 3, 16),
    ),
    "three dimensions": Toy(
        lambda: {
            "a": nn.Conv3d(3, 8, 3, padding=1),
            "n": nn.BatchNorm3d(8),
            "b": nn.Conv3d(8, 5, 1),
        },
        lambda net, x: net.b(
            F.interpolate(F.max_pool3d(net.n(net.a(x)), 2), scale_factor=2, mode="trilinear")
        ),
        {"a": 8},
        (1, 3, 4, 4, 4),
    ),
    "weight norm": Toy(
        lambda: {
            "a": parametrizations.weight_norm(conv(3, 8)),
            "b": parametrizations.weight_norm(conv(8, 5)),
        },
        lambda net, x: net.b(net.a(x).relu()),
        {"a": 8},
    ),
    "weight norm of a transposed convolution": Toy(
        lambda: {
            "a": conv(3, 8),
            "t": parametrizations.weight_norm(nn.ConvTranspose2d(8, 6, 2, 2)),
            "b": conv(6, 5),
        },
        lambda net, x: net.b(net.t(net.a(x)).relu()),
        {"a": 8, "t": 6},
    ),
    "spectral norm": Toy(
        lambda: {"a": parametrizations.spectral_norm(conv(3, 8)), "c": conv(8, 6), "b": conv(6, 5)},
        lambda net, x: net.b(net.c(net.a(x)).relu()),
        {"a": "depend on each other", "c": 6},
    ),
}


@pytest.mark.parametrize("name", TOYS)
def test_toy(name: str) -> None:
    toy = TOYS[name]
    model, x = Net(toy), torch.randn(*toy.shape)
    graph = pl.trace(model, x)
    for layer, expected in toy.groups.items():
        group = graph[layer]
        if isinstance(expected, int):
            assert group.prunable, group.why
            assert group.width == expected
        else:
            assert expected in group.why
    assert_exact(model, graph, x)
