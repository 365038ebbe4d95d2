"""The attention kernel of decode steps and of checks of drafts on a CPU, as an attention
implementation of transformers.
"""

import copy
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedConfig, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from ulskip_cli.engines.torch import cpu_kernels
from ulskip_cli.inference import shallow_view

NAME = "ulskip_decode"
# The most queries of a sequence with which the kernel is faster than torch's call
# (benchmarks/attention.py), if heads share keys and if they do not.
MAX_SHARED, MAX_OWN = 8, 3
_OTHER_PRODUCTS = ("softcap", "position_bias", "s_aux")  # options that change the scores


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Attend with our kernel if there are few queries per sequence, else with torch's
    `scaled_dot_product_attention`.

    `query` is [batch, heads, queries, head_dim], `key` and `value` [batch, kv_heads, length,
    head_dim]; the result is [batch, queries, heads, head_dim].
    """
    tensors = (query, key, value) if attention_mask is None else (query, key, value, attention_mask)
    most = MAX_SHARED if key.shape[1] < query.shape[1] else MAX_OWN
    fits = (
        (query.shape[2] == 1 or (attention_mask is not None and query.shape[2] <= most))
        and key.shape == value.shape
        and query.dtype in cpu_kernels.DTYPES
        and all(tensor.dtype == query.dtype for tensor in tensors)
        and not (torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors))
        and not options.get("dropout")
        and all(options.get(name) is None for name in _OTHER_PRODUCTS)
    )
    if not fits:
        attended: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, **options
        )
        return attended
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    return cpu_kernels.attention(query, key, value, attention_mask, scale), None


AttentionInterface.register(NAME, attend)


def with_decode_attention(view: PreTrainedModel) -> PreTrainedModel:
    """Return a copy of a view whose attention layers use the kernel where they used `sdpa`; the
    kernel must be loaded.
    """
    configs: dict[
        int, PreTrainedConfig
    ] = {}  # the copy of each config, by id, because modules share configs

    def change(module: nn.Module) -> PreTrainedConfig | None:
        config: Any = module.__dict__.get("config")
        if (
            isinstance(module, PreTrainedModel)
            or getattr(config, "_attn_implementation", None) != "sdpa"
        ):
            return None  # models keep their config, because they make masks for `sdpa`
        if id(config) not in configs:
            configs[id(config)] = copy.deepcopy(config)
            configs[id(config)]._attn_implementation = NAME
        return configs[id(config)]

    changed = shallow_view.with_configs(view, change)
    assert isinstance(changed, PreTrainedModel)
    return changed
