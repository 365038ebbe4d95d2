"""Tiny random instances of whatever causal LMs transformers knows, from its own config classes and a table of small sizes."""

import dataclasses

import torch
from transformers import AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

NUM_LAYERS = 6
VOCAB_SIZE = 101
_BY_SIZE = {
    NUM_LAYERS: "num_hidden_layers n_layer n_layers num_layers decoder_layers num_decoder_layers",
    32: "hidden_size n_embd d_model dim embedding_size word_embed_proj_dim emb_dim lm_input_size dense_intermediate_size",
    48: "intermediate_size n_inner ffn_dim d_ff dff decoder_ffn_dim encoder_ffn_dim ffn_hidden_size feed_forward_size "
    "block_ff_dim dim_ff intermediate_size_mlp",
    4: "num_attention_heads n_head n_heads num_heads decoder_attention_heads num_experts num_local_experts n_routed_experts "
    "moe_num_experts num_experts_per_layer sliding_window attention_chunk_size window_size attention_window_size "
    "linear_num_value_heads num_lm_heads",
    2: "num_key_value_heads num_kv_heads num_experts_per_tok moe_k moe_topk experts_per_token moe_num_experts_per_tok "
    "linear_num_key_heads first_k_dense_replace num_dense_layers index_n_heads zero_expert_num encoder_layers "
    "mamba_n_groups n_groups mamba_num_ngroups",
    8: "head_dim v_head_dim qk_rope_head_dim qk_nope_head_dim linear_key_head_dim linear_value_head_dim index_head_dim "
    "dim_head mamba_d_state state_size ssm_state_size mamba_d_head mamba_head_dim swa_head_dim rotary_dim "
    "global_head_dim kv_channels",
    16: "moe_intermediate_size shared_expert_intermediate_size moe_shared_expert_intermediate_size q_lora_rank kv_lora_rank "
    "qk_head_dim expert_ffn_hidden_size expert_ffn_size shared_intermediate_size conv_dim mamba_expand_size lru_width_",
    1: "n_group topk_group n_shared_experts num_shared_experts",
    128: "max_position_embeddings n_positions n_ctx max_seq_len max_sequence_length max_target_positions",
    VOCAB_SIZE: "vocab_size decoder_vocab_size",
    0: "pad_token_id num_kv_shared_layers hidden_size_per_layer_input num_nextn_predict_layers num_mtp_layers",
}
_SIZES = {key: size for size, keys in _BY_SIZE.items() for key in keys.split()} | {
    "bos_token_id": 1, "eos_token_id": None, "initializer_range": 0.3, "use_sliding_window": True, "max_window_layers": 3,
    "is_decoder": True,
}  # fmt: skip
# What a class wants besides, by model type; of several configs in one, those of the text.
_BESIDES: dict[str, dict] = {}


def model_types():
    """Class names of all causal LMs, each with the model types that it serves."""
    found = {}
    for model_type, name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.items():
        found.setdefault(name, []).append(model_type)
    return {name: sorted(kinds, key=lambda kind: not name.lower().startswith(kind.replace("_", ""))) for name, kinds in found.items()}


def build_config(model_type):
    """A config of tiny sizes."""
    kind = CONFIG_MAPPING[model_type]
    nested = [key for key in ("text_config", "decoder_config") if key in getattr(kind, "sub_configs_defaults", {})]
    besides = dict(_BESIDES.get(model_type, {}))
    if nested:
        default = kind()
        return kind(**{key: {**_sizes(type(getattr(default, key))), **besides} for key in nested})
    return kind(**{**_sizes(kind), **besides})


def build(model_type):
    """A random model in evaluation mode, float32, the same in every call, in which every weight counts."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(build_config(model_type), dtype=torch.float32).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not parameter.is_floating_point():
                continue
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim >= 2 and "A_log" not in name:
                parameter.copy_(noise * 0.25)
            else:
                parameter.add_(noise * 0.1)
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    return model


def _sizes(kind):
    """Those of the small sizes that a config class has."""
    known = {field.name for field in dataclasses.fields(kind)} | set(getattr(kind, "attribute_map", {}))
    mapped = getattr(kind, "attribute_map", {})
    return {key: size for key, size in _SIZES.items() if key in known and not (key in mapped and mapped[key] in known)}
