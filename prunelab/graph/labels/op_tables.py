"""PyTorch operations, grouped by their effect on channels."""

from __future__ import annotations

import torch

aten = torch.ops.aten

VIEWS = {  # the result shares the memory of the first input
    aten.t, aten.transpose, aten.permute, aten.view, aten._unsafe_view, aten.reshape,
    aten.unsqueeze, aten.squeeze, aten.expand, aten.slice, aten.select, aten.split,
    aten.split_with_sizes, aten.unbind, aten.alias, aten.detach, aten.unfold, aten.diagonal,
    aten._reshape_alias, aten.view_as_real, aten.view_as_complex, aten.as_strided, aten.real,
    aten.imag,
}  # fmt: skip
CASTS = {aten._to_copy, aten.clone, aten.contiguous, aten.detach, aten.alias, aten.lift_fresh}
RESHAPES = {aten.view, aten._unsafe_view, aten.reshape, aten._reshape_alias}
MOVES = {  # every element stays in its channel, whichever axis holds the channels
    aten.permute, aten.transpose, aten.t, aten.expand, aten.squeeze, aten.unsqueeze, aten.alias,
    aten.repeat, aten.flip,
}  # fmt: skip
KEEPS = {  # one input; the output has the same shape and channels
    aten._to_copy, aten.detach, aten.clone, aten.contiguous, aten.lift_fresh,
    aten.native_dropout, aten.empty_like, aten.zeros_like, aten.ones_like, aten.rand_like,
    aten.randn_like, aten.full_like, aten.bernoulli, aten.bernoulli_,
    aten.uniform_, aten.normal_, aten.hardswish, aten.hardswish_, aten.log_sigmoid_forward,
    aten.zero_, aten.fill_, aten.dropout, aten.rrelu_with_noise, aten.rrelu_with_noise_functional,
    aten.fake_quantize_per_tensor_affine_cachemask,
}  # fmt: skip
UNIFORM = {  # created from a size: no entry depends on its channel
    aten.empty, aten.zeros, aten.ones, aten.full, aten.rand, aten.randn, aten.new_empty,
    aten.new_zeros, aten.new_ones, aten.new_full, aten.scalar_tensor,
}  # fmt: skip
DRAWS = {aten.bernoulli, aten.bernoulli_, aten.uniform_, aten.normal_, aten.zero_, aten.fill_}
ELEMENTWISE = {  # pointwise, but without PyTorch's tag
    aten._prelu_kernel, aten.fake_quantize_per_channel_affine_cachemask, aten.glu_jvp,
    aten.complex, aten.polar,
}  # fmt: skip
RESIZES = {  # act on each channel's plane; the value is its number of trailing axes
    aten.max_pool2d_with_indices: 2, aten.max_pool3d_with_indices: 3, aten.avg_pool1d: 1,
    aten.avg_pool2d: 2, aten.avg_pool3d: 3, aten._adaptive_avg_pool2d: 2,
    aten._adaptive_avg_pool3d: 3, aten.adaptive_max_pool2d: 2, aten.adaptive_max_pool3d: 3,
    aten.adaptive_avg_pool2d: 2, aten.fractional_max_pool2d: 2, aten.fractional_max_pool3d: 3,
    aten.upsample_nearest1d: 1, aten.upsample_nearest2d: 2, aten.upsample_nearest3d: 3,
    aten._upsample_nearest_exact1d: 1, aten._upsample_nearest_exact2d: 2,
    aten._upsample_nearest_exact3d: 3, aten.upsample_linear1d: 1, aten.upsample_bilinear2d: 2,
    aten._upsample_bilinear2d_aa: 2, aten.upsample_bicubic2d: 2, aten._upsample_bicubic2d_aa: 2,
    aten.upsample_trilinear3d: 3, aten.reflection_pad1d: 1, aten.reflection_pad2d: 2,
    aten.reflection_pad3d: 3, aten.replication_pad1d: 1, aten.replication_pad2d: 2,
    aten.replication_pad3d: 3, aten.grid_sampler_2d: 2, aten.grid_sampler_3d: 3,
    aten._grid_sampler_2d_cpu_fallback: 2,
}  # fmt: skip
REDUCES = {
    aten.mean, aten.sum, aten.amax, aten.amin, aten.var, aten.std, aten.linalg_vector_norm,
    aten.var_mean, aten.std_mean, aten.norm, aten.prod, aten.logsumexp, aten.max, aten.min,
    aten.any, aten.all, aten.nansum, aten.median, aten.argmax, aten.argmin, aten.aminmax,
    aten.kthvalue, aten.mode, aten.nanmedian,
}  # fmt: skip
STATISTICS = {  # of about the same size for any number of elements
    aten.mean, aten.amax, aten.amin, aten.var, aten.std, aten.linalg_vector_norm, aten.var_mean,
    aten.std_mean, aten.norm, aten.max, aten.min,
}  # fmt: skip
ALONG = {  # work along one axis, `dim`, and keep the others
    aten._softmax, aten._log_softmax, aten.cumsum, aten.cumprod, aten.sort, aten.logcumsumexp,
    aten._safe_softmax, aten.argsort, aten.topk, aten.cummax, aten.cummin,
}  # fmt: skip
PICKS = {aten.index, aten.index_select, aten.masked_select}
UNPOOLS = {aten.max_unpool2d: 2, aten.max_unpool3d: 3}  # the value is as in RESIZES
PLACES = {  # take or write elements at positions along `dim`, given for each element
    aten.gather, aten.scatter, aten.scatter_, aten.scatter_add, aten.scatter_add_,
    aten.scatter_reduce, aten.scatter_reduce_,
}  # fmt: skip
NORMALISES_BATCH = {
    aten.native_batch_norm, aten._native_batch_norm_legit, aten.cudnn_batch_norm,
    aten._native_batch_norm_legit_no_training, aten._batch_norm_with_update,
    aten.miopen_batch_norm, aten._batch_norm_no_update, aten.batch_norm,
}  # fmt: skip
ATTENTION = {
    aten._scaled_dot_product_flash_attention_for_cpu, aten._scaled_dot_product_flash_attention,
    aten._scaled_dot_product_efficient_attention, aten._scaled_dot_product_cudnn_attention,
    aten._scaled_dot_product_attention_math, aten.scaled_dot_product_attention,
    aten._scaled_dot_product_attention_math_for_mps,
}  # fmt: skip
PRODUCTS = {aten.mm, aten.bmm, aten.addmm, aten.baddbmm, aten.mv, aten.dot, aten.matmul, aten.addmv}
SCALES = {  # zero entries stay zero
    aten.mul, aten.div, aten.neg, aten.mul_, aten.div_, aten.abs, aten.round, aten.sign, aten.trunc,
    aten.tanh, aten.relu, aten.square,
    aten.fake_quantize_per_tensor_affine_cachemask, aten.fake_quantize_per_channel_affine_cachemask,
}  # fmt: skip
SUMS = {aten.add, aten.add_, aten.sub, aten.sub_}
CONTRACTIONS = {aten.mv, aten.dot, aten.vdot}  # with a vector
