"""Tiny random models of many architectures, and an independent, uncached reference of layer skipping."""

import torch
import transformers

from ulskip_cli.inference.shallow_view import StageView

NUM_LAYERS = 6
VOCAB_SIZE = 101
NEAR_TIE = 1e-4
NEW_STYLE = {
    "num_hidden_layers": NUM_LAYERS, "hidden_size": 32, "intermediate_size": 32, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": VOCAB_SIZE, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": None,
    "initializer_range": 0.3, "max_position_embeddings": 128,
}  # fmt: skip
OLD_STYLE = {
    "n_layer": NUM_LAYERS, "n_head": 4, "vocab_size": VOCAB_SIZE, "pad_token_id": 0, "bos_token_id": 1,
    "eos_token_id": None, "initializer_range": 0.3,
}  # fmt: skip
ARCHITECTURES = {
    "llama": ("Llama", NEW_STYLE),
    "smollm3": ("SmolLM3", NEW_STYLE),  # rope on some layers only
    "mistral": ("Mistral", {**NEW_STYLE, "sliding_window": 4}),
    "gemma2": ("Gemma2", {**NEW_STYLE, "head_dim": 8, "sliding_window": 4}),
    "qwen2": ("Qwen2", {**NEW_STYLE, "use_sliding_window": True, "sliding_window": 4, "max_window_layers": 3}),
    "mixtral": ("Mixtral", {**NEW_STYLE, "num_local_experts": 4, "num_experts_per_tok": 2}),
    "bloom": ("Bloom", {**OLD_STYLE, "hidden_size": 32}),
    "gpt2": ("GPT2", {**OLD_STYLE, "n_embd": 32, "n_positions": 128, "scale_attn_by_inverse_layer_idx": True}),
}


def build_model(name):
    """Make a random float32 model in evaluation mode with equal weights in every call."""
    family, options = ARCHITECTURES[name]
    torch.manual_seed(0)
    head = "GPT2LMHeadModel" if family == "GPT2" else f"{family}ForCausalLM"
    return getattr(transformers, head)(getattr(transformers, f"{family}Config")(**options)).eval()


def stack_of(model):
    """Return the decoder layers by their attribute names, without the code under test."""
    body = getattr(model, "model", None) or model.transformer
    return getattr(body, "layers", None) or body.h


def reference_logits(model, ids, mask, prompt_len, kept):
    """Run all layers on the prompt and the kept layers on later positions, without a cache; [batch, len, vocab].

    `kept` are the layers of all steps, or of stages: {first step: layers}.
    """
    stages = kept if isinstance(kept, dict) else {0: kept}
    kept_at = [stages[max(first for first in stages if first <= step)] for step in range(ids.shape[1] - prompt_len)]

    def where_kept(i):
        runs = torch.tensor([True] * prompt_len + [i in layers for layers in kept_at])[:, None]

        def mixed(module, args, kwargs, output):
            before = args[0] if args else kwargs["hidden_states"]
            after = output[0] if isinstance(output, tuple) else output
            chosen = torch.where(runs, after, before)
            return (chosen, *output[1:]) if isinstance(output, tuple) else chosen

        return mixed

    hooks = [layer.register_forward_hook(where_kept(i), with_kwargs=True) for i, layer in enumerate(stack_of(model))]
    try:
        options = (
            {} if isinstance(model, transformers.BloomForCausalLM) else {"position_ids": (mask.cumsum(-1) - 1).clamp(min=0)}
        )
        with torch.no_grad():
            return model(ids, attention_mask=mask, use_cache=False, **options).logits
    finally:
        for hook in hooks:
            hook.remove()


def reference_greedy(model, ids, mask, kept, steps):
    """Generate greedy tokens with the reference, [batch, steps]."""
    prompt_len = ids.shape[1]
    for _ in range(steps):
        token = reference_logits(model, ids, mask, prompt_len, kept)[:, -1].argmax(-1, keepdim=True)
        ids, mask = torch.cat([ids, token], 1), torch.cat([mask, torch.ones_like(token)], 1)
    return ids[:, prompt_len:]


def one_stage(view, kept):
    """Make the stage that uses one view for all decode steps."""
    return [StageView(0, view, tuple(kept))]


def random_ids(batch, length, seed=0):
    """Draw random ids of ordinary tokens, [batch, length]."""
    return torch.randint(2, VOCAB_SIZE, (batch, length), generator=torch.Generator().manual_seed(seed))


def batch(padded):
    """Draw token ids and the attention mask of five prompts, of which two are padded on the left if `padded`."""
    ids = random_ids(5, 9)
    mask = torch.ones_like(ids)
    if padded:
        mask[1, :3] = mask[3, :6] = 0
    return ids * mask, mask


def is_near_tie(model, prompt, one, other, kept=range(NUM_LAYERS)):
    """Return True if the best two logits of the reference are within NEAR_TIE where two continuations first differ."""
    at = next(i for i, pair in enumerate(zip(one, other, strict=False)) if pair[0] != pair[1])
    whole = torch.cat([prompt, torch.tensor(one[:at], dtype=torch.long)])[None]
    best = reference_logits(model, whole, torch.ones_like(whole), len(prompt), kept)[0, -1].topk(2).values
    return float(best[0] - best[1]) < NEAR_TIE
