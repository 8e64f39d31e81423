"""What runs without prunelab, and partly without Python: ONNX, `torch.export`, a model card.

The batch size stays free. Each format is read again and compared by `export` before it is kept.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from html import escape
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from prunelab.errors import MissingPackage, PruneLabError
from prunelab.values import si

SIZES = 3, 5  # batches that a file is tried on; it is made with the first
Run = Callable[..., list[Tensor]]


@dataclass(frozen=True, slots=True, eq=False)
class Program:
    """The bytes of a file, and `opened(bytes)`, which runs it: arguments to a list of tensors."""

    data: bytes
    opened: Callable[[bytes], Run]


@dataclass(frozen=True, slots=True, eq=False)
class Call:
    """How a network is called: its arguments, in which tensors of `size` rows are batches."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    size: int

    def of(self, size: int) -> Call:
        """The call with another number of rows, which are repeated where there are too few."""
        rows = torch.arange(size) % self.size
        args, kwargs = tree_map(
            lambda x: x[rows] if self.is_batch(x) else x, (self.args, dict(self.kwargs))
        )
        return Call(args, kwargs, size)

    def is_batch(self, x: Any) -> bool:
        """Whether an argument's first axis is that of the batch."""
        return isinstance(x, Tensor) and x.ndim > 0 and len(x) == self.size

    @property
    def tensors(self) -> list[Tensor]:
        """The tensors among the arguments, in order."""
        return _tensors((self.args, self.kwargs))


def outputs_of(network: nn.Module, call: Call) -> list[Tensor]:
    """The tensors that a network returns, in order."""
    with torch.no_grad():
        return _tensors(network(*call.args, **call.kwargs))


def as_pt2(network: nn.Module, call: Call) -> Program:
    """The program of `torch.export`, which `torch.export.load` reads."""
    file = io.BytesIO()
    torch.export.save(_exported(network, call), file)

    def opened(data: bytes) -> Run:
        network = torch.export.load(io.BytesIO(data)).module()
        return lambda *args, **kwargs: outputs_of(network, Call(args, kwargs, 0))

    return Program(file.getvalue(), opened)


def as_onnx(network: nn.Module, call: Call) -> Program:
    """The ONNX model of a network, which ONNX Runtime reads."""
    try:
        import onnxruntime
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise MissingPackage(
            f"An ONNX export needs onnx, onnxscript and onnxruntime, which checks the file, and "
            f"{error.name} is missing: pip install 'prunelab[onnx]'."
        ) from error
    program = _exported(network, call)
    try:
        made = torch.onnx.export(program, dynamo=True, verbose=False)
        assert made is not None
        data = made.model_proto.SerializeToString()
    except Exception as error:
        raise _not_followed("ONNX", error) from error

    def opened(data: bytes) -> Run:
        session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
        names = [given.name for given in session.get_inputs()]

        def run(*args: Any, **kwargs: Any) -> list[Tensor]:
            given = [x.numpy() for x in _tensors((args, kwargs))]
            found = session.run(None, dict(zip(names, given, strict=True)))
            return [torch.from_numpy(x) for x in found]

        return run

    return Program(data, opened)


def _exported(network: nn.Module, call: Call) -> torch.export.ExportedProgram:
    """The network's program, for every batch size."""
    call = call.of(SIZES[0])
    batch, shapes = torch.export.Dim("batch"), torch.export.ShapesCollection()
    for x in call.tensors:
        if call.is_batch(x):
            shapes[x] = {0: batch}
    kwargs = dict(call.kwargs)
    try:
        return torch.export.export(
            network, call.args, kwargs,
            dynamic_shapes=shapes.dynamic_shapes(network, call.args, kwargs),
        )  # fmt: skip
    except Exception as error:
        raise _not_followed("torch.export", error) from error


def _tensors(value: Any) -> list[Tensor]:
    return [x for x in tree_leaves(value) if isinstance(x, Tensor)]


def _not_followed(by: str, error: Exception) -> PruneLabError:
    said = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return PruneLabError(
        f"{by} cannot follow this network with a free batch size ({type(error).__name__}: {said}), "
        "so nothing was written. Write code that depends on values, or that fixes the batch size, "
        "in another way; or export .safetensors, which any network can be read from."
    )


# ---------------------------------------------------------------- the model card

CARD = """---
{front}
---

# {network}, pruned

{sentence}

| | before | after |
|---|---|---|
{rows}

## Use

`model.safetensors` holds weights and plan; `plan.json` the channels that were kept, in the numbers
of the original; `config.json` how all this was measured.

```python
import prunelab as pl

model = pl.load_pruned(lambda: {network}(...), "model.safetensors")  # a plain nn.Module
```

The function builds the unpruned architecture, with the arguments that it was built with.
"""


def model_card(card: Mapping[str, Any]) -> str:
    """A README.md for the Hugging Face Hub, from the card of an export."""
    before, after = card["cost"]["before"], card["cost"]["after"]
    seconds = card["latency_seconds"]
    rows = [
        ("multiply-adds", si(before["macs"]), si(after["macs"])),
        ("parameters", si(before["params"]), si(after["params"])),
        (
            f"latency, batch of {seconds['batch']}",
            *(f"{1e3 * seconds[when]:.2f} ms" for when in ("before", "after")),
        ),
        *(
            (f"{split} {_plain(name)}", f"{value:.4f}", f"{card[split]['after'][name]:.4f}")
            for split in ("validation", "test")
            for name, value in card[split]["before"].items()
        ),
    ]
    by = f" by {_plain(card['method'])}" if card["method"] else ""
    moves = f"{card['moves']} move" + "s" * (card["moves"] != 1)
    return CARD.format(
        front=_front_matter(card),
        network=_plain(card["network"]),
        sentence=f"Channels were pruned{by} with prunelab, in {moves}.{_rewritten(card)}",
        rows="\n".join(f"| {' | '.join(row)} |" for row in rows),
    )


def _rewritten(card: Mapping[str, Any]) -> str:
    """Which attributes of the network have other values, if any."""
    names = {name: " ".join(name.replace("`", "'").split()) for name in card["rewritten"]}
    told = ", ".join(f"`{names[name]}` to {value}" for name, value in card["rewritten"].items())
    return f" Attributes that hold widths were set: {told}." if told else ""


def _front_matter(card: Mapping[str, Any]) -> str:
    """YAML, of which JSON's strings, lists and mappings are a part."""
    results = [
        {"type": name, "name": name, "value": value}
        for name, value in card["test"]["after"].items()
    ]
    task = {"type": "image-classification"} if "accuracy" in card["test"]["after"] else {}
    front: dict[str, Any] = {"library_name": "pytorch", "tags": ["prunelab", "pruning", "cnn"]}
    if task:
        data = {"type": "own", "name": "test split"}
        results_of = [{"task": task, "dataset": data, "metrics": results}]
        front["pipeline_tag"] = task["type"]
        front["model-index"] = [{"name": card["network"], "results": results_of}]
    lines = (f"{key}: {json.dumps(value)}" for key, value in front.items())
    return "\n".join(lines).replace("<", "\\u003c")  # some show it as it is


def _plain(text: str) -> str:
    """A name as Markdown that shows it and does nothing: no tag, link, heading or cell."""
    return re.sub(r"([\\`*\[\]|#~])", r"\\\1", escape(" ".join(str(text).split()), quote=False))
