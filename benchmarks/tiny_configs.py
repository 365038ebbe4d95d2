"""Tiny random instances of all causal LMs of transformers, from their config classes and a table of
small sizes.
"""

import dataclasses

import torch
from transformers import AutoModelForCausalLM, GenerationConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

NUM_LAYERS = 6
VOCAB_SIZE = 101
# The names that config classes give to a field, by the small value that they get.
_BY_SIZE = """
6: num_hidden_layers n_layer n_layers num_layers decoder_layers num_decoder_layers encoder_layers
32: hidden_size n_embd d_model dim embedding_size word_embed_proj_dim emb_dim lm_input_size
32: dense_intermediate_size
48: intermediate_size n_inner ffn_dim d_ff dff decoder_ffn_dim encoder_ffn_dim ffn_hidden_size
48: feed_forward_size
48: block_ff_dim dim_ff intermediate_size_mlp
4: num_attention_heads n_head n_heads num_heads decoder_attention_heads num_experts
4: num_local_experts
4: n_routed_experts moe_num_experts num_experts_per_layer sliding_window attention_chunk_size
4: window_size
4: attention_window_size linear_num_value_heads num_lm_heads swa_num_attention_heads
4: sliding_window_size
2: num_key_value_heads swa_num_key_value_heads num_kv_heads num_experts_per_tok moe_k moe_topk
2: experts_per_token
2: moe_num_experts_per_tok linear_num_key_heads first_k_dense_replace num_dense_layers index_n_heads
2: zero_expert_num mamba_n_groups n_groups mamba_num_ngroups
8: head_dim v_head_dim d_rel rel_extent loop_gate_rank qk_rope_head_dim qk_nope_head_dim
8: linear_key_head_dim
8: linear_value_head_dim index_head_dim dim_head mamba_d_state state_size ssm_state_size
8: mamba_d_head
8: mamba_head_dim swa_head_dim rotary_dim global_head_dim kv_channels
16: moe_intermediate_size shared_expert_intermediate_size moe_shared_expert_intermediate_size
16: q_lora_rank
16: kv_lora_rank qk_head_dim expert_ffn_hidden_size expert_ffn_size shared_intermediate_size
16: conv_dim
16: mamba_expand_size lru_width_
1: n_group topk_group n_shared_experts num_shared_experts
128: max_position_embeddings n_positions n_ctx max_seq_len max_sequence_length max_target_positions
101: vocab_size decoder_vocab_size
0: pad_token_id num_kv_shared_layers hidden_size_per_layer_input num_nextn_predict_layers
0: num_mtp_layers
"""
_LINES = [line.split(": ") for line in _BY_SIZE.strip().splitlines()]
_SIZES = {key: int(size) for size, keys in _LINES for key in keys.split()} | {
    "bos_token_id": 1,
    "eos_token_id": None,
    "initializer_range": 0.3,
    "use_sliding_window": True,
    "max_window_layers": 3,
    "is_decoder": True,
}
# Further settings by model type; of composite configs, those of the text model.
_MAMBA = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_expand": 2}
_CONV = ["conv", "conv", "full_attention"] * 2
_EXTRA_SETTINGS: dict[str, dict] = {
    "bamba": {**_MAMBA, "attn_layer_indices": [2, 5]},
    "granitemoehybrid": {
        **_MAMBA,
        "layer_types": ["linear_attention", "linear_attention", "full_attention"] * 2,
    },
    "falcon_h1": {**_MAMBA, "mamba_d_ssm": 64},
    "dbrx": {
        "attn_config": {"rope_theta": 10000.0, "kv_n_heads": 2, "clip_qkv": 8},
        "ffn_config": {"ffn_hidden_size": 48, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "gpt_neo": {"attention_types": [[["global", "local"], 3]]},
    "lfm2": {"layer_types": _CONV},
    "lfm2_moe": {"layer_types": _CONV},
    "mamba2": {"num_heads": 8},
    "zamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "zamba2": {"layer_types": ["linear_attention", "hybrid"] * 3, "hybrid_layer_ids": [1, 3, 5]},
    "zaya": {"num_experts_per_tok": 1},
    "dots3_note": {"num_key_value_heads": 4},
    "gemma3n_text": {"hidden_size_per_layer_input": 8},
    "moshi": {"sliding_window": 64},
    "jamba": {"attn_layer_period": 3, "attn_layer_offset": 2},
    "kimi_linear": {"layer_types": ["linear_attention", "linear_attention", "full_attention"] * 2},
    "hy_v4": {"indexer_types": ["full", "full", "full", "shared", "full", "shared"]},
    "cohere_compass_text": {
        "rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 10000.0}}
    },
    "dory": {"n_input_layers": 2, "n_output_layers": 2, "sliding_window": 64},
    "inkling2_text": {"n_layers_per_attn_res_block": 2, "unpadded_vocab_size": VOCAB_SIZE},
    "inkling2_loop_text": {
        "n_layers_per_attn_res_block": 2,
        "unpadded_vocab_size": VOCAB_SIZE,
        "loop_layer_index_start": 2,
        "loop_layer_index_end": 4,
    },
    "qwen4_exp": {
        "indexer_n_heads": 2,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 8,
        "indexer_budget": 4,
        "indexer_compress_ratio": 2,
        "hc_count": 2,
        "hc_lowrank": 8,
        "ple_layer_ids": [2, 3],
        "eos_token_id": 2,
        "ngram_vocab_size_base": 50,
        "split_ngram_parts": 2,
        "heads_per_ngram": 2,
        "make_ngram_vocab_size_divisible_by": 2,
    },
    "xlstm": {"qk_dim_factor": 1.0, "v_dim_factor": 1.0},
    "xmod": {"default_language": "en_XX"},
    "nemotron_h": {"layers_block_type": ["mamba", "moe", "attention"] * 2},
}


def model_types():
    """Return the model types that use each class of a causal LM, by the name of the class. The
    first one is the class's own, with which it is checked: `llama` of LlamaForCausalLM.
    """
    types_by_class = {}
    for model_type, name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.items():
        types_by_class.setdefault(name, []).append(model_type)
    return {
        name: sorted(types, key=lambda type_: not name.lower().startswith(type_.replace("_", "")))
        for name, types in types_by_class.items()
    }


def build_config(model_type):
    """Make a config of tiny sizes; of a composite config, such as a multimodal one, the sizes are
    those of the text model's part.
    """
    config_class = CONFIG_MAPPING[model_type]
    nested = [
        key
        for key in ("text_config", "decoder_config")
        if key in getattr(config_class, "sub_configs_defaults", {})
    ]
    extra = dict(_EXTRA_SETTINGS.get(model_type, {}))
    if nested:
        default = config_class()
        sizes = {key: {**_sizes(type(getattr(default, key))), **extra} for key in nested}
        return config_class(**sizes)
    return config_class(**{**_sizes(config_class), **extra})


def build(model_type):
    """Make a float32 model in evaluation mode whose random weights are the same in every call and
    all matter.
    """
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(build_config(model_type), dtype=torch.float32).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # Sinusoidal position tables stay as they are.
            if not (parameter.is_floating_point() and parameter.requires_grad):
                continue
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim >= 2 and "A_log" not in name:
                parameter.copy_(noise * 0.25)
            else:  # norms, biases and decays of states stay near their first values
                parameter.add_(noise * 0.1)
    model.generation_config = GenerationConfig(pad_token_id=0)
    return model


def _sizes(config_class):
    """Return the small sizes for the fields of a config class. `attribute_map` has its other names
    of fields, which are used only for fields that the class lacks.
    """
    mapped = getattr(config_class, "attribute_map", {})
    known = {field.name for field in dataclasses.fields(config_class)} | set(mapped)
    sizes = {
        key: size
        for key, size in _SIZES.items()
        if key in known and not (key in mapped and mapped[key] in known)
    }
    # MLA computes the keys of all heads from one latent, so it has as many as attention heads.
    return sizes | {"num_key_value_heads": 4} if "kv_lora_rank" in sizes else sizes
