"""Sync module attributes (`in_channels`, `num_features`, `groups` ...) with tensor shapes."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def sync_attributes(module: nn.Module) -> None:
    """Set the width attributes of a module from the shapes of its tensors."""
    _refresh(module)
    if isinstance(module, nn.RNNBase):
        module.input_size = module.get_parameter("weight_ih_l0").shape[1]
    weight = getattr(module, "weight", None)
    sized = weight if isinstance(weight, Tensor) else getattr(module, "running_mean", None)
    if not isinstance(sized, Tensor):
        return
    if isinstance(module, nn.modules.conv._ConvNd):
        outer, inner = (1, 0) if module.transposed else (0, 1)
        if module.groups > 1:
            before = module.in_channels if module.transposed else module.out_channels
            module.groups = module.groups * sized.shape[0] // before
        module.out_channels = sized.shape[outer] * (module.groups if module.transposed else 1)
        module.in_channels = sized.shape[inner] * (1 if module.transposed else module.groups)
    elif isinstance(module, nn.Linear):
        module.out_features, module.in_features = sized.shape
    elif isinstance(module, nn.modules.batchnorm._NormBase):
        module.num_features = sized.shape[0]
    elif isinstance(module, nn.GroupNorm):
        module.num_groups = max(1, module.num_groups * sized.shape[0] // module.num_channels)
        module.num_channels = sized.shape[0]
    elif isinstance(module, (nn.LayerNorm, nn.RMSNorm)):
        module.normalized_shape = tuple(sized.shape)
    elif isinstance(module, nn.PReLU):
        module.num_parameters = sized.shape[0]


def is_bare_norm(module: nn.Module) -> bool:
    """Whether a normalisation module depends on the number of channels and has no tensor."""
    kinds = (nn.GroupNorm, nn.modules.batchnorm._NormBase)
    tensors = [*module._parameters.values(), *module._buffers.values()]
    return isinstance(module, kinds) and all(tensor is None for tensor in tensors)


def set_width(module: nn.Module, width: int) -> None:
    """Set the number of channels of a normalisation module without parameters."""
    if isinstance(module, nn.GroupNorm):
        module.num_groups = max(1, module.num_groups * width // module.num_channels)
        module.num_channels = width
    elif isinstance(module, nn.modules.batchnorm._NormBase):
        module.num_features = width


def _refresh(module: nn.Module) -> None:
    """Recompute a weight that hooks compute before each call (weight norm, pruning masks)."""
    left = vars(module).get("weight")
    if isinstance(left, Tensor):
        with torch.no_grad():
            for hook in module._forward_pre_hooks.values():
                if hasattr(hook, "compute_weight") or hasattr(hook, "apply_mask"):
                    hook(module, ())
