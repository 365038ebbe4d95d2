"""Tiny random models, and an independent, uncached reference of layer skipping."""

from contextlib import contextmanager
from dataclasses import replace

import torch
import transformers
from torch.nn import functional

from ulskip_cli.core.answer import Ends, Request
from ulskip_cli.core.config import compose
from ulskip_cli.core.config_schema import DecodingConfig, ModelConfig
from ulskip_cli.core.correction import NO_PATCHES, PATCHES
from ulskip_cli.core.engines import engine_named
from ulskip_cli.core.model_metadata import ModelFolder, ModelMetadata
from ulskip_cli.core.schedule import Stage
from ulskip_cli.engines.base import Prompts, Views
from ulskip_cli.engines.decoder import Decoder
from ulskip_cli.inference.shallow_view import StageView
from ulskip_cli.inference.skip_adapter import Lora, SkipAdapter
from ulskip_cli.inference.teacher_forcing import encode_prompt, predict_response
from ulskip_cli.strategies.plan import make_plan

NUM_LAYERS = 6
VOCAB_SIZE = 101
NEAR_TIE = 1e-4
GREEDY = DecodingConfig(name="greedy")
MANY_ENDS = [7, 20, 33, 40, 50, 60, 70, 80]  # so that most answers end early
ENDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": None}
COMMON = {"vocab_size": VOCAB_SIZE, "initializer_range": 0.3, **ENDS}
OLD_STYLE = {"n_layer": NUM_LAYERS, "n_head": 4, **COMMON}
SIZES = {"num_hidden_layers": NUM_LAYERS, "hidden_size": 32, "intermediate_size": 32}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2}
NEW_STYLE = {**SIZES, **HEADS, "max_position_embeddings": 128, **COMMON}
ARCHITECTURES = {
    "llama": ("Llama", NEW_STYLE),
    "qwen3": ("Qwen3", {**NEW_STYLE, "head_dim": 12}),  # norms of queries and keys
    "smollm3": ("SmolLM3", NEW_STYLE),  # rope on some layers only
    "mistral": ("Mistral", {**NEW_STYLE, "sliding_window": 4}),
    "gemma2": ("Gemma2", {**NEW_STYLE, "head_dim": 8, "sliding_window": 4}),
    "qwen2": (
        "Qwen2",
        {**NEW_STYLE, "use_sliding_window": True, "sliding_window": 4, "max_window_layers": 3},
    ),
    "mixtral": ("Mixtral", {**NEW_STYLE, "num_local_experts": 4, "num_experts_per_tok": 2}),
    "bloom": ("Bloom", {**OLD_STYLE, "hidden_size": 32}),
    "gpt2": (
        "GPT2",
        {**OLD_STYLE, "n_embd": 32, "n_positions": 128, "scale_attn_by_inverse_layer_idx": True},
    ),
}
NATIVE_ARCHITECTURES = ["llama", "mistral", "qwen2", "qwen3", "smollm3"]


def build_model(name):
    """Make a random float32 model in evaluation mode with equal weights in every call."""
    family, options = ARCHITECTURES[name]
    torch.manual_seed(0)
    head = "GPT2LMHeadModel" if family == "GPT2" else f"{family}ForCausalLM"
    return getattr(transformers, head)(getattr(transformers, f"{family}Config")(**options)).eval()


def hf(path, **options):
    """Return the settings of a saved model."""
    return ModelConfig(name="hf", source="hf", path=str(path), **options)


def with_each(kinds, name="llama"):
    """Pair the first kind with every architecture, and the other kinds with one."""
    first, *others = kinds
    return [(each, first) for each in sorted(ARCHITECTURES)] + [(name, kind) for kind in others]


def stack_of(model):
    """Return the decoder layers by their attribute names, without the code under test."""
    body = getattr(model.base_model, "decoder", model.base_model)
    return getattr(body, "layers", None) or body.h


def reference_logits(model, ids, mask, prompt_len, kept, patches=None, linears=None):
    """Run all layers on the prompt and the kept layers on later positions, without a cache; [batch,
    len, vocab].

    `kept` are the layers of all steps, or of stages: {first step: layers}. At later positions,
    `patches` change the state in front of a layer, or behind the last one: {layer: function}, or
    {first step: {layer: function}} of stages; `linears` change the output of linear layers:
    {(layer, path): function of input and output}.
    """
    stages = kept if isinstance(kept, dict) else {0: kept}
    corrected = (patches or {}) if isinstance(kept, dict) else {0: patches or {}}
    steps = range(ids.shape[1] - prompt_len)
    first_steps = [max(first for first in stages if first <= step) for step in steps]
    layers = stack_of(model)

    def where(chosen):
        decoded = [chosen(first) for first in first_steps]
        return torch.tensor([False] * prompt_len + decoded)[:, None]

    def patched(i, state):
        for first, changes in corrected.items():
            if i in changes:
                chosen = where(lambda step, first=first: step == first)
                state = torch.where(chosen, changes[i](state), state)
        return state

    def enter(i):
        def patch(module, args, kwargs):
            if args:
                return (patched(i, args[0]), *args[1:]), kwargs
            return args, {**kwargs, "hidden_states": patched(i, kwargs["hidden_states"])}

        return patch

    def leave(i):
        skips = where(lambda first: i not in stages[first])

        def mixed(layer, args, kwargs, output):
            states = output[0] if isinstance(output, tuple) else output
            entered = args[0] if args else kwargs["hidden_states"]
            states = torch.where(skips, entered, states)
            if layer is layers[-1]:
                states = patched(len(layers), states)
            return (states, *output[1:]) if isinstance(output, tuple) else states

        return mixed

    def change(function):
        decoded = where(lambda first: True)
        return lambda module, args, output: torch.where(decoded, function(args[0], output), output)

    hooks = []
    for i, layer in enumerate(layers):
        hooks.append(layer.register_forward_pre_hook(enter(i), with_kwargs=True))
        hooks.append(layer.register_forward_hook(leave(i), with_kwargs=True))
    for (i, path), function in (linears or {}).items():
        hooks.append(layers[i].get_submodule(path).register_forward_hook(change(function)))
    try:
        options = {"position_ids": (mask.cumsum(-1) - 1).clamp(min=0)}
        if isinstance(model, transformers.BloomForCausalLM):
            options = {}
        with torch.no_grad():
            return model(ids, attention_mask=mask, use_cache=False, **options).logits
    finally:
        for hook in hooks:
            hook.remove()


def layer_states(model, ids, replaced=None):
    """Run the full model; return the input of every layer and the output of the last one.
    `replaced` is a layer, a position and the states that the layer reads from there on.
    """
    layers, states, hooks = stack_of(model), {}, []

    def before(index):
        def hook(module, args, kwargs):
            hidden = args[0] if args else kwargs.pop("hidden_states")
            if replaced and replaced[0] == index:
                hidden = torch.cat([hidden[:, : replaced[1]], replaced[2]], 1)
            states[index] = hidden
            return (hidden, *args[1:]), kwargs

        return hook

    def after(module, args, output):
        states[len(layers)] = output[0] if isinstance(output, tuple) else output

    for index, layer in enumerate(layers):
        hooks.append(layer.register_forward_pre_hook(before(index), with_kwargs=True))
    hooks.append(layers[-1].register_forward_hook(after))
    with torch.no_grad():
        model(ids)
    for hook in hooks:
        hook.remove()
    return states


def reference_greedy(model, ids, mask, kept, steps, **corrections):
    """Generate greedy tokens with the reference, [batch, steps]."""
    prompt_len = ids.shape[1]
    for _ in range(steps):
        logits = reference_logits(model, ids, mask, prompt_len, kept, **corrections)
        token = logits[:, -1].argmax(-1, keepdim=True)
        ids, mask = torch.cat([ids, token], 1), torch.cat([mask, torch.ones_like(token)], 1)
    return ids[:, prompt_len:]


def plan_for(*overrides, depth=NUM_LAYERS):
    """Make the plan of a configuration for a model of `depth` layers."""
    return make_plan(compose(list(overrides)), ModelMetadata(depth, None, None))


def decoder_for(model, *overrides, adapter=None, engine=None):
    """Return a decoder of a tiny model with the plan of a configuration."""
    plan = plan_for(*overrides, depth=model.config.num_hidden_layers)
    return Decoder(Views.of(model, plan, adapter), engine)


def in_engine(decoder, name):
    """Return a decoder of the same views in another engine."""
    return Decoder(decoder.views, engine_named(name))


def request_for(model, length, decoding=GREEDY, **options):
    """Return how prompts are answered until the ends that a model has now."""
    return Request(decoding, length, ends=Ends.of(model), **options)


def generate(decoder, ids, mask, length, decoding=GREEDY, **options):
    """Generate for one batch."""
    request = request_for(decoder.views.model, length, decoding, **options)
    return decoder.generate(Prompts(ids, mask), request)


def reference_response(model, batch, kept, **corrections):
    """Return the reference's logits [batch, response_len, vocab] of the responses of a batch."""
    ids = torch.cat([batch["prompt_ids"], batch["response_ids"]], 1)
    mask = torch.cat([batch["prompt_mask"], torch.ones_like(batch["response_ids"])], 1)
    prompt_len = batch["prompt_ids"].shape[1]
    logits = reference_logits(model, ids, mask, prompt_len, kept, **corrections)
    return logits[:, prompt_len - 1 : -1]


def reference_loss(model, batch, kept, **corrections):
    """Return the reference's mean cross-entropy of the labels of a batch."""
    logits = reference_response(model, batch, kept, **corrections)
    return functional.cross_entropy(logits.flatten(0, 1), batch["labels"].flatten())


def reference_divergence(model, batch, kept, **corrections):
    """Return the reference's mean divergence from the full model at the labels of a batch."""
    student = reference_response(model, batch, kept, **corrections)[batch["labels"] != -100]
    teacher = reference_response(model, batch, range(NUM_LAYERS))[batch["labels"] != -100]
    ours, theirs = student.log_softmax(-1), teacher.log_softmax(-1)
    return functional.kl_div(ours, theirs, reduction="batchmean", log_target=True)


@contextmanager
def unchanged(model):
    """Check that the weights and the logits of a model are bit-identical behind the block."""
    ids, weights = random_ids(2, 6), {key: one.clone() for key, one in model.state_dict().items()}
    with torch.no_grad():
        logits = model(ids).logits
    yield
    assert model.state_dict().keys() == weights.keys()
    assert all(torch.equal(tensor, weights[key]) for key, tensor in model.state_dict().items())
    assert not any(part._forward_hooks for part in model.modules())
    with torch.no_grad():
        assert torch.equal(model(ids).logits, logits)


def one_stage(view, kept):
    """Make the stage that uses one view for all decode steps."""
    return [StageView(0, view, tuple(kept))]


def random_ids(batch, length, seed=0):
    """Draw random ids of ordinary tokens, [batch, length]."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(2, VOCAB_SIZE, (batch, length), generator=generator)


def batch(padded):
    """Draw ids and the attention mask of five prompts, two of them with padding if `padded`."""
    ids = random_ids(5, 9)
    mask = torch.ones_like(ids)
    if padded:
        mask[1, :3] = mask[3, :6] = 0
    return ids * mask, mask


def training_batch(rows=3, seed=0):
    """Prompts padded on the left, responses on the right; the first two rows have one prompt."""
    prompt, response = random_ids(rows, 7, seed), random_ids(rows, 5, seed + 1)
    mask, labels = torch.ones_like(prompt), response.clone()
    prompt[1] = prompt[0]
    mask[:2, :3] = 0
    labels[1, 3:] = -100
    texts = {"prompt_ids": prompt * mask, "prompt_mask": mask, "response_ids": response}
    return {**texts, "labels": labels}


def through(kept):
    """Make the schedule that keeps the same layers at all positions."""
    return (Stage(0, kept),)


def is_near_tie(model, prompt, one, other, kept=range(NUM_LAYERS), **corrections):
    """Tell if the reference's best two logits are near where two continuations first differ."""
    at = next(i for i, pair in enumerate(zip(one, other, strict=False)) if pair[0] != pair[1])
    whole = torch.cat([prompt, torch.tensor(one[:at], dtype=torch.long)])[None]
    mask = torch.ones_like(whole)
    logits = reference_logits(model, whole, mask, len(prompt), kept, **corrections)
    best, next_best = logits[0, -1].topk(2).values
    return float(best - next_best) < NEAR_TIE


def count_near_ties(model, ids, mask, rows, expected, kept=range(NUM_LAYERS), **corrections):
    """Count the rows that differ from the expected ones; each has to differ at a near-tie."""
    different = [i for i in range(len(expected)) if rows[i] != expected[i]]
    for i in different:
        prompt = ids[i][mask[i].bool()]
        assert is_near_tie(model, prompt, rows[i], expected[i], kept, **corrections)
    return len(different)


def linear_paths(layer):
    """Return the paths of a decoder layer's linear layers."""
    kinds = {name: type(module).__name__ for name, module in layer.named_modules()}
    return [name for name, kind in kinds.items() if kind in ("Linear", "Conv1D")]


def random_adapter(model, kept, kind, seed=0):
    """Draw a skip adapter, and its corrections for `reference_logits`; `lora` has no patches."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return 0.1 * torch.randn(*shape, generator=generator)

    lora, stored, patches, linears = {}, {}, {}, {}
    if kind == "lora":
        for layer in kept:
            for path in linear_paths(stack_of(model)[layer]):
                linear = stack_of(model)[layer].get_submodule(path)
                is_linear = type(linear).__name__ == "Linear"
                outputs, inputs = (linear.weight if is_linear else linear.weight.T).shape
                down, up = draw(2, inputs), draw(outputs, 2)
                lora[layer, path] = Lora(down, up)
                linears[layer, path] = lambda x, y, down=down, up=up: y + (x @ down.T) @ up.T
        return SkipAdapter(NUM_LAYERS, NO_PATCHES, {kept: {}}, lora), {"linears": linears}
    for before, after in zip([-1, *kept], [*kept, NUM_LAYERS], strict=True):
        if after == before + 1 or (kind == "folded" and before < 0):
            continue
        matrix, bias, place = draw(32, 32), draw(32), (0, "")
        if kind == "folded":
            place = before, linear_paths(stack_of(model)[before])[-1]
            linears[place] = lambda x, y, matrix=matrix, bias=bias: y + y @ matrix + bias
        else:
            patches[after] = lambda h, matrix=matrix, bias=bias: h + h @ matrix.T + bias
        stored[after] = PATCHES[kind]({"weight": matrix, "bias": bias}, place)
    adapter = SkipAdapter(NUM_LAYERS, PATCHES[kind], {kept: stored})
    return adapter, {"patches": patches, "linears": linears}


def save_adapter(adapter, config, folder):
    """Save a skip adapter as one of the model of a configuration; return the folder."""
    base = {"model": config.label, "fingerprint": ModelFolder(config).fingerprint}
    replace(adapter, record={**adapter.record, "base": base}).save(folder)
    return folder


def response_logits(model, stages, prompt_ids, prompt_mask, response_ids, response_mask=None):
    """Return the logits [batch, response_len, vocab_size] of a response, by both passes."""
    prompt = encode_prompt(model, prompt_ids, prompt_mask)
    return predict_response(stages, prompt, response_ids, response_mask)
