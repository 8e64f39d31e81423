"""The whole state of a network: what copies, files, undo and fingerprints take it to be.

`state_dict()` is another thing: it leaves out modes, memory formats and buffers that are not
persistent, lists a shared tensor under each of its names, and may hold what is no tensor. So
tensors are read and written where modules hold them, and no `load_state_dict` of a module's own,
which may ask for a version, is called.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn

from prunelab.errors import BadModel
from prunelab.graph.modules.walk import walk
from prunelab.graph.surgery.extra_state import check_saved, decoded, encoded, quantised
from prunelab.graph.surgery.held_tensors import (
    entries,
    hold,
    in_order,
    modules_of,
    order_of,
    replace_tensors,
)

ABOUT = ""  # where `NetworkState.packed` puts what is no tensor: no tensor has an empty name
WRAPPERS = ("module", "_orig_mod")  # of DataParallel and DistributedDataParallel; torch.compile


@dataclass(frozen=True, slots=True, eq=False)
class NetworkState:
    """The state of a network, which `restore` gives to another one of its architecture.

    `tensors` holds every parameter and buffer once, by its first name. `about` is JSON: the first
    name of a tensor by each other name (`same`), the buffers that `state_dict()` leaves out
    (`unsaved`), parameters without gradients (`frozen`), the order of axes in memory where it is
    unusual (`order`), what is sparse or complex (`layout`), modules in training mode (`training`),
    and what their `get_extra_state` returned (`extra`). A file of an earlier version has no
    `about`, and the tensors of `state_dict()`.
    """

    tensors: dict[str, Tensor]
    about: dict[str, Any]

    def packed(self) -> dict[str, Tensor]:
        """All of it as tensors, for a store; see `unpacked`."""
        text = bytearray(json.dumps(self.about).encode())
        return {**self.tensors, ABOUT: torch.frombuffer(text, dtype=torch.uint8)}

    @classmethod
    def unpacked(cls, tensors: Mapping[str, Tensor]) -> Self:
        """The state that `packed` turned into `tensors`."""
        given = dict(tensors)
        text = given.pop(ABOUT, None)
        return cls.read(given, "{}" if text is None else bytes(text.tolist()))

    @classmethod
    def read(cls, tensors: dict[str, Tensor], about: str | bytes) -> Self:
        """The state in a file; raises `ValueError` where `about` is not what `captured` makes."""
        found = json.loads(about)
        if found != {} and not _sound(found, tensors):
            raise ValueError("what it says about the network's state is not in order")
        return cls(tensors, found)

    def renamed(self, change: Callable[[str], str]) -> NetworkState:
        """The same state with every name of a tensor or module changed."""
        about = {
            part: {change(k): change(v) if part == "same" else v for k, v in value.items()}
            if isinstance(value, dict)
            else [change(name) for name in value]
            for part, value in self.about.items()
        }
        return NetworkState({change(name): x for name, x in self.tensors.items()}, about)


def _sound(about: Any, tensors: Mapping[str, Tensor]) -> bool:
    """Whether `about` has all its parts, each of its kind."""
    kinds = {
        **dict.fromkeys(("same", "order", "layout", "extra"), dict),
        **dict.fromkeys(("unsaved", "frozen", "training"), list),
    }
    return (
        isinstance(about, dict)
        and {part: type(value) for part, value in about.items()} == kinds
        and all(isinstance(name, str) for part in kinds for name in about[part])
        and all(isinstance(name, str) for name in about["same"].values())
        and all(
            isinstance(axes, list)
            and name in tensors
            and sorted(axes) == [*range(tensors[name].ndim)]
            for name, axes in about["order"].items()
        )
        and all(
            name == "complex" or isinstance(getattr(torch, str(name), None), torch.layout)
            for name in about["layout"].values()
        )
    )


def captured(model: nn.Module) -> NetworkState:
    """The state of `model`; its tensors share the model's memory where they can.

    Raises `BadModel` for state that could only be written by pickle, and for quantised layers.
    """
    first: dict[int, str] = {}
    tensors: dict[str, Tensor] = {}
    same, order, layout, extra = {}, {}, {}, {}
    unsaved, frozen = [], []
    for entry in entries(model):
        name, tensor = entry.name, entry.tensor
        if first.setdefault(id(tensor), name) != name:
            same[name] = first[id(tensor)]
            continue
        if tensor.is_quantized:
            raise quantised(name)
        if entry.unsaved:
            unsaved.append(name)
        if isinstance(tensor, nn.Parameter) and not tensor.requires_grad:
            frozen.append(name)
        plain = tensor.detach()
        if tensor.layout != torch.strided:
            layout[name] = str(tensor.layout).removeprefix("torch.")
            plain = plain.to_dense()
        elif tensor.is_complex():  # safetensors knows one complex type only
            layout[name] = "complex"
            plain = torch.view_as_real(plain.resolve_conj())
        if (axes := order_of(plain)) != sorted(axes):
            order[name] = axes
        tensors[name] = plain
    for name, module in model.named_modules():
        check_saved(name, module)
        if type(module).get_extra_state is not nn.Module.get_extra_state:
            extra[name] = encoded(module.get_extra_state(), name or type(module).__name__)
    training = [name for name, module in model.named_modules() if module.training]
    about = {
        "same": same, "order": order, "layout": layout, "extra": extra, "unsaved": unsaved,
        "frozen": frozen, "training": training,
    }  # fmt: skip
    return NetworkState(tensors, about)


def restore(model: nn.Module, state: NetworkState, *, resize: bool = False) -> None:
    """Give `model`, a network of the same architecture, this state, in memory of its own.

    Parameters
    ----------
    model
        Changed in place; it stays on its device. Where its names are those in `state` but for
        what DataParallel or `torch.compile` puts before them, they are taken for the same.
    state
        What `captured` returned.
    resize
        Whether parameters may become smaller; otherwise they must have the same shapes.

    Raises `BadModel` for another architecture, before anything is changed.
    """
    state, given = _fitted(model, state)
    own = {entry.name: entry for entry in entries(model)}
    for name, source in given.items():
        old, new = own[name].tensor, state.tensors[source]
        fits = old.shape == new.shape
        if resize and old.ndim == new.ndim:
            fits = all(a >= b for a, b in zip(old.shape, new.shape, strict=True))
        if isinstance(old, nn.Parameter) and not fits:
            raise BadModel(
                f"{name} is {tuple(new.shape)} there and {tuple(old.shape)} in the given network"
                f"{'; a pruned network can only be smaller' if resize else ''}."
            )
    replaced = {}
    with torch.no_grad():
        for name, source in given.items():
            old, new = own[name].tensor, _laid_out(state, source, own[name].tensor)
            if _placed(old) == _placed(new):
                old.copy_(new)  # whoever holds the tensor itself sees the new values
            else:
                replaced[name] = new
    replace_tensors(model, replaced)
    if state.about:
        _finish(model, state, given)


def _finish(model: nn.Module, state: NetworkState, given: Mapping[str, str]) -> None:
    """Restore what is no tensor, and buffers that the code registers while it runs."""
    about, modules = state.about, modules_of(model)
    made: dict[str, Tensor] = {}
    for name, module, key, tensor in list(entries(model)):
        if name in given:
            tied = made.setdefault(given[name], tensor)
            hold(module, key, tied)
            if isinstance(tied, nn.Parameter) and tied.requires_grad == (
                given[name] in about["frozen"]
            ):
                tied.requires_grad_(not tied.requires_grad)
    device = next((tensor.device for tensor in made.values()), torch.device("cpu"))
    for name in (name for name in state.tensors if name not in made):
        path, _, key = name.rpartition(".")
        new = _laid_out(state, name, torch.empty(0, device=device))
        modules[path].register_buffer(key, new, persistent=name not in about["unsaved"])
    training = set(about["training"])
    for name, module in model.named_modules():
        module.training = name in training
        if name in about["extra"]:
            module.set_extra_state(decoded(about["extra"][name]))


def _laid_out(state: NetworkState, name: str, old: Tensor) -> Tensor:
    """A copy of a tensor in `state` with its layout in memory, in place of `old`."""
    tensor, about = state.tensors[name], state.about
    usual = list(range(tensor.ndim)) if about or tensor.ndim != old.ndim else order_of(old)
    made = in_order(tensor, about.get("order", {}).get(name, usual), old.device)
    match about.get("layout", {}).get(name):
        case None:
            return made
        case "complex":
            return torch.view_as_complex(made)
        case layout:
            return made.to_sparse(layout=getattr(torch, layout))


def _placed(tensor: Tensor) -> tuple[Any, ...]:
    """What two tensors have in common where one can be copied into the other."""
    strides = tensor.stride() if tensor.layout == torch.strided else None
    return tensor.shape, tensor.dtype, tensor.layout, strides, tensor.is_inference()


@contextmanager
def state_preserved(model: nn.Module) -> Iterator[None]:
    """Restore modes and buffers at the end of the `with` block: for a network of our own.

    What a network of the user's keeps while it runs is lost only on a copy.
    """
    modules = [module for _, module in walk(model)]
    flags = [(module, module.training, dict(module._buffers)) for module in modules]
    kept = {id(x): x for _, _, held in flags for x in held.values() if x is not None}
    buffers = [(buffer, buffer.detach().clone()) for buffer in kept.values()]
    try:
        yield
    finally:
        for module, training, held in flags:
            module.training = training
            if not isinstance(module, torch.jit.ScriptModule):  # which replaces none
                module._buffers.update(held)
        with torch.no_grad():
            for buffer, value in buffers:
                if buffer.shape != value.shape:  # resized, as by an observer of quantisation
                    buffer.data = value
                elif buffer.layout != torch.strided or not torch.equal(buffer, value):
                    buffer.copy_(value)


# ---------------------------------------------------------------- names


def unwrapped(name: str) -> str:
    """A name without what DataParallel and `torch.compile` put into it."""
    parts = name.split(".")
    while parts[0] in WRAPPERS:
        parts = parts[1:] or [""]
    return ".".join(part for part in parts if part != WRAPPERS[1])


def wrapped(names: Iterable[str], others: Iterable[str]) -> str:
    """The remark that `names` are `others` but for wrappers, if so; else nothing."""
    pair = [(a, b) for a in names for b in others if a != b and unwrapped(a) == unwrapped(b)]
    return f" ({pair[0][0]} is {pair[0][1]} there; wrap the network alike)" if pair else ""


def _fitted(model: nn.Module, state: NetworkState) -> tuple[NetworkState, dict[str, str]]:
    """`state` under the names of `model`, and for each name in `model` that of its tensor."""
    given, wrong = _matched(model, state)
    if wrong:
        own = [*(entry.name for entry in entries(model)), *dict(model.named_modules())]
        names = {unwrapped(name): name for name in own}
        other = state.renamed(lambda name: names.get(unwrapped(name), name))
        given, still = _matched(model, other)
        if still or len(other.tensors) < len(state.tensors):
            raise BadModel(f"{wrong}.")
        state = other
    return state, given


def _matched(model: nn.Module, state: NetworkState) -> tuple[dict[str, str], str | None]:
    """The tensor in `state` for each name in `model`; and what does not match, if so."""
    same = state.about.get("same", {})
    held = list(entries(model))
    found = {entry.name: same.get(entry.name, entry.name) for entry in held}
    found = {name: source for name, source in found.items() if source in state.tensors}
    tied: dict[int, str] = {}
    for entry in held:
        if (source := found.get(entry.name)) is None:
            continue
        other = tied.setdefault(id(entry.tensor), source)
        if other != source and not torch.equal(state.tensors[other], state.tensors[source]):
            return {}, f"{entry.name} and {other} are one tensor in the given network, two there"
    modules = modules_of(model)
    for name in sorted(state.tensors.keys() - set(found.values())):
        path, _, key = name.rpartition(".")
        can = path in modules and key in modules[path]._buffers
        if not can and not (path in modules and name in state.about.get("unsaved", ())):
            return {}, f"the given network has no {name} (run it once if its code registers that)"
    if odd := [e.name for e in held if id(e.tensor) not in tied and not e.unsaved]:
        return {}, f"{odd[0]} of the given network is missing there"
    return {e.name: tied[id(e.tensor)] for e in held if id(e.tensor) in tied}, None
