"""One process with small random models of each architecture, compared with transformers."""

import json

import pytest
import torch
from conftest import assert_equal_but_ties, run_offline
from test_one_process import one_process
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache

from ulskip_vllm import MODELS
from ulskip_vllm.pair_export import RECORD, weights_digest

KEPT = [1, 3, 4]  # without the first layer, whose input is the embedding
NEW_TOKENS = 24
CONFIGS = {
    "LlamaForCausalLM": ("llama", {}),
    "MistralForCausalLM": ("mistral", {"sliding_window": 16, "head_dim": 32}),
    "Qwen2ForCausalLM": ("qwen2", {}),
    "Qwen3ForCausalLM": ("qwen3", {"head_dim": 32}),
}


def random_model(architecture):
    torch.manual_seed(3)
    kind, options = CONFIGS[architecture]
    sizes = {
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "vocab_size": 200,
    }
    # Answers do not end early.
    sizes |= dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))
    config = AutoConfig.for_model(
        kind,
        **sizes,
        num_hidden_layers=6,
        initializer_range=0.15,
        max_position_embeddings=256,
        **options,
    )
    config.architectures = [architecture]
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.2)
    return model


def kept_model(model, folder):
    """Save a model and its kept layers as `ulskip export` does, and return the model of the kept
    layers.
    """
    model.save_pretrained(folder / "prefill")
    config = AutoConfig.from_pretrained(folder / "prefill", num_hidden_layers=len(KEPT))
    if getattr(config, "layer_types", None):
        config.layer_types = [model.config.layer_types[i] for i in KEPT]
    kept = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    for part in ("embed_tokens", "norm"):
        getattr(kept.model, part).load_state_dict(getattr(model.model, part).state_dict())
    kept.lm_head.load_state_dict(model.lm_head.state_dict())
    for layer, source in zip(kept.model.layers, KEPT, strict=True):
        layer.load_state_dict(model.model.layers[source].state_dict())
    kept.save_pretrained(folder)
    digests = {"decode": weights_digest(folder), "prefill": weights_digest(folder / "prefill")}
    record = {"num_layers": 6, "kept_layers": KEPT, "prefill": "prefill", "weights_digest": digests}
    (folder / RECORD).write_text(json.dumps(record))
    return kept


@torch.inference_mode()
def answer(model, kept, prompt):
    """Return the tokens of two phases, and the gap between the two highest logits at each of
    them.
    """
    cache, tokens, gaps = DynamicCache(config=model.config), [], []
    logits = model(torch.tensor([prompt]), past_key_values=cache).logits[0, -1]
    cache.layers = [cache.layers[i] for i in KEPT] if kept is not model else cache.layers
    for _ in range(NEW_TOKENS):
        top = logits.topk(2)
        tokens.append(int(top.indices[0]))
        gaps.append(float(top.values[0] - top.values[1]))
        logits = kept(torch.tensor([tokens[-1:]]), past_key_values=cache).logits[0, -1]
    return tokens, gaps


@pytest.mark.parametrize("architecture", MODELS)
def test_the_tokens_are_those_of_transformers(architecture, tmp_path):
    model = random_model(architecture)
    kept = kept_model(model, tmp_path)
    lengths = torch.randint(2, 60, (20,)).tolist()
    prompts = [torch.randint(3, 200, (length,)).tolist() for length in lengths]
    tokens, gaps = zip(*(answer(model, kept, prompt) for prompt in prompts), strict=True)
    assert (
        sum(
            answer(model, model, prompt)[0] != found
            for prompt, found in zip(prompts, tokens, strict=True)
        )
        > 9
    )
    data = {"prompt_ids": prompts, "max_new_tokens": NEW_TOKENS}
    small = {
        "max_num_batched_tokens": 40,
        "max_num_seqs": 8,
        "max_model_len": 96,
        "skip_tokenizer_init": True,
    }
    done, result = run_offline(tmp_path, data, **one_process(tmp_path, architecture), **small)
    assert result, done.stderr[-3000:]
    window = ", sliding window" if architecture.startswith("Mistral") else ""
    assert_equal_but_ties(
        result["tokens"],
        {"tokens": tokens, "gaps": gaps},
        f"random {architecture}{window}: one process",
    )
