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
from os import PathLike
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from prunelab.errors import BadModel
from prunelab.graph.modules.module_attributes import sync_attributes

ABOUT = ""  # where `NetworkState.packed` puts what is no tensor: no tensor has an empty name
WRAPPERS = ("module", "_orig_mod")  # of DataParallel and DistributedDataParallel; torch.compile


class Entry(NamedTuple):
    """A parameter or buffer under one of its names; `module` holds it as `key`."""

    name: str
    module: nn.Module
    key: str
    tensor: Tensor

    @property
    def unsaved(self) -> bool:
        """Whether it is a buffer that `state_dict()` leaves out."""
        return self.key in self.module._non_persistent_buffers_set


def entries(model: nn.Module) -> Iterator[Entry]:
    """Every parameter and buffer under every name, in the order of `state_dict()`."""
    for path, module in _paths(model, "", ()):
        for held in (module._parameters, module._buffers):
            for key, tensor in held.items():
                if tensor is not None:
                    yield Entry(f"{path}{key}", module, key, tensor)


def _paths(
    module: nn.Module, path: str, above: tuple[nn.Module, ...]
) -> Iterator[tuple[str, nn.Module]]:
    """Every module under every name, with a dot behind it; a module inside itself is left out."""
    yield path, module
    for key, child in module._modules.items():
        if child is not None and child is not module and child not in above:
            yield from _paths(child, f"{path}{key}.", (*above, module))


def checked_network(given: Any, name: str = "model") -> None:
    """Raise `BadModel` where `given`, the argument `name`, is no network."""
    if isinstance(given, nn.Module):
        return
    what = f"a {type(given).__name__}"
    if isinstance(given, (str, PathLike, type)):
        what = repr(given) if isinstance(given, str) else str(given)
    raise BadModel(
        f"{name} is {what}; it must be the network itself, an nn.Module. Build it, and load its "
        "weights: model = Net(...); model.load_state_dict(torch.load(path))."
    )


def without_values(model: nn.Module) -> str | None:
    """The name of a tensor of `model` that has no values yet: on the meta device, or lazy."""
    odd = (e.name for e in entries(model) if is_lazy(e.tensor) or e.tensor.is_meta)
    return next(odd, None)


def _modules(model: nn.Module) -> dict[str, nn.Module]:
    """Every module by every name."""
    return {path.removesuffix("."): module for path, module in _paths(model, "", ())}


def not_finite(model: nn.Module) -> str | None:
    """The name of a tensor of `model` that is damaged: it holds NaN, or infinity by mistake.

    A buffer may hold infinity on purpose, such as an attention mask; running statistics may not.
    """
    for name, module, key, tensor in entries(model):
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            weight = key in module._parameters or isinstance(module, nn.modules.batchnorm._NormBase)
            if weight or tensor.isnan().any():
                return name
    return None


# ---------------------------------------------------------------- the value


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
        return cls(given, {} if text is None else json.loads(bytes(text.tolist())))

    def renamed(self, change: Callable[[str], str]) -> NetworkState:
        """The same state with every name of a tensor or module changed."""
        about = {
            part: {change(k): change(v) if part == "same" else v for k, v in value.items()}
            if isinstance(value, dict)
            else [change(name) for name in value]
            for part, value in self.about.items()
        }
        return NetworkState({change(name): x for name, x in self.tensors.items()}, about)


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
            raise _quantised(name)
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
        if (axes := _order(plain)) != sorted(axes):
            order[name] = axes
        tensors[name] = plain
    for name, module in model.named_modules():
        _check_held(name, module)
        if type(module).get_extra_state is not nn.Module.get_extra_state:
            extra[name] = _encoded(module.get_extra_state(), name or type(module).__name__)
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
    about, modules = state.about, _modules(model)
    made: dict[str, Tensor] = {}
    for name, module, key, tensor in list(entries(model)):
        if name in given:
            tied = made.setdefault(given[name], tensor)
            _hold(module, key, tied)
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
            module.set_extra_state(_decoded(about["extra"][name]))


def replace_tensors(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Replace the parameters and buffers of these names in `model` by `tensors`.

    Shared ones stay shared; `in_channels`, `num_features`, `groups` ... follow the shapes.
    """
    held = list(entries(model))
    own = {entry.name: entry.tensor for entry in held}
    made = {id(own[name]): _as(own[name], tensor) for name, tensor in tensors.items()}
    for _, module, key, tensor in held:
        if id(tensor) in made:
            _hold(module, key, made[id(tensor)])
    settle(model, tensors)


def settle(model: nn.Module, changed: Mapping[str, Tensor]) -> None:
    """Sync the width attributes of the modules whose tensors changed."""
    if not changed:
        return
    ids = {id(entry.tensor) for entry in entries(model) if entry.name in changed}
    for module in model.modules():
        parts = [module, *getattr(module, "parametrizations", {}).values()]
        own = [x for part in parts for x in (*part._parameters.values(), *part._buffers.values())]
        if any(id(tensor) in ids for tensor in own):
            sync_attributes(module)


@contextmanager
def state_preserved(model: nn.Module) -> Iterator[None]:
    """Restore modes and buffers at the end of the `with` block: for a network of our own.

    What a network of the user's keeps while it runs is lost only on a copy.
    """
    flags = [(module, module.training, dict(module._buffers)) for module in model.modules()]
    buffers = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
    try:
        yield
    finally:
        for module, training, held in flags:
            module.training = training
            module._buffers.update(held)
        with torch.no_grad():
            for buffer, value in buffers:
                if buffer.shape != value.shape:  # resized, as by an observer of quantisation
                    buffer.data = value
                elif buffer.is_sparse or not torch.equal(buffer, value):
                    buffer.copy_(value)


# ---------------------------------------------------------------- tensors


def like(old: Tensor, tensor: Tensor) -> Tensor:
    """`tensor` with the order of axes, and if it is a parameter the flag, of `old`."""
    axes = _order(old)
    return _as(old, tensor if _order(tensor) == axes else _in_order(tensor, axes, tensor.device))


def _as(old: Tensor, tensor: Tensor) -> Tensor:
    if isinstance(old, nn.Parameter):
        return nn.Parameter(tensor, requires_grad=old.requires_grad)
    return tensor


def _hold(module: nn.Module, key: str, tensor: Tensor) -> None:
    """Put `tensor` where `module` holds the parameter or buffer `key`."""
    held: dict[str, Any] = module._parameters if key in module._parameters else module._buffers
    held[key] = tensor


def _order(tensor: Tensor) -> list[int]:
    """The axes of a tensor from the outermost in memory to the innermost."""
    axes = list(range(tensor.ndim))
    if tensor.layout != torch.strided or 0 in tensor.stride():
        return axes
    return sorted(axes, key=lambda axis: -tensor.stride()[axis])


def _in_order(tensor: Tensor, axes: list[int], device: torch.device) -> Tensor:
    """A copy of `tensor` whose axes lie in memory in this order."""
    made = torch.empty_permuted(tensor.shape, axes, dtype=tensor.dtype, device=device)
    return made.copy_(tensor)


def _laid_out(state: NetworkState, name: str, old: Tensor) -> Tensor:
    """A copy of a tensor in `state` with its layout in memory, in place of `old`."""
    tensor, about = state.tensors[name], state.about
    usual = list(range(tensor.ndim)) if about or tensor.ndim != old.ndim else _order(old)
    made = _in_order(tensor, about.get("order", {}).get(name, usual), old.device)
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


# ---------------------------------------------------------------- what is no tensor


def _check_held(name: str, module: nn.Module) -> None:
    """Raise where a module saves what is neither parameter, buffer nor extra state."""
    if type(module)._save_to_state_dict is not nn.Module._save_to_state_dict:
        saved: dict[str, Any] = {}
        module._save_to_state_dict(saved, "", False)
        own = {*module._parameters, *module._buffers, "_extra_state"}
        if odd := [key for key in saved if key not in own]:
            raise _quantised(f"{name}.{odd[0]}")


def _quantised(name: str) -> BadModel:
    return BadModel(
        f"{name} is neither a parameter, a buffer nor extra state, as in quantised layers, and "
        "prunelab cannot write it. Prune the network before it is quantised."
    )


def _encoded(value: Any, module: str) -> Any:
    """What `get_extra_state` returned, as JSON."""
    if value is None or type(value) in (bool, int, float, str):
        return value
    if type(value) in (list, tuple):
        return {type(value).__name__: [_encoded(part, module) for part in value]}
    if isinstance(value, dict):
        return {"dict": [[_encoded(part, module) for part in pair] for pair in value.items()]}
    if type(value) is bytes:
        return {"bytes": value.hex()}
    if isinstance(value, Tensor) and not value.is_complex() and not value.is_quantized:
        kind = str(value.dtype).removeprefix("torch.")
        return {"tensor": [kind, list(value.shape), value.detach().flatten().tolist()]}
    raise BadModel(
        f"get_extra_state of {module} gives a {type(value).__name__}, which cannot be written "
        "without pickle. Let it give numbers, texts, tensors, or lists and dicts of them."
    )


def _decoded(value: Any) -> Any:
    """The value that `_encoded` turned into JSON."""
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "dict":
        return {_decoded(key): _decoded(part) for key, part in content}
    if kind == "bytes":
        return bytes.fromhex(content)
    if kind == "tensor":
        dtype, shape, numbers = content
        return torch.tensor(numbers, dtype=getattr(torch, dtype)).reshape(shape)
    parts = [_decoded(part) for part in content]
    return tuple(parts) if kind == "tuple" else parts


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
        state = state.renamed(lambda name: names.get(unwrapped(name), name))
        given, still = _matched(model, state)
        if still:
            raise BadModel(f"{wrong}.")
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
    modules = _modules(model)
    for name in sorted(state.tensors.keys() - set(found.values())):
        path, _, key = name.rpartition(".")
        can = path in modules and key in modules[path]._buffers
        if not can and not (path in modules and name in state.about.get("unsaved", ())):
            return {}, f"the given network has no {name} (run it once if its code registers that)"
    if odd := [e.name for e in held if id(e.tensor) not in tied and not e.unsaved]:
        return {}, f"{odd[0]} of the given network is missing there"
    return {e.name: tied[id(e.tensor)] for e in held if id(e.tensor) in tied}, None
