"""An independent, uncached reference of layer skipping, which shares no code with ulskip."""

import inspect

import torch

# Attribute paths of the decoder layers, by which they are found without the code under test.
STACKS = [
    "model.layers",
    "model.language_model.layers",
    "transformer.h",
    "transformer.blocks",
    "transformer.layers",
    "gpt_neox.layers",
    "gpt_neox_japanese.layers",
    "backbone.layers",
    "model.decoder.layers",
    "biogpt.layers",
    "rwkv.blocks",
    "cpmant.encoder.layers",
    "bert.encoder.layer",
    "roberta.encoder.layer",
    "electra.encoder.layer",
    "data2vec_text.encoder.layer",
    "ernie.encoder.layer",
    "git.encoder.layer",
    "rembert.encoder.layer",
    "roberta_prelayernorm.encoder.layer",
    "roc_bert.encoder.layer",
    "roformer.encoder.layer",
    "transformer.layer",
    "prophetnet.decoder.layers",
    "backbone.blocks",
]


def reference_logits(model, ids, prompt_len, kept):
    """Run all layers on the prompt and the kept layers on later positions, without a cache; return
    the logits [batch, len, vocab_size] of token ids [batch, len].

    A hook on each layer runs it on all positions, and replaces its output by its input where it is
    skipped.
    """

    def make_hook(layer):
        runs = torch.tensor([True] * prompt_len + [layer in kept] * (ids.shape[1] - prompt_len))

        def hook(module, args, kwargs, output):
            before = args[0] if args else kwargs.get("hidden_states", next(iter(kwargs.values())))
            after = output[0] if isinstance(output, tuple) else output
            length = after.shape[1]  # some models insert tokens before the prompt
            is_run = torch.cat([torch.ones(length - len(runs), dtype=torch.bool), runs])
            chosen = torch.where(is_run.view(1, length, *[1] * (after.ndim - 2)), after, before)
            return (chosen, *output[1:]) if isinstance(output, tuple) else chosen

        return hook

    hooks = [
        module.register_forward_hook(make_hook(layer), with_kwargs=True)
        for layer, module in enumerate(find_layers(model))
    ]
    takes_use_cache = "use_cache" in inspect.signature(model.forward).parameters
    options = {"use_cache": False} if takes_use_cache else {}
    try:
        with torch.no_grad():
            return model(input_ids=ids, attention_mask=torch.ones_like(ids), **options).logits
    finally:
        for hook in hooks:
            hook.remove()


def find_layers(model):
    """Return the list of a model's decoder layers, found by their attribute path."""
    for path in STACKS:
        module = model
        for name in path.split("."):
            module = getattr(module, name, None)
        if isinstance(module, torch.nn.ModuleList):
            return module
    raise LookupError(
        f"no decoder layers in {type(model).__name__}:"
        f" {[name for name, _ in model.named_children()]}"
    )
